//! The documents against the code: configuration keys with their defaults, the deployment's configuration file, the
//! names of states, metrics and unimplemented calls. A document that lies fails here.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; clippy sees only #[test] functions as tests"
)]

use podwright::config::{self, Config};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

fn read(relative: &str) -> String {
    fs::read_to_string(path(relative)).unwrap_or_else(|e| panic!("{relative}: {e}"))
}

/// What `podwright config` prints without a file, key by key; handlers are told once, as NAME.
fn default_keys() -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    flatten("", &toml::Table::try_from(Config::default()).unwrap(), &mut keys);
    keys
}

fn flatten(prefix: &str, table: &toml::Table, keys: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let key = if prefix == "runtime.handlers." { "NAME" } else { key };
        match value {
            toml::Value::Table(table) => flatten(&format!("{prefix}{key}."), table, keys),
            value => drop(keys.insert(format!("{prefix}{key}"), value.to_string())),
        }
    }
}

/// The cells of the table rows of a text, without the code marks.
fn rows(text: &str) -> impl Iterator<Item = Vec<String>> {
    text.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let cells = line.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    })
}

/// The text below a heading, up to the next heading.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, rest) = text.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading:?}"));
    rest.split("\n#").next().unwrap()
}

/// Words in code marks that satisfy `wanted`.
fn code_words(text: &str, wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).filter(|word| wanted(word)).map(str::to_owned).collect()
}

/// Every source of the daemon, without unit tests.
fn daemon_sources() -> String {
    let (mut text, mut left) = (String::new(), vec![path("src")]);
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                text.push_str(fs::read_to_string(path).unwrap().split("#[cfg(test)]").next().unwrap());
            }
        }
    }
    text
}

#[test]
fn the_configuration_is_documented_with_its_defaults() {
    let documented: BTreeMap<_, _> =
        rows(&read("docs/configuration.md")).map(|cells| (cells[0].clone(), cells[1].clone())).collect();
    assert_eq!(documented, default_keys());
}

#[test]
fn the_deployed_configuration_is_the_defaults() {
    assert_eq!(config::load(&path("deploy/config.toml"), true).unwrap(), Config::default());
}

#[test]
fn the_deployed_configuration_names_every_key_with_its_default() {
    let text = read("deploy/config.toml");
    // A comment has a space after its mark, a key that is commented out has none.
    let uncommented: Vec<&str> = text
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .collect();
    let mut keys = BTreeMap::new();
    flatten("", &uncommented.join("\n").parse().unwrap(), &mut keys);
    assert_eq!(keys, default_keys());
}

#[test]
fn states_are_documented() {
    let (code, document) = (read("src/sandbox/state.rs"), read("docs/state.md"));
    for name in ["SandboxState", "NotReadyCause", "Holdings", "ContainerState", "ExitReason", "ExitSource"] {
        let body = code.split_once(&format!("pub enum {name} {{\n")).unwrap().1;
        let body = body.split("\n}\n").next().unwrap();
        // A variant stands at one level of indentation.
        let variants: BTreeSet<String> = body
            .lines()
            .filter_map(|line| line.strip_prefix("    "))
            .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
            .map(|line| line.chars().take_while(char::is_ascii_alphanumeric).collect())
            .collect();
        let documented: BTreeSet<String> =
            rows(section(&document, &format!("### {name}"))).map(|cells| cells[0].clone()).collect();
        assert_eq!(documented, variants, "{name}");
    }
}

#[test]
fn metrics_are_documented() {
    let in_code: BTreeSet<String> = daemon_sources()
        .split('"')
        .filter(|word| {
            word.starts_with("podwright_") && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        })
        .map(str::to_owned)
        .collect();
    let document = read("docs/operations.md");
    let documented: BTreeSet<String> = rows(section(&document, "## Metrics"))
        .map(|cells| cells[0].clone())
        .filter(|name| name.starts_with("podwright_"))
        .collect();
    assert_eq!(documented, in_code);
}

#[test]
fn unimplemented_calls_are_told() {
    let sources = daemon_sources();
    let in_code: BTreeSet<String> = ["not_yet(\"", "unimplemented(\""]
        .iter()
        .flat_map(|call| sources.split(call).skip(1))
        .map(|rest| rest.split('"').next().unwrap())
        .map(|text| text.chars().take_while(char::is_ascii_alphanumeric).collect())
        .collect();
    let readme = read("README.md");
    let told =
        code_words(section(&readme, "### Calls that answer Unimplemented"), |word| word != "Unimplemented");
    assert_eq!(told, in_code);
}
