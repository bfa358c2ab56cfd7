//! SELinux: a container's labels, from the requests for it and its pod, and from the policy.

use crate::host::security::selinux::{Contexts, Label, UNCONFINED_TYPE};
use crate::model::{ContainerSecurity, NamespaceMode, SandboxSpec, SelinuxOptions};

/// The labels of a container, or of a pod's own files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelinuxLabels {
    /// Of its processes; None: they keep the daemon's.
    pub process: Option<Label>,
    /// Of its file systems, and of relabelled volumes.
    pub mount: Label,
    /// Whether volumes that request it are relabelled.
    pub relabels: bool,
}

/// The labels of a container; without one, those of the pod's containers by default.
///
/// A container's request overrides its pod's, part by part. A privileged container, and one in the host's PID or IPC
/// namespace, is unconfined unless it names a type, as in CRI-O: the policy keeps confined ones from those namespaces.
#[must_use]
pub fn selinux_labels(
    contexts: &Contexts,
    pod: &SandboxSpec,
    container: Option<&ContainerSecurity>,
) -> SelinuxLabels {
    let options = |options: Option<&SelinuxOptions>| options.cloned().unwrap_or_default();
    let own = options(container.and_then(|container| container.selinux.as_ref()));
    let of_pod = options(pod.security.selinux.as_ref());
    let asked = |own: String, of_pod: String| [own, of_pod].into_iter().find(|part| !part.is_empty());
    let user = asked(own.user, of_pod.user);
    let role = asked(own.role, of_pod.role);
    let kind = asked(own.kind, of_pod.kind);
    let level = asked(own.level, of_pod.level);
    let of_pod = || pod.selinux_level.clone();

    let privileged = container.map_or(pod.security.privileged, |container| container.privileged);
    let pid = container.map_or(&pod.namespaces, |container| &container.namespaces).pid.clone();
    let in_host = pid == NamespaceMode::Node || pod.namespaces.ipc == NamespaceMode::Node;
    let unconfined = kind.is_none() && (privileged || in_host);
    let default = if unconfined { contexts.unconfined.as_ref() } else { Some(&contexts.process) };
    let process = default.map(|default| Label {
        user: user.clone().unwrap_or_else(|| default.user.clone()),
        role: role.unwrap_or_else(|| default.role.clone()),
        kind: kind.clone().unwrap_or_else(|| default.kind.clone()),
        // Categories confine as well.
        level: level
            .clone()
            .or_else(|| if unconfined { None } else { of_pod() })
            .unwrap_or_else(|| default.level.clone()),
    });
    let file = &contexts.file;
    let mount = Label {
        user: user.unwrap_or_else(|| file.user.clone()),
        level: level.or_else(of_pod).unwrap_or_else(|| file.level.clone()),
        ..file.clone()
    };
    // A type that may read everything needs no label on it, and others may depend on the existing one.
    let super_privileged = kind.as_deref() == Some(UNCONFINED_TYPE);
    SelinuxLabels { process, mount, relabels: !(super_privileged || in_host && unconfined) }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, fixture};
    use super::*;

    fn contexts() -> Contexts {
        let label = |text| Label::parse(text).unwrap();
        Contexts {
            process: label("system_u:system_r:container_t:s0"),
            unconfined: Some(label("system_u:system_r:spc_t:s0")),
            file: label("system_u:object_r:container_file_t:s0"),
        }
    }

    fn options(kind: &str, level: &str) -> Option<SelinuxOptions> {
        Some(SelinuxOptions { kind: kind.into(), level: level.into(), ..SelinuxOptions::default() })
    }

    fn texts(labels: &SelinuxLabels) -> (String, String) {
        let process = labels.process.as_ref().map(ToString::to_string).unwrap_or_default();
        (process, labels.mount.to_string())
    }

    #[test]
    fn what_is_asked_comes_before_the_pods_and_that_before_the_policys() {
        let mut f = fixture();
        f.sandbox.selinux_level = Some("s0:c1,c2".into());
        let labels =
            |f: &Fixture| texts(&selinux_labels(&contexts(), &f.sandbox, Some(&f.container.security)));
        let file = |level: &str| format!("system_u:object_r:container_file_t:{level}");
        let process = |kind: &str, level: &str| format!("system_u:system_r:{kind}:{level}");
        assert_eq!(labels(&f), (process("container_t", "s0:c1,c2"), file("s0:c1,c2")));
        f.sandbox.security.selinux = options("pod_t", "");
        assert_eq!(labels(&f), (process("pod_t", "s0:c1,c2"), file("s0:c1,c2")));
        f.container.security.selinux = options("own_t", "");
        assert_eq!(labels(&f), (process("own_t", "s0:c1,c2"), file("s0:c1,c2")));
        f.container.security.selinux = options("", "s0:c7,c8");
        assert_eq!(labels(&f), (process("pod_t", "s0:c7,c8"), file("s0:c7,c8")));
        f.container.security.selinux = Some(SelinuxOptions {
            user: "other_u".into(),
            role: "other_r".into(),
            ..SelinuxOptions::default()
        });
        let expected =
            ("other_u:other_r:pod_t:s0:c1,c2".into(), "other_u:object_r:container_file_t:s0:c1,c2".into());
        assert_eq!(labels(&f), expected);
        // A pod of before SELinux was switched on.
        let mut f = fixture();
        f.sandbox.selinux_level = None;
        assert_eq!(labels(&f), (process("container_t", "s0"), file("s0")));
    }

    #[test]
    fn who_has_the_host_is_not_confined_unless_a_type_is_named() {
        let mut f = fixture();
        f.sandbox.selinux_level = Some("s0:c1,c2".into());
        let labels = |f: &Fixture, contexts: &Contexts| {
            selinux_labels(contexts, &f.sandbox, Some(&f.container.security))
        };
        f.container.security.privileged = true;
        let found = labels(&f, &contexts());
        assert_eq!(found.process.as_ref().unwrap().to_string(), "system_u:system_r:spc_t:s0");
        assert_eq!(found.mount.level, "s0:c1,c2", "others of the pod share its volumes");
        assert!(found.relabels);
        let without = Contexts { unconfined: None, ..contexts() };
        assert_eq!(labels(&f, &without).process, None);
        f.container.security.privileged = false;
        f.container.security.namespaces.pid = NamespaceMode::Node;
        let found = labels(&f, &contexts());
        assert_eq!((found.process.unwrap().kind.as_str(), found.relabels), ("spc_t", false));
        f.container.security.selinux = options("log_t", "");
        let found = labels(&f, &contexts());
        assert_eq!(found.process.unwrap().to_string(), "system_u:system_r:log_t:s0:c1,c2");
        assert!(found.relabels);
        f.container.security.namespaces.pid = NamespaceMode::Pod;
        f.container.security.selinux = options("spc_t", "");
        assert!(!labels(&f, &contexts()).relabels);
    }
}
