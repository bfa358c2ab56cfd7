//! Profiles of the node: files in the OCI runtime's form, or in Docker's, whose rules may have conditions on
//! capabilities, machine and kernel.
//!
//! Owns the meaning of both. Every field is honoured or refused by name: a rule whose condition was overlooked would
//! apply where it should not, and a profile would be weaker than it reads.

use super::super::caps::{Cap, CapSet};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use serde::Deserialize;
use std::path::PathBuf;

/// Arguments of a system call.
const ARGUMENTS: usize = 6;

/// What conditions call architectures: Go's names, and those of Docker's and Podman's profiles for their 32-bit halves.
const ARCHES: [&str; 26] = [
    "386",
    "amd64",
    "arm",
    "arm64",
    "loong64",
    "m68k",
    "mips",
    "mips64",
    "mips64le",
    "mips64n32",
    "mips64p32",
    "mipsel",
    "mipsel64",
    "mipsel64n32",
    "mipsle",
    "parisc",
    "parisc64",
    "ppc",
    "ppc64",
    "ppc64le",
    "riscv64",
    "s390",
    "s390x",
    "sh",
    "x32",
    "x86",
];

/// Subjects of conditions, apart from capabilities.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// As `std::env::consts::ARCH` has it.
    pub arch: &'static str,
    /// Major and minor number of the kernel.
    pub kernel: (u32, u32),
}

impl Machine {
    /// Go's name of the architecture, which Docker's conditions have, and libseccomp's, which everything else has.
    fn names(self) -> Option<(&'static str, Arch)> {
        Some(match self.arch {
            "x86_64" => ("amd64", Arch::ScmpArchX86_64),
            "aarch64" => ("arm64", Arch::ScmpArchAarch64),
            "riscv64" => ("riscv64", Arch::ScmpArchRiscv64),
            "powerpc64" => ("ppc64le", Arch::ScmpArchPpc64le),
            "s390x" => ("s390x", Arch::ScmpArchS390x),
            _ => return None,
        })
    }
}

/// A profile that was found good; which of its rules apply is known once a container's capabilities are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeProfile {
    /// Without rules.
    frame: LinuxSeccomp,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    /// All of these are needed.
    with: Vec<Cap>,
    /// None of these.
    without: Vec<Cap>,
    call: LinuxSyscall,
}

impl NodeProfile {
    /// The profile of a container whose bounding set is `capabilities`.
    #[must_use]
    pub fn for_container(&self, capabilities: CapSet) -> LinuxSeccomp {
        let applies = |rule: &&Rule| {
            rule.with.iter().all(|cap| capabilities.contains(*cap))
                && !rule.without.iter().any(|cap| capabilities.contains(*cap))
        };
        let mut profile = self.frame.clone();
        let rules = self.rules.iter().filter(applies).map(|rule| rule.call.clone()).collect();
        profile.set_syscalls(Some(rules));
        profile
    }
}

/// Why a profile is none.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Not JSON of this form; names a field that is unknown.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A known but unsupported field.
    #[error("{field}: {problem}")]
    Field {
        /// Its path.
        field: String,
        /// The fault.
        problem: String,
    },
}

