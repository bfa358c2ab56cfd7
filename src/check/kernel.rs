//! The kernel and its built-in or loaded features.

use super::Finding;
use crate::config::SelinuxMode;
use crate::host::kernel;
use crate::host::security::HostSecurity;
use crate::host::security::selinux::Selinux;
use std::path::Path;

/// The oldest kernel: mount_setattr(2), with which read-only mounts are recursive.
const OLDEST: (u32, u32) = (5, 12);
/// Namespaces that every pod has.
const NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];

pub(super) fn all(selinux: SelinuxMode) -> Vec<Finding> {
    vec![
        release(&kernel::release(), kernel::at_least(OLDEST.0, OLDEST.1)),
        overlay(),
        namespaces(),
        of_setting("user namespaces", "user.max_user_namespaces", user_namespaces),
        of_setting("seccomp", "kernel.seccomp.actions_avail", seccomp),
        of_setting("IP forwarding", "net.ipv4.ip_forward", forwarding),
        of_setting("bridge filtering", "net.bridge.bridge-nf-call-iptables", bridges),
        of_setting("connection tracking", "net.netfilter.nf_conntrack_max", |value| {
            conntrack(value.is_some())
        }),
        rights(HostSecurity::detect()),
        labels(selinux, Selinux::detect().as_ref().map(Labels::of)),
    ]
}

/// Judges a setting, which is None where the kernel has none of that name.
fn of_setting(name: &str, key: &str, judge: impl FnOnce(Option<&str>) -> Finding) -> Finding {
    match kernel::setting(key) {
        Ok(value) => judge(value.as_deref()),
        Err(error) => Finding::unknown(name, key, error),
    }
}

fn release(release: &str, new_enough: bool) -> Finding {
    if new_enough {
        return Finding::ok("kernel", release);
    }
    let (major, minor) = OLDEST;
    let remedy = format!("install a kernel of {major}.{minor} or newer and reboot");
    Finding::fail("kernel", format!("{release} is older than {major}.{minor}"), remedy)
}

/// How to load a module, now and at every boot.
pub(super) fn load(module: &str) -> String {
    if kernel::has_modules() {
        format!("modprobe {module}\necho {module} >/etc/modules-load.d/podwright-{module}.conf")
    } else {
        format!(
            "reboot: /lib/modules has none of the running kernel, so {module} cannot be loaded\n(or use a kernel that has {module} built in)"
        )
    }
}

fn overlay() -> Finding {
    match kernel::knows_file_system("overlay") {
        Ok(true) => Finding::ok("overlayfs", "known to the kernel"),
        Ok(false) if kernel::has_modules() => {
            Finding::ok("overlayfs", "a module, loaded when it is first used")
        }
        Ok(false) => Finding::fail("overlayfs", "not known to the kernel", load("overlay")),
        Err(error) => {
            Finding::fail("overlayfs", format!("read /proc/filesystems: {error}"), "mount -t proc proc /proc")
        }
    }
}

fn namespaces() -> Finding {
    let missing: Vec<_> =
        NAMESPACES.into_iter().filter(|name| !Path::new("/proc/self/ns").join(name).exists()).collect();
    if missing.is_empty() {
        return Finding::ok("namespaces", NAMESPACES.join(", "));
    }
    let remedy = "use a kernel with CONFIG_NAMESPACES and all that belongs to it";
    Finding::fail("namespaces", format!("none of kind {}", missing.join(", ")), remedy)
}

fn user_namespaces(limit: Option<&str>) -> Finding {
    match limit {
        Some("0") => Finding::warn(
            "user namespaces",
            "user.max_user_namespaces is 0: pods with hostUsers: false are refused",
            set("user.max_user_namespaces", "65536"),
        ),
        Some(limit) => Finding::ok("user namespaces", format!("at most {limit}")),
        None => Finding::warn(
            "user namespaces",
            "not in this kernel: pods with hostUsers: false are refused",
            "use a kernel with CONFIG_USER_NS if you want them",
        ),
    }
}

/// Sets a setting, now and at every boot.
pub(super) fn set(key: &str, value: &str) -> String {
    format!("sysctl -w {key}={value}\necho {key}={value} >>/etc/sysctl.d/90-podwright.conf")
}

fn seccomp(actions: Option<&str>) -> Finding {
    match actions {
        Some(_) => Finding::ok("seccomp", "filters"),
        None => Finding::fail(
            "seccomp",
            "not in this kernel: containers with a seccomp profile do not start",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        ),
    }
}

fn forwarding(value: Option<&str>) -> Finding {
    match value {
        Some("1") => Finding::ok("IP forwarding", "on"),
        _ => Finding::warn(
            "IP forwarding",
            "net.ipv4.ip_forward is not 1: pods reach nothing outside the node, and kubeadm refuses",
            set("net.ipv4.ip_forward", "1"),
        ),
    }
}

