//! The chains that the CNI portmap plugin creates once per host and never removes.
//!
//! Owns detecting them and removing them while no host port is in use. Rules of single pods are the ledger's.

use std::process::Command;

/// The plugin's chain names: iptables backend of containernetworking-plugins, `meta/portmap`.
const DNAT: &str = "CNI-HOSTPORT-DNAT";
const CHAINS: [&str; 3] = [DNAT, "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK"];
const PROGRAMS: [&str; 2] = ["iptables", "ip6tables"];

/// Whether one of the chains exists.
pub(crate) fn exist() -> bool {
    PROGRAMS.iter().any(|program| CHAINS.iter().any(|chain| saved(program).contains(&format!(":{chain} "))))
}

/// Removes the chains and the jumps to them, unless a pod's host port is among their rules.
pub(crate) fn remove_unused() {
    for program in PROGRAMS {
        let saved = saved(program);
        if saved.contains(&format!("-A {DNAT} ")) {
            continue;
        }
        for line in
            saved.lines().filter(|line| CHAINS.iter().any(|chain| line.ends_with(&format!("-j {chain}"))))
        {
            if let Some(tail) = line.strip_prefix("-A ") {
                run(Command::new("sh").arg("-c").arg(format!("{program} -w -t nat -D {tail}")));
            }
        }
        for operation in ["-F", "-X"] {
            for chain in CHAINS.iter().filter(|chain| saved.contains(&format!(":{chain} "))) {
                run(Command::new(program).args(["-w", "-t", "nat", operation, chain]));
            }
        }
    }
}

fn saved(program: &str) -> String {
    let output = Command::new(format!("{program}-save")).args(["-t", "nat"]).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
}

fn run(command: &mut Command) {
    // A chain that another tool uses meanwhile cannot be removed, and should not be.
    let _ = command.output();
}
