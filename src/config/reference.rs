//! Every key with its default, unit and meaning, as Markdown, generated from the comments in `mod.rs`.

use super::Config;
use std::collections::BTreeMap;

/// The source of the keys and their meaning.
const SOURCE: &str = include_str!("mod.rs");
/// The head of each table.
const HEAD: &str = "| key | default | unit | meaning |\n|---|---|---|---|\n";
/// A line of a field's comment may name its unit.
const UNIT: &str = "Unit: ";

/// One field of a struct.
#[derive(Debug)]
struct Field {
    name: &'static str,
    kind: &'static str,
    meaning: String,
    unit: String,
}

/// The fields of every public struct, by the struct's name.
fn structs() -> BTreeMap<&'static str, Vec<Field>> {
    let mut found: BTreeMap<_, Vec<Field>> = BTreeMap::new();
    let (mut name, mut comment) = (None, Vec::new());
    for line in SOURCE.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            comment.push(text.trim());
        } else if let Some(struct_name) = line.strip_prefix("pub struct ") {
            name = struct_name.split(' ').next();
            comment.clear();
        } else if let (Some(struct_name), Some((field, kind))) =
            (name, line.strip_prefix("pub ").and_then(|rest| rest.split_once(": ")))
        {
            let (meaning, unit) = meaning_and_unit(&comment);
            let field = Field { name: field, kind: kind.trim_end_matches(','), meaning, unit };
            found.entry(struct_name).or_default().push(field);
            comment.clear();
        } else if line == "}" {
            name = None;
            comment.clear();
        } else if !line.starts_with("#[") {
            comment.clear();
        }
    }
    found
}

fn meaning_and_unit(comment: &[&str]) -> (String, String) {
    let unit = comment.iter().find_map(|line| line.strip_prefix(UNIT));
    let meaning = comment.iter().filter(|line| !line.is_empty() && !line.starts_with(UNIT));
    let meaning = meaning.copied().collect::<Vec<_>>().join(" ");
    (meaning, unit.unwrap_or_default().trim_end_matches('.').to_owned())
}

/// The whole reference: a heading and a table for each section, in the order of the code.
#[must_use]
pub fn markdown() -> String {
    let structs = structs();
    let defaults = toml::Table::try_from(Config::default()).unwrap_or_default();
    let mut text = String::from("# Configuration\n\n## Top level\n\n");
    text.push_str(HEAD);
    let top = structs.get("Config").map(Vec::as_slice).unwrap_or_default();
    let (sections, keys): (Vec<_>, Vec<_>) = top.iter().partition(|field| structs.contains_key(field.kind));
    for field in keys {
        text.push_str(&row("", field, Some(&defaults)));
    }
    for section in sections {
        let inner = defaults.get(section.name).and_then(toml::Value::as_table);
        push_section(&mut text, 2, section.name, section.kind, inner, &structs);
    }
    text
}

fn push_section(
    text: &mut String,
    level: usize,
    path: &str,
    kind: &str,
    defaults: Option<&toml::Table>,
    structs: &BTreeMap<&'static str, Vec<Field>>,
) {
    text.push_str(&format!("\n{} [{path}]\n\n{HEAD}", "#".repeat(level)));
    let mut inner = Vec::new();
    for field in structs.get(kind).map(Vec::as_slice).unwrap_or_default() {
        // A table of tables: its keys are names that the person gives.
        match field.kind.strip_prefix("BTreeMap<String, ").and_then(|rest| rest.strip_suffix('>')) {
            Some(value) if structs.contains_key(value) => inner.push((field.name, value)),
            _ => text.push_str(&row(&format!("{path}."), field, defaults)),
        }
    }
    for (name, value) in inner {
        let first = defaults.and_then(|table| table.get(name)?.as_table()?.values().next()?.as_table());
        push_section(text, level + 1, &format!("{path}.{name}.NAME"), value, first, structs);
    }
}

fn row(path: &str, field: &Field, defaults: Option<&toml::Table>) -> String {
    let default = defaults.and_then(|table| table.get(field.name)).map(ToString::to_string);
    let Field { name, meaning, unit, .. } = field;
    let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
    format!("| `{path}{name}` | `{}` |{unit} | {meaning} |\n", default.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_row_with_its_meaning() {
        let text = markdown();
        let rows: Vec<_> = text.lines().filter(|line| line.starts_with("| `")).collect();
        let mut keys = 0;
        let mut tables = vec![toml::Table::try_from(Config::default()).unwrap()];
        while let Some(table) = tables.pop() {
            for (key, value) in table {
                match value {
                    // All handlers have the same keys; one stands for all.
                    toml::Value::Table(inner) if key == "handlers" => {
                        tables.push(inner.into_iter().next().unwrap().1.as_table().unwrap().clone());
                    }
                    toml::Value::Table(inner) => tables.push(inner),
                    _ => keys += 1,
                }
            }
        }
        assert_eq!(rows.len(), keys, "{text}");
        for row in rows {
            let cells: Vec<_> = row.trim_matches('|').split(" | ").collect();
            assert!(cells.len() >= 3 && cells.last().unwrap().trim().len() > 3, "{row}");
        }
    }
}
