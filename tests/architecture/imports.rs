//! Which file of `src` imports from which, as text: `crate::`, `self::` and `super::` paths, groups in braces, names of
//! modules that were imported before, and a module's own children.
//!
//! What counts as an arrow:
//! - From a file to the file that defines what it names. A `pub use` defines nothing: whoever imports by it imports from
//!   the file behind it. So a `mod.rs` that only declares and re-exports has no arrow to itself and makes no circle.
//! - Not from a `mod.rs` to files of its own folder: it is the folder's face and built of them. Their arrows to it count.
//! - Not from unit tests, and not from comments.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The names of the modules from the crate's root down; the root itself is empty.
pub(crate) type Module = Vec<String>;

/// One `use`, without braces.
struct Import {
    reexport: bool,
    path: Vec<String>,
    name: String,
}

struct File {
    /// Of a folder, or of the crate.
    is_face: bool,
    /// Without imports, comments and unit tests.
    body: String,
    imports: Vec<Import>,
}

/// The files of a crate by their modules.
pub(crate) struct Crate(BTreeMap<Module, File>);

/// Where a path leads.
enum Place {
    /// To something that this file defines.
    Item(Module),
    /// To a whole module.
    Module(Module),
}

/// Arrows from file to file, each with a path that makes it.
pub(crate) type Arrows = BTreeMap<Module, BTreeMap<Module, String>>;

impl Crate {
    /// Of the texts of its files, by paths below `src`.
    pub(crate) fn of(texts: impl Iterator<Item = (String, String)>) -> Self {
        let mut files = BTreeMap::new();
        for (path, text) in texts {
            let stem = Path::new(&path).with_extension("");
            let mut module: Module = stem.iter().map(|name| name.to_string_lossy().into_owned()).collect();
            let is_face = matches!(module.last().map(String::as_str), Some("mod" | "lib"));
            if is_face {
                module.pop();
            }
            let (imports, body) = parse(&code_of(&text));
            files.insert(module, File { is_face, body, imports });
        }
        Self(files)
    }

    /// `path` as it reads in `module`, from the root; none if it is of another crate.
    fn absolute(&self, module: &Module, path: &[String]) -> Option<Module> {
        let supers = path.iter().take_while(|name| *name == "super").count();
        let (from, rest) = match path.first().map(String::as_str)? {
            "crate" => (&[][..], &path[1..]),
            "self" => (&module[..], &path[1..]),
            "super" => (module.get(..module.len().checked_sub(supers)?)?, &path[supers..]),
            child => {
                let mut own = module.clone();
                own.push(child.to_owned());
                (self.0.contains_key(&own).then_some(&module[..])?, path)
            }
        };
        Some([from, rest].concat())
    }

    fn resolve(&self, path: &[String], depth: usize) -> Option<Place> {
        let mut module = Module::new();
        for (number, name) in path.iter().enumerate() {
            let mut below = module.clone();
            below.push(name.clone());
            if self.0.contains_key(&below) {
                module = below;
                continue;
            }
            let known = self.0.get(&module)?.imports.iter().find(|import| import.name == *name);
            let Some(import) = known else { return Some(Place::Item(module)) };
            let to = [self.absolute(&module, &import.path)?, path[number + 1..].to_vec()].concat();
            return if depth > 0 { self.resolve(&to, depth - 1) } else { None };
        }
        Some(Place::Module(module))
    }

    /// All arrows.
    pub(crate) fn arrows(&self) -> Arrows {
        self.0.iter().map(|(module, file)| (module.clone(), self.arrows_of(module, file))).collect()
    }

    fn arrows_of(&self, module: &Module, file: &File) -> BTreeMap<Module, String> {
        let (mut found, mut modules) = (BTreeMap::new(), BTreeMap::new());
        let mut leads_to = |path: &[String]| {
            let place = self.absolute(module, path).and_then(|path| self.resolve(&path, 8));
            match place {
                Some(Place::Item(other)) => {
                    let own_child = file.is_face && other.starts_with(module);
                    if other != *module && !other.is_empty() && !own_child {
                        found.entry(other).or_insert_with(|| path.join("::"));
                    }
                    None
                }
                Some(Place::Module(other)) => Some(other),
                None => None,
            }
        };
        for import in &file.imports {
            let mut path = import.path.clone();
            if import.reexport {
                continue;
            }
            if path.last().is_some_and(|name| name == "*") {
                // Whatever the module defines itself.
                path.pop();
                path.push(String::new());
            }
            if let Some(other) = leads_to(&path) {
                modules.insert(import.name.clone(), other);
            }
        }
        for path in paths(&file.body) {
            let full = match modules.get(&path[0]) {
                Some(module) => {
                    let mut full = vec!["crate".to_owned()];
                    full.extend(module.iter().chain(&path[1..]).cloned());
                    full
                }
                None => path,
            };
            leads_to(&full);
        }
        found
    }
}