fn bridges(value: Option<&str>) -> Finding {
    const NAME: &str = "bridge filtering";
    match value {
        Some("1") => Finding::ok(NAME, "on"),
        Some(_) => Finding::warn(
            NAME,
            "net.bridge.bridge-nf-call-iptables is not 1: Services do not work between pods of one bridge",
            set("net.bridge.bridge-nf-call-iptables", "1"),
        ),
        // Networks without a Linux bridge do not need it, so it is not an error.
        None => Finding::warn(
            NAME,
            "br_netfilter is not loaded: with a bridge network, Services do not work between pods of one node",
            load("br_netfilter"),
        ),
    }
}

fn conntrack(there: bool) -> Finding {
    if there {
        return Finding::ok("connection tracking", "loaded");
    }
    Finding::warn(
        "connection tracking",
        "nf_conntrack is not loaded: masquerading, host ports and kube-proxy load it themselves, if they can",
        load("nf_conntrack"),
    )
}

fn rights<E: std::fmt::Display>(host: Result<HostSecurity, E>) -> Finding {
    let name = "rights";
    if !rustix::process::geteuid().is_root() {
        return Finding::fail(name, "not root", "run this, and the daemon, as root (sudo podwright check)");
    }
    match host {
        Err(error) => Finding::fail(name, error.to_string(), "mount -t proc proc /proc"),
        Ok(host) if host.oom_score_adj_floor > -1000 => Finding::warn(
            name,
            "no CAP_SYS_RESOURCE: containers get no oom_score_adj below the daemon's own",
            "run the daemon by its systemd unit on the node itself, not in a container with fewer rights",
        ),
        Ok(host) => {
            let modules = if host.apparmor { "AppArmor" } else { "no AppArmor" };
            Finding::ok(name, format!("root with all that is needed; {modules}"))
        }
    }
}

/// The kernel's SELinux support.
struct Labels {
    process: String,
    known: bool,
    enforcing: bool,
}

impl Labels {
    fn of(selinux: &Selinux) -> Self {
        Self {
            process: selinux.contexts().process.to_string(),
            known: selinux.knows_containers(),
            enforcing: selinux.enforcing(),
        }
    }
}

fn labels(mode: SelinuxMode, found: Option<Labels>) -> Finding {
    const NAME: &str = "SELinux";
    let missing =
        "set containers.selinux = \"auto\"\n(or boot with SELinux: security=selinux selinux=1, and a policy)";
    match (mode, found) {
        (SelinuxMode::Off, _) => Finding::ok(NAME, "switched off by containers.selinux"),
        (SelinuxMode::Auto, None) => Finding::ok(NAME, "not in use on this node"),
        (SelinuxMode::On, None) => {
            Finding::fail(NAME, "not in use on this node: the daemon does not start", missing)
        }
        (_, Some(Labels { process, known: true, enforcing })) => {
            let state = if enforcing { "enforcing" } else { "permissive" };
            Finding::ok(NAME, format!("{state}, containers run as {process}"))
        }
        (mode, Some(Labels { process, .. })) => {
            let found = format!("its policy has no {process}");
            let remedy = "install the policy's module for containers (container-selinux)\n(or set containers.selinux = \"off\")";
            match mode {
                SelinuxMode::On => Finding::fail(NAME, format!("{found}: the daemon does not start"), remedy),
                _ => Finding::warn(
                    NAME,
                    format!("{found}: containers run without labels of their own"),
                    remedy,
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    fn fails(finding: &Finding) -> bool {
        matches!(finding.verdict, Verdict::Fail { .. })
    }

    fn warns(finding: &Finding) -> bool {
        matches!(finding.verdict, Verdict::Warn { .. })
    }

    #[test]
    fn verdicts() {
        assert!(fails(&release("4.19.0-1", false)) && !fails(&release("6.1.0", true)));
        assert!(warns(&user_namespaces(Some("0"))) && warns(&user_namespaces(None)));
        assert_eq!(user_namespaces(Some("1000")).verdict, Verdict::Ok);
        assert!(fails(&seccomp(None)));
        assert!(warns(&forwarding(Some("0"))) && warns(&forwarding(None)));
        assert!(warns(&bridges(None)) && warns(&bridges(Some("0"))));
        assert_eq!(bridges(Some("1")).verdict, Verdict::Ok);
        assert!(warns(&conntrack(false)));
    }

    #[test]
    fn selinux_is_judged_by_what_is_wanted() {
        let found = |known| Some(Labels { process: "u:r:t:s0".into(), known, enforcing: true });
        for mode in [SelinuxMode::Auto, SelinuxMode::On, SelinuxMode::Off] {
            assert_eq!(labels(mode, found(true)).verdict, Verdict::Ok, "{mode:?}");
        }
        assert_eq!(labels(SelinuxMode::Auto, None).verdict, Verdict::Ok);
        assert!(warns(&labels(SelinuxMode::Auto, found(false))));
        assert!(fails(&labels(SelinuxMode::On, None)) && fails(&labels(SelinuxMode::On, found(false))));
        assert_eq!(labels(SelinuxMode::Off, found(false)).verdict, Verdict::Ok);
    }

    #[test]
    fn a_remedy_is_something_to_type() {
        let Verdict::Warn { remedy } = forwarding(Some("0")).verdict else { panic!() };
        assert!(remedy.starts_with("sysctl -w net.ipv4.ip_forward=1\n"), "{remedy}");
    }
}