fn refuse<T>(field: impl Into<String>, problem: impl Into<String>) -> Result<T, ProfileError> {
    Err(ProfileError::Field { field: field.into(), problem: problem.into() })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Text {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<Arch>>,
    arch_map: Option<Vec<ArchMap>>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<PathBuf>,
    listener_metadata: Option<String>,
    syscalls: Option<Vec<Call>>,
}

/// Architectures of a filter, by machine.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchMap {
    architecture: Arch,
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Call {
    /// Docker's older form of `names`.
    name: Option<String>,
    names: Option<Vec<String>>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<Argument>>,
    #[serde(rename = "comment")]
    _comment: Option<String>,
    includes: Option<Condition>,
    excludes: Option<Condition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Argument {
    index: usize,
    value: u64,
    value_two: Option<u64>,
    op: LinuxSeccompOperator,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// Reads a profile.
///
/// # Errors
/// Names the field that is unknown, or cannot be done.
pub(super) fn parse(text: &[u8], machine: Machine) -> Result<NodeProfile, ProfileError> {
    let text: Text = serde_json::from_slice(text)?;
    let mut frame = LinuxSeccomp::default();
    frame
        .set_default_action(text.default_action)
        .set_default_errno_ret(text.default_errno_ret)
        .set_architectures(architectures(text.architectures, text.arch_map, machine)?)
        .set_flags(text.flags)
        .set_listener_path(text.listener_path)
        .set_listener_metadata(text.listener_metadata);
    let mut rules = Vec::new();
    for (number, call) in text.syscalls.unwrap_or_default().into_iter().enumerate() {
        rules.extend(rule(&format!("syscalls[{number}]"), call, machine)?);
    }
    Ok(NodeProfile { frame, rules })
}

fn architectures(
    plain: Option<Vec<Arch>>,
    map: Option<Vec<ArchMap>>,
    machine: Machine,
) -> Result<Option<Vec<Arch>>, ProfileError> {
    let plain = plain.filter(|list| !list.is_empty());
    let Some(map) = map.filter(|map| !map.is_empty()) else { return Ok(plain) };
    if plain.is_some() {
        return refuse("archMap", "stands beside architectures; one of them has to go");
    }
    // A machine that is not listed has a filter for its own calls alone; the kernel's filter refuses others.
    let native = machine.names().map(|(_, arch)| arch);
    let entry = map.into_iter().find(|entry| Some(entry.architecture) == native);
    Ok(entry.map(|entry| {
        let mut all = vec![entry.architecture];
        all.extend(entry.sub_architectures.unwrap_or_default());
        all
    }))
}

/// None: it is not for this machine or kernel.
fn rule(field: &str, call: Call, machine: Machine) -> Result<Option<Rule>, ProfileError> {
    let at = |name: &str| format!("{field}.{name}");
    let names = match (call.name.filter(|name| !name.is_empty()), call.names.unwrap_or_default()) {
        (Some(_), names) if !names.is_empty() => {
            return refuse(at("name"), "stands beside names; one of them has to go");
        }
        (Some(name), _) => vec![name],
        (None, names) => names,
    };
    if names.is_empty() || names.iter().any(String::is_empty) {
        return refuse(at("names"), "names no system call");
    }
    let args = call.args.filter(|args| !args.is_empty());
    let args = args.map(|args| args.into_iter().map(|arg| argument(&at("args"), &arg)).collect());
    let args: Option<Vec<LinuxSeccompArg>> = args.transpose()?;
    let (includes, excludes) = (call.includes.unwrap_or_default(), call.excludes.unwrap_or_default());
    let (include, exclude) = (at("includes"), at("excludes"));
    // Parses all conditions, even if one decides already: a profile is valid or not, whatever the machine.
    let with = capabilities(&include, includes.caps.unwrap_or_default())?;
    let without = capabilities(&exclude, excludes.caps.unwrap_or_default())?;
    let oldest = min_kernel(&include, includes.min_kernel.as_deref())?;
    let too_old = oldest.is_some_and(|version| machine.kernel < version);
    let newest = min_kernel(&exclude, excludes.min_kernel.as_deref())?;
    let too_new = newest.is_some_and(|version| machine.kernel >= version);
    let here = |arches: &[&str]| machine.names().is_some_and(|(name, _)| arches.contains(&name));
    let included = includes.arches.filter(|arches| !arches.is_empty());
    let included = included.map(|arches| arches_of(&include, &arches).map(|arches| here(&arches)));
    let included = included.transpose()?.unwrap_or(true);
    let excluded = here(&arches_of(&exclude, &excludes.arches.unwrap_or_default())?);
    if !included || excluded || too_old || too_new {
        return Ok(None);
    }
    let mut made = LinuxSyscall::default();
    made.set_names(names).set_action(call.action).set_errno_ret(call.errno_ret).set_args(args);
    Ok(Some(Rule { with, without, call: made }))
}

fn argument(field: &str, arg: &Argument) -> Result<LinuxSeccompArg, ProfileError> {
    if arg.index >= ARGUMENTS {
        return refuse(field, format!("index {} is not below {ARGUMENTS}", arg.index));
    }
    let builder = LinuxSeccompArgBuilder::default().index(arg.index).value(arg.value).op(arg.op);
    let builder = match arg.value_two {
        Some(value) => builder.value_two(value),
        None => builder,
    };
    builder.build().or_else(|error| refuse(field, error.to_string()))
}

fn capabilities(field: &str, names: Vec<String>) -> Result<Vec<Cap>, ProfileError> {
    let known = |name: String| match Cap::parse(&name) {
        Some(cap) => Ok(cap),
        None => refuse(format!("{field}.caps"), format!("{name:?} is no capability of Linux")),
    };
    names.into_iter().map(known).collect()
}

/// Go's names of architectures in a condition. A name that nobody has would make a rule that never applies.
fn arches_of<'a>(field: &str, names: &'a [String]) -> Result<Vec<&'a str>, ProfileError> {
    let known = |name: &'a String| match name.as_str() {
        // As `uname -m` has it.
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        "i386" | "i686" => Ok("386"),
        "loongarch64" => Ok("loong64"),
        name if ARCHES.contains(&name) => Ok(name),
        name => refuse(
            format!("{field}.arches"),
            format!("{name:?} is no architecture: Go's names are meant, such as \"amd64\""),
        ),
    };
    names.iter().map(known).collect()
}

