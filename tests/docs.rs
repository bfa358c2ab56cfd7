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

/// The output of `podwright config` without a file, key by key; handlers appear once, as NAME.
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

/// Every source in a directory and below.
fn sources_of(dir: PathBuf) -> Vec<String> {
    let (mut texts, mut left) = (Vec::new(), vec![dir]);
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                texts.push(fs::read_to_string(path).unwrap());
            }
        }
    }
    texts
}

/// Every source of the daemon, without unit tests.
fn daemon_sources() -> String {
    sources_of(path("src")).iter().map(|text| text.split("#[cfg(test)]").next().unwrap()).collect()
}

/// A document with the tables below these headings that begin with this column replaced; the rest stays.
fn with_tables(document: &str, column: &str, mut tables: BTreeMap<String, String>) -> String {
    let first = format!("| {column} |");
    let (mut text, mut heading, mut replacing) = (String::new(), String::new(), false);
    for line in read(document).lines() {
        if line.starts_with('#') {
            line.trim_start_matches('#').trim().clone_into(&mut heading);
        }
        replacing = line.starts_with(&first) || (replacing && line.starts_with('|'));
        if !replacing {
            text.push_str(line);
            text.push('\n');
        } else if line.starts_with(&first) {
            // The first row stands for the whole table. One that the code does not have goes.
            for line in tables.remove(&heading).iter().flat_map(|table| table.lines()) {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    assert!(tables.is_empty(), "{document} has no headings with tables for {:?}", tables.keys());
    text
}

/// Compares a document with what the code makes of it; `make docs` writes that.
fn is_generated(document: &str, wanted: &str) {
    if std::env::var_os("PODWRIGHT_WRITE_DOCS").is_some() {
        fs::write(path(document), wanted).unwrap();
    }
    let there = read(document);
    let wrong = there.lines().zip(wanted.lines()).find(|(there, wanted)| there != wanted);
    assert!(there == wanted, "`make docs` corrects this: {document} and the code say {wrong:#?}");
}

#[test]
fn generated_configuration_is_as_the_code_says() {
    let mut tables = BTreeMap::new();
    for part in config::markdown().split("\n#").skip(1) {
        let (heading, rest) = part.split_once('\n').unwrap();
        tables.insert(heading.trim_start_matches('#').trim().to_owned(), rest.trim().to_owned());
    }
    is_generated("docs/configuration.md", &with_tables("docs/configuration.md", "key", tables));
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
    let (code, document) = (read("src/sandbox/words/state.rs"), read("docs/state.md"));
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
fn unimplemented_calls_are_documented() {
    let sources = daemon_sources();
    let in_code: BTreeSet<String> = ["not_yet(\"", "unimplemented(\""]
        .iter()
        .flat_map(|call| sources.split(call).skip(1))
        .map(|rest| rest.split('"').next().unwrap())
        .map(|text| text.chars().take_while(char::is_ascii_alphanumeric).collect())
        .collect();
    let document = read("docs/comparison.md");
    let told =
        code_words(section(&document, "### Calls that answer Unimplemented"), |word| word != "Unimplemented");
    assert_eq!(told, in_code);
}

/// The text in the parentheses of every call of a macro.
fn calls<'a>(source: &'a str, macro_name: &str) -> Vec<&'a str> {
    let opening = format!("{macro_name}(");
    let ends = |rest: &'a str| {
        let (mut depth, mut quoted, mut escaped) = (1, false, false);
        for (at, c) in rest.char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                '(' if !quoted => depth += 1,
                ')' if !quoted => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return &rest[..at];
            }
        }
        rest
    };
    source.split(&opening).skip(1).map(ends).collect()
}

/// Messages of the log by level, each with its meaning and what to do.
type Explained = BTreeMap<&'static str, BTreeMap<String, (String, String)>>;

/// The levels with their headings in the document.
const LEVELS: [(&str, &str); 3] = [("error", "Errors"), ("warn", "Warnings"), ("info", "Information")];

