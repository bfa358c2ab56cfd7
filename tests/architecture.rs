//! House rules as tests: the direction of imports, circles of files, where unsafe and program starts may stand, module
//! headers, file length. Reads text, so a macro can hide an arrow; when that bites, the layer becomes a crate.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; clippy sees only #[test] functions as tests"
)]

#[path = "architecture/imports.rs"]
mod imports;

use imports::{Crate, Module, circles};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules by rank; an import may only point to a lower rank or the same module.
const RANKS: [(&str, u32); 13] = [
    ("model", 0),
    ("config", 0),
    ("host", 1),
    ("images", 2),
    ("sandbox", 3),
    ("streaming", 4),
    ("metrics", 4),
    ("cri", 5),
    ("admin", 6),
    ("check", 6),
    ("daemon", 7),
    ("cli", 8),
    ("main", 9),
];

/// The storeys of `src/sandbox`, lowest first; an import may only point to a lower one or stay in its own. `checkpoint` is
/// used by `life` alone. `fuzz` reaches into all of them.
const STOREYS: [&str; 7] = ["spec", "words", "offload", "acts", "checkpoint", "life", "fuzz"];

/// Files that may reach each other: two that belong together.
const MOST_IN_A_CIRCLE: usize = 2;

/// Larger circles, by one of their files, with the reason. This list only shrinks.
const CIRCLES: [(&str, &str); 3] = [
    ("images::document", "its worker's table names every kind of document, and each kind is read by it"),
    ("images::registry::client", "clients, hosts and their configuration are one table in six files"),
    ("images::registry::session", "a blob is fetched in parts, a part by a session"),
];

/// Non-test lines of a file after which it is too long to read in one sitting.
const MAX_LINES: usize = 600;

/// Files above [`MAX_LINES`], with the reason. This list only shrinks.
const LONG: [(&str, &str); 0] = [];

fn sources(dir: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "no sources below {dir}");
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_string_lossy().into_owned()
}

fn module_of(path: &Path) -> String {
    let relative = relative(path);
    let inside = relative.strip_prefix("src/").unwrap();
    inside.split(['/', '.']).next().unwrap().to_owned()
}

fn rank(module: &str) -> Option<u32> {
    RANKS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

/// Files that are nothing but unit tests.
fn is_test(path: &Path) -> bool {
    path.file_stem()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.ends_with("tests") || name == "fixture")
        || path.components().any(|c| c.as_os_str() == "tests")
}

/// The text before the file's unit tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap()
}

