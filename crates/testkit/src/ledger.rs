//! What a scratch node has left on the machine.
//!
//! Owns finding every kind of trace by the node's id, directory and subnet:
//! processes, mounts, network namespaces, links, addresses, cgroups, iptables
//! rules. It never changes anything; [`crate::teardown`] does.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::scratch::{self, Scratch};

/// A snapshot. Each list is sorted; equal snapshots mean that nothing was left or lost.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ledger {
    /// Command lines of processes that belong to the node.
    pub processes: Vec<String>,
    /// `mountpoint type source` of mounts under the node's directory.
    pub mounts: Vec<String>,
    /// Files that pin network namespaces.
    pub netns: Vec<String>,
    /// The bridge and the interfaces on it.
    pub links: Vec<String>,
    /// Addresses that host-local holds reserved.
    pub addresses: Vec<String>,
    /// Cgroup directories, of every hierarchy, below the node's parent.
    pub cgroups: Vec<String>,
    /// Rules and chains of the node's network, and CNI chains that nothing uses.
    pub rules: Vec<String>,
}

impl Ledger {
    /// Looks now.
    #[must_use]
    pub fn of(scratch: &Scratch) -> Self {
        let mut ledger = Self {
            processes: processes(scratch).into_iter().map(|p| p.command).collect(),
            mounts: mounts(scratch.root())
                .iter()
                .map(|m| format!("{} {} {}", m.point, m.kind, m.source))
                .collect(),
            netns: files(&scratch.netns_dir()),
            links: links(scratch.bridge()),
            addresses: addresses(&scratch.ipam_dir()),
            cgroups: cgroups(scratch.id()).iter().map(|p| p.display().to_string()).collect(),
            rules: rules(scratch)
                .into_iter()
                .map(|r| format!("{} {} {}", r.program, r.table, r.text))
                .collect(),
        };
        for list in ledger.lists_mut() {
            list.sort_unstable();
        }
        ledger
    }

    /// Whether nothing at all was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lists().iter().all(|(_, list)| list.is_empty())
    }

    /// Lines that only one of the two has, preceded by `-` (gone) or `+` (new).
    #[must_use]
    pub fn difference(&self, later: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for ((kind, before), (_, after)) in self.lists().into_iter().zip(later.lists()) {
            let mut extra = after.clone();
            for line in before {
                match extra.iter().position(|other| other == line) {
                    Some(at) => drop(extra.swap_remove(at)),
                    None => lines.push(format!("- {kind}: {line}")),
                }
            }
            lines.extend(extra.iter().map(|line| format!("+ {kind}: {line}")));
        }
        lines
    }

    fn lists(&self) -> [(&'static str, &Vec<String>); 7] {
        [
            ("process", &self.processes),
            ("mount", &self.mounts),
            ("netns", &self.netns),
            ("link", &self.links),
            ("address", &self.addresses),
            ("cgroup", &self.cgroups),
            ("rule", &self.rules),
        ]
    }

    fn lists_mut(&mut self) -> [&mut Vec<String>; 7] {
        [
            &mut self.processes,
            &mut self.mounts,
            &mut self.netns,
            &mut self.links,
            &mut self.addresses,
            &mut self.cgroups,
            &mut self.rules,
        ]
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, list) in self.lists() {
            for line in list {
                writeln!(f, "{kind}: {line}")?;
            }
        }
        Ok(())
    }
}

/// Fails the test with what was left or lost.
///
/// # Panics
/// When the snapshots differ.
pub fn assert_same(before: &Ledger, after: &Ledger) {
    let lines = before.difference(after);
    assert!(lines.is_empty(), "traces differ:\n{}", lines.join("\n"));
}

/// A process that belongs to a node.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) command: String,
}

impl Process {
    /// Dead and not reaped: it has no command line any more, only a name.
    pub(crate) fn is_zombie(&self) -> bool {
        self.command.starts_with('[')
    }
}