/// Reads the comments `// Log:` (meaning) and `// Do:` (remedy) above calls of the log, and says what is wrong with them.
fn explained(sources: &[String]) -> (Explained, Vec<String>) {
    let (mut found, mut seen) = (Explained::new(), BTreeSet::new());
    let mut faults = Vec::new();
    for source in sources {
        // Modules of tests that are files of their own log nothing.
        let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let mut pending: Option<(String, String)> = None;
        let (mut at, mut in_comment) = (0, false);
        for line in source.lines() {
            let rest = &source[at..];
            at += line.len() + 1;
            if let Some(comment) = line.trim_start().strip_prefix("// ") {
                if let Some(meaning) = comment.strip_prefix("Log: ") {
                    faults.extend(pending.take().map(|(text, _)| format!("belongs to no message: {text}")));
                    pending = Some((meaning.to_owned(), String::new()));
                    in_comment = true;
                } else if let (true, Some((meaning, remedy))) = (in_comment, pending.as_mut()) {
                    let (part, text) = match comment.strip_prefix("Do: ") {
                        Some(text) => (remedy, text),
                        None if remedy.is_empty() => (meaning, comment),
                        None => (remedy, comment),
                    };
                    *part = [part.as_str(), text].join(" ").trim().to_owned();
                }
                continue;
            }
            in_comment = false;
            for (level, _) in LEVELS {
                let name = format!("tracing::{level}!");
                if !line.contains(&name) {
                    continue;
                }
                // The message is the last literal; one that is a format alone says nothing here.
                let call = calls(rest, &name)[0];
                let Some(message) =
                    call.split('"').skip(1).step_by(2).last().filter(|text| !text.starts_with('{'))
                else {
                    continue;
                };
                seen.insert((level, message.to_owned()));
                if let Some(words) = pending.take() {
                    let earlier = found.entry(level).or_default().insert(message.to_owned(), words);
                    faults.extend(earlier.map(|_| format!("explained twice: {message}")));
                }
            }
        }
        faults.extend(pending.map(|(text, _)| format!("belongs to no message: {text}")));
    }
    for (level, message) in seen {
        let words = found.get(level).and_then(|messages| messages.get(&message));
        match words {
            None => faults.push(format!("no comment `// Log:` above it: {message}")),
            Some((_, remedy)) if remedy.is_empty() != (level == "info") => {
                faults.push(format!(
                    "errors and warnings have a comment `// Do:`, others have none: {message}"
                ));
            }
            Some(_) => {}
        }
    }
    (found, faults)
}

#[test]
fn generated_log_messages_are_those_of_the_code() {
    let (explained, faults) = explained(&sources_of(path("src")));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let messages: usize = explained.values().map(BTreeMap::len).sum();
    assert!(messages > 90, "the messages are not found any more: {explained:#?}");
    let mut tables = BTreeMap::new();
    for (level, heading) in LEVELS {
        let with_remedy = level != "info";
        let mut table = String::from(if with_remedy {
            "| message | meaning | what to do |\n|---|---|---|"
        } else {
            "| message | meaning |\n|---|---|"
        });
        for (message, (meaning, remedy)) in &explained[level] {
            let row = if with_remedy {
                format!("\n| `{message}` | {meaning} | {remedy} |")
            } else {
                format!("\n| `{message}` | {meaning} |")
            };
            table.push_str(&row);
        }
        tables.insert(heading.to_owned(), table);
    }
    let document = "docs/troubleshooting.md";
    is_generated(document, &with_tables(document, "message", tables));
}

#[test]
fn a_message_without_its_explanation_is_seen() {
    for (source, fault) in [
        ("fn a() {\n    tracing::warn!(\"lost\");\n}\n", "no comment"),
        ("// Log: Gone.\ntracing::warn!(\"lost\");\n", "`// Do:`"),
        ("// Log: Gone.\n// Do: Look.\ntracing::info!(\"lost\");\n", "`// Do:`"),
        ("// Log: Gone.\n// Do: Look.\nlet lost = 1;\n", "belongs to no message"),
        (
            "// Log: A.\n// Do: B.\ntracing::warn!(\"lost\");\n// Log: A.\n// Do: B.\ntracing::warn!(\"lost\");\n",
            "explained twice",
        ),
        (
            "// Log: Gone,\n// really.\n// Do: Look.\n// Then wait.\ntracing::warn!(\n    %id,\n    \"lost\"\n);\n",
            "",
        ),
    ] {
        let (found, faults) = explained(&[source.to_owned()]);
        match fault {
            "" => {
                assert!(faults.is_empty(), "{faults:?}");
                let words = ("Gone, really.".to_owned(), "Look. Then wait.".to_owned());
                assert_eq!(found["warn"]["lost"], words);
            }
            fault => assert!(faults.iter().any(|text| text.contains(fault)), "{fault}: {faults:?}"),
        }
    }
}

/// Rows that the table of invariants has at least: it grows with what is found, and never shrinks below this.
const INVARIANTS: usize = 50;

/// Names of all test functions in a source.
fn tests_in(source: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test) {
            names.insert(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
            is_test = false;
        }
    }
    names
}