#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    for path in sources("src") {
        let module = module_of(&path);
        if module == "lib" {
            continue;
        }
        let own = rank(&module).unwrap_or_else(|| panic!("give module {module} a rank"));
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in without_tests(&text).lines().enumerate() {
            for piece in line.split("crate::").skip(1) {
                let target: String = piece.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let Some(other) = rank(&target) else { continue };
                if other >= own && target != module && !(own == 0 && other == 0) {
                    wrong.push(format!("{}:{}: {module} imports {target}", relative(&path), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The files of the daemon that are more than unit tests.
fn daemon() -> Crate {
    let files = sources("src").into_iter().filter(|path| !is_test(path));
    Crate::of(files.map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        (relative(&path).strip_prefix("src/").unwrap().to_owned(), text)
    }))
}

fn shown(module: &Module) -> String {
    module.join("::")
}

#[test]
fn imports_in_sandbox_point_down() {
    let storey = |module: &Module| match module.as_slice() {
        [sandbox, storey, ..] if sandbox == "sandbox" => {
            let found = STOREYS.iter().position(|name| name == storey);
            Some(found.unwrap_or_else(|| panic!("give sandbox::{storey} a storey")))
        }
        [sandbox] if sandbox == "sandbox" => Some(STOREYS.len()),
        _ => None,
    };
    let mut wrong = Vec::new();
    for (from, to) in daemon().arrows() {
        let Some(own) = storey(&from).filter(|own| *own < STOREYS.len()) else { continue };
        for (to, by) in to {
            if storey(&to).is_some_and(|other| other > own) {
                wrong.push(format!("{} imports {} ({by})", shown(&from), shown(&to)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_more_than_two_files_import_each_other() {
    let arrows = daemon().arrows();
    let (mut wrong, mut excused) = (Vec::new(), BTreeSet::new());
    for circle in circles(&arrows).into_iter().filter(|circle| circle.len() > MOST_IN_A_CIRCLE) {
        let before = excused.len();
        excused.extend(
            CIRCLES.iter().map(|(name, _)| *name).filter(|name| circle.iter().any(|m| shown(m) == *name)),
        );
        if excused.len() > before {
            continue;
        }
        wrong.push(format!("{} files import each other:", circle.len()));
        for from in &circle {
            for (to, by) in arrows[from].iter().filter(|(to, _)| circle.contains(*to)) {
                wrong.push(format!("    {} -> {} ({by})", shown(from), shown(to)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (name, _) in CIRCLES {
        assert!(excused.contains(name), "{name} is in no large circle any more: take it off the list");
    }
}

/// A pod's task or a call that blocked its thread would hold up others: what waits takes an `OffThread` of `host/offload.rs`.
#[test]
fn pods_block_no_thread_but_by_offload() {
    // Drops, and what a closure of another module is called for.
    let in_place =
        ["offload.rs", "acts/trials.rs", "checkpoint/frozen.rs"].map(|name| format!("src/sandbox/{name}"));
    for path in sources("src/sandbox").into_iter().filter(|path| !is_test(path)) {
        let (name, text) = (relative(&path), fs::read_to_string(&path).unwrap());
        let text = without_tests(&text);
        for word in ["spawn_blocking", "block_in_place", "thread::sleep"] {
            assert!(!text.contains(word), "{name} uses {word}: see src/host/offload.rs");
        }
        assert!(!text.contains("in_place") || in_place.contains(&name), "{name} blocks in place");
    }
}

#[test]
fn grpc_types_stop_at_the_front_door() {
    for path in sources("src") {
        let module = module_of(&path);
        // The RPC metrics count tonic's codes.
        if matches!(module.as_str(), "cri" | "metrics" | "admin" | "cli") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for word in ["tonic::", "prost::", "cri::proto"] {
            assert!(!without_tests(&text).contains(word), "{} names {word}", relative(&path));
        }
    }
}

#[test]
fn only_sys_is_unsafe() {
    for dir in ["src", "crates/monitor", "crates/monitor-proto", "crates/testkit", "tests"] {
        for path in sources(dir) {
            let text = fs::read_to_string(&path).unwrap();
            let block = ["unsafe", " {"].concat();
            assert!(!text.contains(&block), "{} has an unsafe block", relative(&path));
        }
    }
}

/// JSON of registries and archives is read by a worker (`images/document.rs`). What is read elsewhere in `images` is the node's
/// own, of other runtimes' stores, or signed by a key of the policy.
#[test]
fn json_of_others_is_read_by_workers() {
    let allowed = [
        // Its own.
        "copies.rs",
        "document.rs",
        "index.rs",
        "policy/claim.rs",
        "policy/containers.rs",
        "registry/auth_files.rs",
        "transfer/peers/crio.rs",
        "transfer/peers/tar_split.rs",
    ];
    for path in sources("src/images") {
        let relative = relative(&path);
        if is_test(&path) || allowed.iter().any(|file| relative == format!("src/images/{file}")) {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        assert!(!code.contains("serde_json::from_"), "{relative} reads JSON itself");
    }
}

#[test]
fn only_command_and_monitor_start_programs() {
    for path in sources("src") {
        let relative = relative(&path);
        // host/worker/ starts this program itself, without rights: nothing of `command` fits that, which waits for the
        // end of a program and keeps its output.
        let allowed = relative == "src/host/command.rs"
            || relative.starts_with("src/host/worker/")
            || relative.starts_with("src/host/monitor/");
        if allowed || is_test(&path) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for word in ["process::Command", "Command::new(\""] {
            assert!(!without_tests(&text).contains(word), "{relative} starts a program by itself");
        }
    }
}

/// Recursion over what a container made has ended the daemon: whatever removes a tree is `host/remove.rs`.
#[test]
fn trees_are_removed_in_one_place() {
    for dir in ["src", "crates/sys", "crates/monitor/src", "crates/monitor-proto"] {
        for path in sources(dir) {
            if is_test(&path) {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let word = "remove_dir_all";
            assert!(
                !without_tests(&text).contains(word),
                "{} uses {word}: see host/remove.rs",
                relative(&path)
            );
        }
    }
}

#[test]
fn every_file_opens_with_what_it_is() {
    for dir in ["src", "crates", "tests"] {
        for path in sources(dir) {
            if is_test(&path) && dir != "tests" {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("//!"), "{} has no header", relative(&path));
        }
    }
}

#[test]
fn files_can_be_read_in_one_sitting() {
    for dir in ["src", "crates"] {
        for path in sources(dir) {
            if is_test(&path) {
                continue;
            }
            let relative = relative(&path);
            let text = fs::read_to_string(&path).unwrap();
            let lines = without_tests(&text).lines().count();
            let excused = LONG.iter().any(|(name, _)| *name == relative);
            assert!(lines <= MAX_LINES || excused, "{relative} has {lines} lines");
            assert!(!excused || lines > MAX_LINES, "{relative} is short again: take it off the list");
        }
    }
}
