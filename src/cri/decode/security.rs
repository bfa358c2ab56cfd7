//! Security contexts: namespaces, profiles, users.

use super::mounts::id_mappings;
use super::{Checked, container_path, invalid, shown};
use crate::cri::proto as pb;
use crate::host::security::Cap;
use crate::host::security::selinux::is_level;
use crate::model::{
    Capabilities, ContainerId, ContainerSecurity, GroupsPolicy, IdMapping, NamespaceMode, Namespaces,
    Profile, RunAs, SelinuxOptions, UserNamespace,
};
use std::path::PathBuf;

/// Linux's NGROUPS_MAX.
const MAX_GROUPS: usize = 65536;

pub(super) fn namespaces(options: Option<pb::NamespaceOption>) -> Checked<Namespaces> {
    let options = options.unwrap_or_default();
    Ok(Namespaces {
        network: mode("namespace_options.network", options.network, "")?,
        pid: mode("namespace_options.pid", options.pid, &options.target_id)?,
        ipc: mode("namespace_options.ipc", options.ipc, "")?,
        user: user_namespace(options.userns_options)?,
    })
}

fn mode(field: &'static str, mode: i32, target: &str) -> Checked<NamespaceMode> {
    Ok(match pb::NamespaceMode::try_from(mode) {
        Ok(pb::NamespaceMode::Pod) => NamespaceMode::Pod,
        Ok(pb::NamespaceMode::Container) => NamespaceMode::Container,
        Ok(pb::NamespaceMode::Node) => NamespaceMode::Node,
        Ok(pb::NamespaceMode::Target) => match ContainerId::parse(target) {
            Ok(id) => NamespaceMode::Target(id),
            Err(error) => return invalid("namespace_options.target_id", error.to_string()),
        },
        Err(_) => return invalid(field, format!("mode {mode} is unknown")),
    })
}

const USER_NAMESPACE: &str = "config.linux.security_context.namespace_options.userns_options";

fn user_namespace(options: Option<pb::UserNamespace>) -> Checked<Option<UserNamespace>> {
    let Some(options) = options else { return Ok(None) };
    match pb::NamespaceMode::try_from(options.mode) {
        Ok(pb::NamespaceMode::Node) => Ok(None),
        Ok(pb::NamespaceMode::Pod) => Ok(Some(UserNamespace {
            uids: one_range("uids", &options.uids)?,
            gids: one_range("gids", &options.gids)?,
        })),
        Ok(pb::NamespaceMode::Container | pb::NamespaceMode::Target) | Err(_) => {
            invalid(USER_NAMESPACE, "only the modes POD and NODE are supported")
        }
    }
}

/// One range from id 0 on, as in containerd, CRI-O and the kubelet.
fn one_range(which: &str, mappings: &[pb::IdMapping]) -> Checked<Vec<IdMapping>> {
    let [only] = mappings else {
        return invalid(
            USER_NAMESPACE,
            format!("{which} has {} mappings, where one is needed", mappings.len()),
        );
    };
    if only.container_id != 0 {
        return invalid(
            USER_NAMESPACE,
            format!("{which} starts at id {} of the container, not at 0", only.container_id),
        );
    }
    id_mappings(USER_NAMESPACE, mappings)
}

/// A pod with its own user namespace cannot use those of the host: it could mount nothing of them.
pub(super) fn check_user_namespace(namespaces: &Namespaces) -> Checked<()> {
    for (name, mode) in [("pid", &namespaces.pid), ("ipc", &namespaces.ipc)] {
        if namespaces.user.is_some() && *mode == NamespaceMode::Node {
            return invalid(USER_NAMESPACE, format!("mode POD excludes mode NODE of {name}"));
        }
    }
    Ok(())
}