/// What is wrong with a table of invariants, row by row.
fn faults_of_invariants(table: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut rows = 0;
    for row in table.lines().filter(|line| line.starts_with('|')).skip(2) {
        rows += 1;
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [_, _, _, named] = cells[..] else {
            faults.push(format!("{} cells in place of 4: {row}", cells.len()));
            continue;
        };
        if cells.iter().any(|cell| cell.is_empty()) {
            faults.push(format!("an empty cell: {row}"));
        }
        let named = code_words(named, |_| true);
        if named.is_empty() {
            faults.push(format!("no test is named: {row}"));
        }
        faults.extend(named.difference(tests).map(|name| format!("there is no test {name}: {row}")));
    }
    if rows < INVARIANTS {
        faults.push(format!("{rows} rows, which are less than {INVARIANTS}"));
    }
    faults
}

#[test]
fn every_invariant_names_tests_that_exist() {
    let sources = ["src", "tests", "crates"].map(|dir| sources_of(path(dir))).concat();
    let tests: BTreeSet<String> = sources.iter().flat_map(|source| tests_in(source)).collect();
    let document = read("docs/threat-model.md");
    let table = section(&document, "## Invariants and their tests");
    let faults = faults_of_invariants(table, &tests);
    assert!(faults.is_empty(), "docs/threat-model.md:\n{}", faults.join("\n"));

    // What would be wrong with it is seen.
    for (change, word) in [
        (table.replacen("`breakouts`", "`breakouts_of_old`", 1), "no test breakouts_of_old"),
        (table.replacen("`breakouts`", "-", 1), "no test is named"),
        (table.replacen("| image | ", "| ", 1), "3 cells"),
        (table.lines().take(INVARIANTS).collect::<Vec<_>>().join("\n"), "less than"),
    ] {
        let faults = faults_of_invariants(&change, &tests);
        assert!(faults.iter().any(|fault| fault.contains(word)), "{word}: {faults:?}");
    }
}

/// Every Markdown file of the project.
fn documents() -> Vec<PathBuf> {
    let (mut found, mut left) = (Vec::new(), vec![path("")]);
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                // What git does not know: builds, and hidden directories.
                if !name.starts_with('.') && name != "target" && name != "build" {
                    left.push(path);
                }
            } else if name.ends_with(".md") {
                found.push(path);
            }
        }
    }
    found
}

/// A document without its code: fenced and indented blocks, and spans in code marks.
fn prose(text: &str) -> String {
    let (mut prose, mut fenced, mut listed) = (String::new(), false, false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        let indented = line.starts_with("    ");
        listed = line.trim_start().starts_with(['-', '|']) || (listed && line.starts_with("  "));
        if !fenced && (listed || !indented) {
            // Text outside of code marks is at even places.
            prose.extend(line.split('`').step_by(2));
            prose.push('\n');
        }
    }
    prose
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let (mut anchors, mut seen) = (BTreeSet::new(), BTreeMap::<String, u32>::new());
    let mut fenced = false;
    for line in text.lines() {
        fenced ^= line.starts_with("```");
        if fenced || !line.starts_with('#') {
            continue;
        }
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let anchor: String = heading
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let count = seen.entry(anchor.clone()).or_default();
        anchors.insert(if *count == 0 { anchor } else { format!("{anchor}-{count}") });
        *count += 1;
    }
    anchors
}

/// Relative links of a document that lead nowhere.
fn broken_links(document: &Path, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    for rest in prose(text).split("](").skip(1) {
        let link = rest.split(')').next().unwrap();
        if link.contains("://") || link.starts_with("mailto:") {
            continue;
        }
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let target =
            if file.is_empty() { document.to_owned() } else { document.parent().unwrap().join(file) };
        let found = if anchor.is_empty() {
            target.exists()
        } else {
            fs::read_to_string(&target).is_ok_and(|text| anchors(&text).contains(anchor))
        };
        if !found {
            broken.push(format!("{}: {link}", document.display()));
        }
    }
    broken
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let documents = documents();
    assert!(documents.len() > 15, "the documents are not found any more: {documents:#?}");
    let broken: Vec<_> = documents
        .iter()
        .flat_map(|document| broken_links(document, &fs::read_to_string(document).unwrap()))
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));

    // Broken links are seen.
    let readme = path("README.md");
    for (text, broken) in [
        ("a [file](docs/none.md) here", 1),
        ("an [anchor](docs/glossary.md#none), a [good one](docs/glossary.md#images)", 1),
        ("- [own](#none)", 1),
        ("`[code](none.md)` and [the web](https://example.com/none.md)", 0),
    ] {
        assert_eq!(broken_links(&readme, text).len(), broken, "{text}");
    }
}

/// Words that a newcomer reads before the first module header.
const OVERVIEW_WORDS: usize = 2000;

#[test]
fn the_architecture_is_an_overview() {
    let words = read("ARCHITECTURE.md").split_whitespace().count();
    assert!(words <= OVERVIEW_WORDS, "ARCHITECTURE.md has {words} words: details belong in module headers");
}
