//! Whether a checkpoint's processes have no more rights than their new container. CRIU restores the rights that they
//! had, whatever the new container's configuration says, so a request for less must be refused.

use super::source::Source;
use crate::images::Images;
use crate::model::Restore;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::layout::SPEC_DUMP;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// Sets of capabilities in an OCI configuration. The bounding set holds all that a process may ever get.
const SETS: [&str; 5] = ["bounding", "effective", "permitted", "inheritable", "ambient"];
/// Namespaces of the container or its pod. For a missing kind it is in the host's.
const NAMESPACES: [&str; 4] = ["ipc", "network", "pid", "uts"];
/// Confinement by a name or a filter: only its existence is compared, since peers have others of the same purpose.
const CONFINED: [(&str, &str); 3] = [
    ("/linux/seccomp", "a seccomp filter"),
    ("/process/apparmorProfile", "an AppArmor profile"),
    ("/process/selinuxLabel", "an SELinux label"),
];
/// What processes may not do.
const FORBIDDEN: [(&str, &str); 2] =
    [("/process/noNewPrivileges", "no_new_privs"), ("/root/readonly", "a read-only root")];

/// Refuses a new container with this OCI configuration whose processes would have more rights than it allows. Blocking.
pub(in crate::sandbox) fn check(from: &Restore, config: &Value, store: &Images) -> Result<(), SandboxError> {
    let source = Source::open(from, store)?;
    let dumped: Value = source.json(Path::new(SPEC_DUMP))?;
    match elsewhere(&dumped, config).or_else(|| excess(&dumped, config)) {
        Some(why) => Err(source.mismatch(format!("config.linux.security_context: {why}"))),
        None => Ok(()),
    }
}

/// A namespace that CRIU would not create as requested.
fn elsewhere(dumped: &Value, asked: &Value) -> Option<String> {
    // The PID namespace may be the container's own or shared; the others are always the pod's.
    let of = |config: &Value, kind: &str| {
        let mut all = config.pointer("/linux/namespaces").and_then(Value::as_array).into_iter().flatten();
        let found = all.rfind(|n| n["type"] == kind);
        found.map(|n| kind == "pid" && n["path"].as_str().is_some_and(|path| !path.is_empty()))
    };
    let kind = NAMESPACES.iter().find(|kind| of(dumped, kind) != of(asked, kind))?;
    let whose = |shared: Option<bool>| match (shared, *kind) {
        (None, _) => "the host's",
        (Some(false), "pid") => "its own",
        (Some(_), "pid") => "a shared one",
        (Some(_), _) => "its pod's",
    };
    let (had, wanted) = (whose(of(dumped, kind)), whose(of(asked, kind)));
    Some(format!("namespace_options: the {kind} namespace was {had}, and is to be {wanted}"))
}

/// Rights of the checkpointed container beyond the request.
fn excess(dumped: &Value, asked: &Value) -> Option<String> {
    let user = |config: &Value, field| config.pointer(field).and_then(Value::as_u64).unwrap_or_default();
    for (field, name) in [("/process/user/uid", "uid"), ("/process/user/gid", "gid")] {
        let (had, wanted) = (user(dumped, field), user(asked, field));
        if had != wanted {
            return Some(format!(
                "the checkpointed container ran as {name} {had}, this one is to run as {wanted}"
            ));
        }
    }
    let groups = strings(dumped, "/process/user/additionalGids");
    let more =
        groups.difference(&strings(asked, "/process/user/additionalGids")).cloned().collect::<Vec<_>>();
    if !more.is_empty() {
        return Some(format!("the checkpointed container had the groups {}, too", more.join(", ")));
    }
    for set in SETS {
        let field = format!("/process/capabilities/{set}");
        let more = strings(dumped, &field).difference(&strings(asked, &field)).cloned().collect::<Vec<_>>();
        if !more.is_empty() {
            return Some(format!(
                "the checkpointed container had the capabilities {} ({set}), too",
                more.join(", ")
            ));
        }
    }
    let has = |config: &Value, field: &str| match config.pointer(field) {
        None | Some(Value::Null) => false,
        Some(Value::String(name)) => !name.is_empty() && name != "unconfined",
        Some(_) => true,
    };
    let forbids = |config: &Value, field| config.pointer(field).and_then(Value::as_bool).unwrap_or_default();
    let confined = CONFINED.iter().find(|(field, _)| has(asked, field) && !has(dumped, field));
    let forbidden = FORBIDDEN.iter().find(|(field, _)| forbids(asked, field) && !forbids(dumped, field));
    let (_, name) = confined.or(forbidden)?;
    Some(format!("{name} is requested, and the checkpointed container had none"))
}