/// `4.8`; None: no condition.
fn min_kernel(field: &str, text: Option<&str>) -> Result<Option<(u32, u32)>, ProfileError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let parsed = text
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?)));
    match parsed {
        Some(version) => Ok(Some(version)),
        None => refuse(format!("{field}.minKernel"), format!("{text:?} is not like \"4.8\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const HERE: Machine = Machine { arch: "x86_64", kernel: (5, 10) };

    fn good(profile: &Value) -> NodeProfile {
        parse(profile.to_string().as_bytes(), HERE).unwrap()
    }

    /// Names that are allowed for these capabilities.
    fn allowed(profile: &NodeProfile, caps: CapSet) -> Vec<String> {
        let profile = profile.for_container(caps);
        profile.syscalls().iter().flatten().flat_map(|call| call.names().clone()).collect()
    }

    #[test]
    fn conditions_of_dockers_format_are_honoured() {
        let allow = |name: &str, includes: Value, excludes: Value| {
            json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "why",
                "includes": includes, "excludes": excludes})
        };
        let profile = good(&json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
            "archMap": [
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
            ],
            "syscalls": [
                {"name": "read", "action": "SCMP_ACT_ALLOW"},
                allow("mount", json!({"caps": ["CAP_SYS_ADMIN"]}), json!({})),
                allow("clone", json!({}), json!({"caps": ["CAP_SYS_ADMIN"], "arches": ["s390x"]})),
                allow("both", json!({"caps": ["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"]}), json!({})),
                allow("s390_runtime_instr", json!({"arches": ["s390x"]}), json!({})),
                allow("arch_prctl", json!({"arches": ["amd64", "x32"]}), json!({})),
                allow("not_here", json!({}), json!({"arches": ["amd64"]})),
                allow("nor_here", json!({}), json!({"arches": ["x86_64"]})),
                allow("spelled", json!({"arches": ["x86_64"]}), json!({"arches": ["aarch64", "riscv64"]})),
                allow("ptrace", json!({"minKernel": "4.8"}), json!({})),
                allow("later", json!({"minKernel": "5.11"}), json!({})),
                allow("replaced", json!({}), json!({"minKernel": "5.10"})),
            ],
        }));
        let always = ["read", "clone", "arch_prctl", "spelled", "ptrace"];
        assert_eq!(allowed(&profile, CapSet::EMPTY), always);
        let admin = CapSet::EMPTY.with(Cap::SYS_ADMIN);
        assert_eq!(allowed(&profile, admin), ["read", "mount", "arch_prctl", "spelled", "ptrace"]);
        let found = profile.for_container(CapSet::EMPTY);
        let arches = [Arch::ScmpArchX86_64, Arch::ScmpArchX86];
        assert_eq!(found.architectures().as_deref(), Some(&arches[..]));
    }

    #[test]
    fn every_field_of_the_runtimes_format_is_carried_through() {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "listenerPath": "/run/agent.sock", "listenerMetadata": "words",
            "syscalls": [{"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13, "args": [
                {"index": 5, "value": u64::MAX, "valueTwo": 7, "op": "SCMP_CMP_MASKED_EQ"},
            ]}],
        });
        let found = good(&profile).for_container(CapSet::ALL);
        assert_eq!(serde_json::to_value(found).unwrap(), profile);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_its_name() {
        let call = |change: Value| {
            let mut call = json!({"names": ["read"], "action": "SCMP_ACT_ALLOW"});
            call.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [call]})
        };
        for (profile, word) in [
            (json!({"defaultAction": "SCMP_ACT_ERRNO", "sycalls": []}), "sycalls"),
            (json!({"defaultAction": "SCMP_ACT_NOTHING"}), "SCMP_ACT_NOTHING"),
            (json!({"defaultAction": "SCMP_ACT_ERRNO", "flags": ["SECCOMP_FILTER_FLAG_X"]}), "FLAG_X"),
            (
                json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"],
                    "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]}),
                "archMap",
            ),
            (call(json!({"include": {}})), "include"),
            (call(json!({"errno": "EPERM"})), "errno"),
            (call(json!({"includes": {"caps": ["CAP_NOTHING"]}})), "syscalls[0].includes.caps"),
            (call(json!({"excludes": {"caps": ["CAP_NOTHING"]}})), "syscalls[0].excludes.caps"),
            (call(json!({"includes": {"minKernel": "new"}})), "syscalls[0].includes.minKernel"),
            (call(json!({"includes": {"maxKernel": "4.8"}})), "maxKernel"),
            (call(json!({"includes": {"arches": ["amd65"]}})), "syscalls[0].includes.arches"),
            (call(json!({"excludes": {"arches": ["SCMP_ARCH_X86"]}})), "syscalls[0].excludes.arches"),
            (call(json!({"name": "write"})), "syscalls[0].name"),
            (call(json!({"names": []})), "syscalls[0].names"),
            (call(json!({"args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]})), "syscalls[0].args"),
            (call(json!({"args": [{"index": 0, "value": 0, "op": "SCMP_CMP_ALIKE"}]})), "ALIKE"),
            (call(json!({"args": [{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}]})), "-1"),
        ] {
            let refused = parse(profile.to_string().as_bytes(), HERE).unwrap_err().to_string();
            assert!(refused.contains(word), "{word}: {refused}");
        }
    }
}