/// Containers share the user namespace of their sandbox.
pub(super) fn check_same_user_namespace(pod: &Namespaces, container: &Namespaces) -> Checked<()> {
    if pod.user == container.user {
        return check_user_namespace(container);
    }
    let text = |user: &Option<UserNamespace>| {
        let ranges = |ranges: &[IdMapping]| {
            let each = ranges.iter().map(|r| format!("{}:{}:{}", r.container_id, r.host_id, r.length));
            each.collect::<Vec<_>>().join(",")
        };
        user.as_ref()
            .map_or("none".to_owned(), |u| format!("uids {} gids {}", ranges(&u.uids), ranges(&u.gids)))
    };
    let (of_pod, own) = (text(&pod.user), text(&container.user));
    invalid(USER_NAMESPACE, format!("differs from the pod sandbox's: {own} instead of {of_pod}"))
}

pub(super) fn seccomp(
    field: &'static str,
    profile: Option<pb::SecurityProfile>,
    old_path: &str,
) -> Checked<Profile> {
    if let Some(profile) = profile {
        return security_profile(field, profile);
    }
    // The field before 1.19: `localhost/<path>`, `runtime/default`, `docker/default`, `unconfined`.
    Ok(match old_path {
        "" | "unconfined" => Profile::Unconfined,
        "runtime/default" | "docker/default" => Profile::RuntimeDefault,
        path => match path.strip_prefix("localhost/") {
            Some(path) => Profile::Localhost(path.to_owned()),
            None => return invalid(field, format!("profile {path:?} is of no known kind")),
        },
    })
}

fn security_profile(field: &'static str, profile: pb::SecurityProfile) -> Checked<Profile> {
    use pb::security_profile::ProfileType;
    if profile.localhost_ref.contains(|c: char| c.is_ascii_control()) {
        return invalid(field, "localhost_ref has a control character");
    }
    let kind = ProfileType::try_from(profile.profile_type);
    if matches!(kind, Ok(ProfileType::RuntimeDefault | ProfileType::Unconfined))
        && !profile.localhost_ref.is_empty()
    {
        return invalid(field, "localhost_ref is set, but the profile type is not Localhost");
    }
    Ok(match kind {
        Ok(ProfileType::RuntimeDefault) => Profile::RuntimeDefault,
        Ok(ProfileType::Unconfined) => Profile::Unconfined,
        Ok(ProfileType::Localhost) if matches!(profile.localhost_ref.as_str(), "" | "localhost/") => {
            return invalid(field, "a Localhost profile needs localhost_ref");
        }
        Ok(ProfileType::Localhost) => {
            let reference = profile.localhost_ref;
            Profile::Localhost(reference.strip_prefix("localhost/").unwrap_or(&reference).to_owned())
        }
        Err(_) => return invalid(field, format!("profile type {} is unknown", profile.profile_type)),
    })
}

pub(super) fn selinux(
    field: &'static str,
    options: Option<pb::SeLinuxOption>,
) -> Checked<Option<SelinuxOptions>> {
    let Some(options) = options else { return Ok(None) };
    // A label is `user:role:type:level`; only the level may contain colons.
    let broken = |part: &str| part.contains(|c: char| c.is_ascii_control() || c == ' ');
    let parts = [&options.user, &options.role, &options.r#type];
    if let Some(part) = parts.into_iter().find(|part| broken(part) || part.contains(':')) {
        return invalid(field, format!("{:?} is no part of a label", shown(part)));
    }
    if !options.level.is_empty() && !is_level(&options.level) {
        return invalid(field, format!("{:?} is no level, such as \"s0:c1,c2\"", shown(&options.level)));
    }
    Ok(Some(SelinuxOptions {
        user: options.user,
        role: options.role,
        kind: options.r#type,
        level: options.level,
    }))
}

fn uid(field: &'static str, value: Option<pb::Int64Value>) -> Checked<Option<u32>> {
    value.map(|v| one_uid(field, v.value)).transpose()
}

fn one_uid(field: &'static str, value: i64) -> Checked<u32> {
    // 2^32-1 is the kernel's "no id".
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => invalid(field, format!("{value} is not in 0 to 4294967294")),
    }
}