/// The elements of a list, as text; empty if there is none.
fn strings(config: &Value, field: &str) -> BTreeSet<String> {
    let elements = config.pointer(field).and_then(Value::as_array).into_iter().flatten();
    elements.map(|e| e.as_str().map_or_else(|| e.to_string(), str::to_owned)).collect()
}

#[cfg(any(test, fuzzing))]
pub(in crate::sandbox) fn fuzz(data: &[u8]) {
    let Ok(dumped) = serde_json::from_slice::<Value>(data) else { return };
    let worse = |asked: &Value| elsewhere(&dumped, asked).or_else(|| excess(&dumped, asked));
    let _ = worse(&serde_json::json!({"process": {"user": {"uid": 0, "gid": 0}, "noNewPrivileges": true}}));
    assert_eq!(worse(&dumped), None);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn namespaces_must_be_of_the_same_kind() {
        let config = |namespaces: &[(&str, &str)]| {
            let list: Vec<_> =
                namespaces.iter().map(|(kind, path)| json!({"type": kind, "path": path})).collect();
            json!({"linux": {"namespaces": list}})
        };
        let own = config(&[("mount", ""), ("pid", ""), ("network", "/a"), ("ipc", "/a"), ("uts", "/a")]);
        let other_pod = config(&[("pid", ""), ("network", "/b"), ("ipc", "/b"), ("uts", "/b")]);
        assert_eq!(elsewhere(&own, &other_pod), None);
        let shared = config(&[("pid", "/b"), ("network", "/b"), ("ipc", "/b"), ("uts", "/b")]);
        assert!(
            elsewhere(&own, &shared)
                .unwrap()
                .contains("pid namespace was its own, and is to be a shared one")
        );
        let of_host = config(&[("pid", ""), ("ipc", "/b"), ("uts", "/b")]);
        assert!(
            elsewhere(&of_host, &own)
                .unwrap()
                .contains("network namespace was the host's, and is to be its pod's")
        );
        assert!(elsewhere(&own, &of_host).unwrap().contains("is to be the host's"));
    }

    #[test]
    fn less_than_the_checkpoint_had_is_refused_and_more_is_not() {
        let all = json!({
            "root": {"readonly": true},
            "process": {
                "user": {"uid": 5, "gid": 6, "additionalGids": [6, 7]},
                "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"]},
                "noNewPrivileges": true,
                "apparmorProfile": "p",
            },
            "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}},
        });
        assert_eq!(excess(&all, &all), None);
        let changed = |field: &str, value: Value| {
            let mut config = all.clone();
            *config.pointer_mut(field).unwrap() = value;
            config
        };
        let more = changed("/process/capabilities/bounding", json!(["CAP_CHOWN", "CAP_SYS_ADMIN"]));
        let no_seccomp = changed("/linux/seccomp", Value::Null);
        for (looser, word) in [
            (more, "CAP_SYS_ADMIN (bounding)"),
            (no_seccomp, "a seccomp filter"),
            (changed("/process/apparmorProfile", json!("unconfined")), "an AppArmor profile"),
            (changed("/process/noNewPrivileges", json!(false)), "no_new_privs"),
            (changed("/root/readonly", json!(false)), "a read-only root"),
            (changed("/process/user/additionalGids", json!([6, 7, 8])), "groups 8"),
        ] {
            assert!(excess(&looser, &all).unwrap().contains(word), "{word}");
            assert_eq!(excess(&all, &looser), None, "{word}");
        }
        let root = changed("/process/user/uid", json!(0));
        assert!(excess(&root, &all).unwrap().contains("uid 0"));
        assert!(excess(&all, &root).unwrap().contains("uid 5"));
        // A missing one grants nothing.
        assert!(excess(&json!({}), &all).is_some());
        assert_eq!(excess(&json!({"process": {"user": {"uid": 0}}}), &json!({})), None);
    }
}