/// Processes whose command line names the directory, whose cgroup is the node's, whose own mount namespace has mounts
/// of the node while their cgroup is no other node's, or whose log is in it (a monitor). Excludes the callers'
/// ancestors.
pub(crate) fn processes(scratch: &Scratch) -> Vec<Process> {
    let own = ancestors();
    let host = std::fs::read_link("/proc/self/ns/mnt").ok();
    let root = scratch.root().display().to_string();
    let marks = [format!("{root}/"), root.clone()];
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if own.contains(&pid) {
            continue;
        }
        let text = |file: &str| {
            std::fs::read(entry.path().join(file))
                .map(|b| String::from_utf8_lossy(&b).into_owned())
                .unwrap_or_default()
        };
        let arguments = text("cmdline");
        let named = arguments.split(['\0', '=', ' ']).any(|a| a == marks[1] || a.contains(&marks[0]));
        let in_cgroup = || text("cgroup").contains(scratch.id());
        let in_mounts = || {
            let namespace = std::fs::read_link(entry.path().join("ns/mnt")).ok();
            namespace.is_some()
                && namespace != host
                && text("mountinfo").contains(&marks[0])
                // A container in creation still has the host's mounts, those of all nodes.
                && !text("cgroup").contains(scratch::ID_PREFIX)
        };
        let has_diary = || {
            let diary = std::fs::read_link(entry.path().join("fd/2")).ok();
            text("comm").starts_with("podwright-")
                && diary.is_some_and(|path| path.starts_with(scratch.root()))
        };
        if named || in_cgroup() || in_mounts() || has_diary() {
            let command = arguments.trim_end_matches('\0').replace('\0', " ");
            // A zombie has no command line, only a name, and it counts.
            let command = if command.is_empty() { format!("[{}]", text("comm").trim()) } else { command };
            found.push(Process { pid, parent: parent_of(pid).unwrap_or_default(), command });
        }
    }
    found
}

/// This process and those it descends from: scripts that name the directory are not the node's.
fn ancestors() -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    let mut next = i32::try_from(std::process::id()).ok();
    while let Some(pid) = next.filter(|pid| *pid > 0 && found.insert(*pid)) {
        next = parent_of(pid);
    }
    found
}

fn parent_of(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")).and_then(|parent| parent.trim().parse().ok())
}

/// One line of mountinfo, in parts.
#[derive(Debug)]
pub(crate) struct Mount {
    pub(crate) point: String,
    kind: String,
    source: String,
}

/// Mounts of this mount namespace at or below `root`, in the order they were made.
pub(crate) fn mounts(root: &Path) -> Vec<Mount> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found = Vec::new();
    for line in table.lines() {
        let Some((fields, rest)) = line.split_once(" - ") else { continue };
        let Some(point) = fields.split(' ').nth(4) else { continue };
        if Path::new(point).starts_with(root) {
            let mut rest = rest.split(' ');
            let mut next = || rest.next().unwrap_or_default().to_owned();
            found.push(Mount { point: point.to_owned(), kind: next(), source: next() });
        }
    }
    found
}

fn files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}

/// The bridge and the names of its ports.
pub(crate) fn links(bridge: &str) -> Vec<String> {
    let class = Path::new("/sys/class/net");
    let mut found = Vec::new();
    if class.join(bridge).exists() {
        found.push(bridge.to_owned());
    }
    for port in std::fs::read_dir(class.join(bridge).join("brif")).into_iter().flatten().flatten() {
        found.push(port.file_name().to_string_lossy().into_owned());
    }
    found
}

/// host-local keeps one file per reserved address, beside `lock` and `last_reserved_ip.*`.
fn addresses(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for network in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        for file in files(&network.path()) {
            let name = file.rsplit('/').next().unwrap_or_default();
            if name.parse::<std::net::IpAddr>().is_ok() {
                found.push(name.to_owned());
            }
        }
    }
    found
}

/// Cgroup directories whose path has the id in it, parents first.
pub(crate) fn cgroups(id: &str) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found = Vec::new();
    for line in table.lines() {
        let Some((fields, rest)) = line.split_once(" - ") else { continue };
        if let Some(point) = fields.split(' ').nth(4).filter(|_| rest.starts_with("cgroup")) {
            collect_cgroups(Path::new(point), id, false, &mut found);
        }
    }
    found
}

fn collect_cgroups(dir: &Path, id: &str, inside: bool, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let ours = inside || entry.file_name().to_string_lossy().contains(id);
            if ours {
                found.push(entry.path());
            }
            collect_cgroups(&entry.path(), id, ours, found);
        }
    }
}

/// A line of `iptables-save` that is the node's.
#[derive(Debug)]
pub(crate) struct Rule {
    /// `iptables` or `ip6tables`.
    pub(crate) program: &'static str,
    pub(crate) table: String,
    /// `-A ...` for rules, `:NAME ...` for chains.
    pub(crate) text: String,
}