pub(super) fn container_security(context: pb::LinuxContainerSecurityContext) -> Checked<ContainerSecurity> {
    let username = context.run_as_username;
    let run_as = RunAs {
        uid: uid("config.linux.security_context.run_as_user", context.run_as_user)?,
        gid: uid("config.linux.security_context.run_as_group", context.run_as_group)?,
        username: Some(username).filter(|u| !u.is_empty()),
        supplemental_groups: context
            .supplemental_groups
            .into_iter()
            .map(|g| one_uid("config.linux.security_context.supplemental_groups", g))
            .collect::<Checked<_>>()?,
        groups_policy: match pb::SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy) {
            Ok(pb::SupplementalGroupsPolicy::Merge) => GroupsPolicy::Merge,
            Ok(pb::SupplementalGroupsPolicy::Strict) => GroupsPolicy::Strict,
            Err(_) => {
                return invalid("config.linux.security_context.supplemental_groups_policy", "is unknown");
            }
        },
    };
    if run_as.gid.is_some() && run_as.uid.is_none() && run_as.username.is_none() {
        return invalid(
            "config.linux.security_context.run_as_group",
            "needs run_as_user or run_as_username beside it",
        );
    }
    if run_as.uid.is_some() && run_as.username.is_some() {
        return invalid(
            "config.linux.security_context.run_as_username",
            "run_as_user and run_as_username exclude each other",
        );
    }
    if run_as
        .username
        .iter()
        .any(|name| name.contains(|c: char| c == ':' || c == '/' || c.is_ascii_control()))
    {
        return invalid(
            "config.linux.security_context.run_as_username",
            "has a colon, a slash or a control character",
        );
    }
    if run_as.supplemental_groups.len() > MAX_GROUPS {
        return invalid(
            "config.linux.security_context.supplemental_groups",
            format!("are more than {MAX_GROUPS}"),
        );
    }
    let capabilities = context.capabilities.unwrap_or_default();
    for name in capabilities
        .add_capabilities
        .iter()
        .chain(&capabilities.drop_capabilities)
        .chain(&capabilities.add_ambient_capabilities)
    {
        if Cap::parse(name).is_none() && !name.eq_ignore_ascii_case("ALL") {
            return invalid(
                "config.linux.security_context.capabilities",
                format!("{:?} is no capability of Linux", shown(name)),
            );
        }
    }
    #[allow(deprecated)]
    let (old_seccomp, old_apparmor) = (context.seccomp_profile_path, context.apparmor_profile);
    Ok(ContainerSecurity {
        privileged: context.privileged,
        namespaces: namespaces(context.namespace_options)?,
        run_as,
        capabilities: Capabilities {
            add: capabilities.add_capabilities,
            drop: capabilities.drop_capabilities,
            add_ambient: capabilities.add_ambient_capabilities,
        },
        readonly_rootfs: context.readonly_rootfs,
        no_new_privs: context.no_new_privs,
        masked_paths: hidden("config.linux.security_context.masked_paths", &context.masked_paths)?,
        readonly_paths: hidden("config.linux.security_context.readonly_paths", &context.readonly_paths)?,
        seccomp: seccomp("config.linux.security_context.seccomp", context.seccomp, &old_seccomp)?,
        apparmor: apparmor(context.apparmor, &old_apparmor)?,
        selinux: selinux("config.linux.security_context.selinux_options", context.selinux_options)?,
    })
}

fn hidden(field: &'static str, paths: &[String]) -> Checked<Vec<PathBuf>> {
    paths.iter().map(|path| container_path(field, path)).collect()
}

fn apparmor(profile: Option<pb::SecurityProfile>, old: &str) -> Checked<Option<Profile>> {
    const FIELD: &str = "config.linux.security_context.apparmor";
    if let Some(profile) = profile {
        return security_profile(FIELD, profile).map(Some);
    }
    Ok(match old {
        "" => None,
        "runtime/default" => Some(Profile::RuntimeDefault),
        "unconfined" => Some(Profile::Unconfined),
        name => match name.strip_prefix("localhost/") {
            Some(name) if !name.is_empty() && !name.contains(|c: char| c.is_ascii_control()) => {
                Some(Profile::Localhost(name.to_owned()))
            }
            Some(_) | None => return invalid(FIELD, format!("profile {name:?} is of no known kind")),
        },
    })
}