/// Groups of files that reach each other, larger than one; the largest first (Kosaraju, without recursion).
pub(crate) fn circles(arrows: &Arrows) -> Vec<BTreeSet<Module>> {
    let mut back: BTreeMap<&Module, Vec<&Module>> = BTreeMap::new();
    for (from, to) in arrows {
        for to in to.keys() {
            back.entry(to).or_default().push(from);
        }
    }
    let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
    for start in arrows.keys() {
        let mut left = vec![(start, false)];
        while let Some((module, done)) = left.pop() {
            if done {
                order.push(module);
            } else if seen.insert(module) {
                left.push((module, true));
                left.extend(arrows.get(module).into_iter().flatten().map(|(to, _)| (to, false)));
            }
        }
    }
    let (mut circles, mut seen) = (Vec::new(), BTreeSet::new());
    for start in order.into_iter().rev() {
        let (mut circle, mut left) = (BTreeSet::new(), vec![start]);
        while let Some(module) = left.pop() {
            if seen.insert(module) {
                circle.insert(module.clone());
                left.extend(back.get(module).into_iter().flatten());
            }
        }
        if circle.len() > 1 {
            circles.push(circle);
        }
    }
    circles.sort_by_key(|circle| std::cmp::Reverse(circle.len()));
    circles
}

/// Without comments and unit tests.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let is_test = line.trim() == "#[cfg(test)]"
            && lines.peek().is_some_and(|next| next.contains("mod ") && next.trim_end().ends_with('{'));
        if is_test {
            break;
        }
        code.push_str(line.split("//").next().unwrap_or_default());
        code.push('\n');
    }
    code
}

/// The imports of a text, and the text without them.
fn parse(code: &str) -> (Vec<Import>, String) {
    let (mut imports, mut body) = (Vec::new(), String::new());
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let start = line.trim_start();
        let visible = start.starts_with("pub");
        let rest = match start.find(')').filter(|_| start.starts_with("pub(")) {
            Some(end) => &start[end + 1..],
            None => start.strip_prefix("pub ").unwrap_or(start),
        };
        let Some(first) = rest.trim_start().strip_prefix("use ") else {
            body.push_str(line);
            body.push('\n');
            continue;
        };
        let mut statement = first.to_owned();
        while !statement.contains(';') {
            let Some(more) = lines.next() else { break };
            statement.push_str(more);
        }
        let statement = statement.split(';').next().unwrap_or_default();
        for path in without_braces(statement) {
            let (path, renamed) = match path.split_once(" as ") {
                Some((path, name)) => (path, Some(name.trim().to_owned())),
                None => (path.as_str(), None),
            };
            let mut path: Vec<String> = path.split("::").map(|name| name.trim().to_owned()).collect();
            if path.len() > 1 && path.last().is_some_and(|name| name == "self") {
                path.pop();
            }
            let Some(name) = renamed.or_else(|| path.last().cloned()) else { continue };
            imports.push(Import { reexport: visible, path, name });
        }
    }
    (imports, body)
}

/// `a::{b, c::{d, e}}` as `a::b`, `a::c::d`, `a::c::e`.
fn without_braces(path: &str) -> Vec<String> {
    let (mut done, mut left) = (Vec::new(), vec![path.to_owned()]);
    while let Some(path) = left.pop() {
        let Some((before, group)) = path.split_once('{') else {
            done.push(path.trim().to_owned());
            continue;
        };
        let group = group.rsplit_once('}').map_or(group, |(inside, _)| inside);
        let (mut depth, mut part) = (0, String::new());
        for sign in group.chars().chain([',']) {
            match sign {
                ',' if depth == 0 => {
                    if !part.trim().is_empty() {
                        left.push(format!("{}{}", before.trim(), part.trim()));
                    }
                    part.clear();
                    continue;
                }
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            part.push(sign);
        }
    }
    done
}

/// Everything of the form `a::b` in a text.
fn paths(body: &str) -> Vec<Vec<String>> {
    let words = body.split(|sign: char| !(sign.is_alphanumeric() || sign == '_' || sign == ':'));
    let path =
        |word: &str| -> Vec<String> { word.trim_end_matches(':').split("::").map(str::to_owned).collect() };
    words.map(path).filter(|path| path.len() > 1 && !path[0].is_empty()).collect()
}

#[test]
fn arrows_are_found_however_they_are_written() {
    let texts = [
        ("lib.rs", "mod a;\nmod b;\nmod c;\npub use a::deep::Thing;\n"),
        (
            "a/mod.rs",
            "mod deep;\nmod twin;\npub(crate) use deep::{Other as Renamed, Thing};\npub fn own() { twin::go() }\n",
        ),
        ("a/deep.rs", "use super::twin::go;\npub struct Thing;\npub struct Other;\n"),
        ("a/twin.rs", "pub fn go() { super::own(); super::super::b::x() } // super::deep::Thing\n"),
        (
            "b.rs",
            "use crate::a::{self, Renamed};\nuse crate::Thing;\npub fn x() { a::own() }\n#[cfg(test)]\nmod tests {\nuse crate::c::y;\n}\n",
        ),
        ("c.rs", "use crate::a::*;\npub fn y() { crate::b::x::<Vec<u8>>() }\n"),
    ];
    let arrows =
        Crate::of(texts.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))).arrows();
    let of = |from: &str| -> Vec<String> {
        let from: Module = from.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        arrows[&from].keys().map(|to| to.join("/")).collect()
    };
    // A face has none to its own files, and a re-export leads to the file behind it.
    assert!(of("").is_empty() && of("a").is_empty());
    assert_eq!(of("a/deep"), ["a/twin"]);
    assert_eq!(of("a/twin"), ["a", "b"]);
    assert_eq!(of("b"), ["a", "a/deep"]);
    assert_eq!(of("c"), ["a", "b"]);
    let circles = circles(&arrows);
    assert_eq!(circles.len(), 1);
    let names: Vec<_> = circles[0].iter().map(|module| module.join("/")).collect();
    assert_eq!(names, ["a/deep", "a/twin", "b"]);
}