/// Rules that name the node or its subnet, and the chains that they are in or lead to. Others' chains may be in
/// creation, so they are left alone.
pub(crate) fn rules(scratch: &Scratch) -> Vec<Rule> {
    ["iptables", "ip6tables"].into_iter().flat_map(|program| save(program, scratch)).collect()
}

fn save(program: &'static str, scratch: &Scratch) -> Vec<Rule> {
    let Ok(output) = Command::new(format!("{program}-save")).output() else { return Vec::new() };
    select(program, &String::from_utf8_lossy(&output.stdout), scratch.id(), &scratch.subnet_prefix())
}

fn select(program: &'static str, text: &str, id: &str, subnet: &str) -> Vec<Rule> {
    let mut found = Vec::new();
    for section in text.split("*").skip(1) {
        let table = section.lines().next().unwrap_or_default().to_owned();
        let rules = || section.lines().filter(|line| line.starts_with("-A "));
        let ours: Vec<&str> = rules().filter(|line| line.contains(id) || line.contains(subnet)).collect();
        let chains: BTreeSet<&str> =
            ours.iter().flat_map(|line| line.split(' ')).filter(|word| is_container_chain(word)).collect();
        let mut push = |text: String| found.push(Rule { program, table: table.clone(), text });
        rules()
            .filter(|line| ours.contains(line) || line.split(' ').nth(1).is_some_and(|c| chains.contains(c)))
            .for_each(|line| push(line.to_owned()));
        chains.iter().for_each(|name| push(format!(":{name}")));
    }
    found
}

/// `CNI-<24 hex>`, `CNI-DN-<hex>`: chains that the bridge and portmap plugins make per container.
fn is_container_chain(word: &str) -> bool {
    let tail = word
        .strip_prefix("CNI-")
        .map(|rest| rest.strip_prefix("DN-").or(rest.strip_prefix("SN-")).unwrap_or(rest));
    tail.is_some_and(|tail| tail.len() >= 16 && tail.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"*nat
:POSTROUTING ACCEPT [0:0]
:CNI-0123456789abcdef01234567 - [0:0]
:CNI-aaaaaaaaaaaaaaaaaaaaaaaa - [0:0]
:CNI-bbbbbbbbbbbbbbbbbbbbbbbb - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
-A POSTROUTING -s 10.88.7.2/32 -m comment --comment "name: \"podw1\" id: \"x\"" -j CNI-0123456789abcdef01234567
-A POSTROUTING -s 10.90.7.2/32 -m comment --comment "name: \"other\" id: \"y\"" -j CNI-aaaaaaaaaaaaaaaaaaaaaaaa
-A CNI-0123456789abcdef01234567 ! -d 224.0.0.0/4 -j MASQUERADE
COMMIT
"#;

    #[test]
    fn rules_are_told_apart_by_network() {
        let texts: Vec<String> =
            select("iptables", SAVED, "podw1", "10.88.7.").into_iter().map(|r| r.text).collect();
        assert_eq!(texts.len(), 3, "{texts:?}");
        assert!(texts[0].starts_with("-A POSTROUTING -s 10.88.7.2"));
        assert!(texts[1].starts_with("-A CNI-0123456789abcdef01234567"));
        assert_eq!(texts[2], ":CNI-0123456789abcdef01234567");
    }

    #[test]
    fn differences_are_counted_not_only_named() {
        let ledger = |processes: &[&str]| Ledger {
            processes: processes.iter().map(|p| (*p).to_owned()).collect(),
            ..Ledger::default()
        };
        assert_eq!(ledger(&["a"]).difference(&ledger(&["a", "a"])), ["+ process: a"]);
        assert_eq!(ledger(&["a", "b"]).difference(&ledger(&["b"])), ["- process: a"]);
        assert_same(&ledger(&["a"]), &ledger(&["a"]));
    }

    #[test]
    fn a_process_is_found_by_the_directory_it_names() {
        let scratch = Scratch::new().unwrap();
        let empty = Ledger::of(&scratch);
        assert!(empty.is_empty(), "{empty}");
        let pipe = scratch.root().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let mut child = Command::new("cat").arg(&pipe).spawn().unwrap();
        // The child may not have called execve yet.
        let found = crate::wait::wait_for("cat is seen", std::time::Duration::from_secs(5), || {
            let ledger = Ledger::of(&scratch);
            ledger.processes.iter().any(|p| p.starts_with("cat ")).then_some(ledger)
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.unwrap().processes.len(), 1);
    }
}
