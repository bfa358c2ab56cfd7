//! Cgroups: hierarchies, controllers, driver.

use super::{Finding, Subject};
use crate::config::CgroupDriver;
use crate::host::cgroups::{CgroupMode, Cgroups, Driver};
use std::path::Path;

/// Controllers without which a kubelet's pods do not run.
const NEEDED: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

pub(super) fn all(subject: &Subject<'_>) -> Vec<Finding> {
    let mut found = match Cgroups::detect() {
        Ok(cgroups) => vec![mode(cgroups.mode()), controllers(|name| cgroups.has_controller(name))],
        Err(error) => {
            vec![Finding::fail("cgroups", error.to_string(), "mount -t cgroup2 none /sys/fs/cgroup")]
        }
    };
    found.extend(driver(subject));
    found
}

fn mode(mode: CgroupMode) -> Finding {
    let name = "cgroups";
    let remedy = "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line";
    match mode {
        CgroupMode::V2 => Finding::ok(name, "v2"),
        CgroupMode::Hybrid => Finding::warn(
            name,
            "hybrid (v1 with a v2 tree beside it): kubelets from 1.35 on want v2, and crun refuses it",
            remedy,
        ),
        CgroupMode::V1 => Finding::warn(name, "v1: kubelets from 1.35 on want v2", remedy),
    }
}

fn controllers(has: impl Fn(&str) -> bool) -> Finding {
    let name = "cgroup controllers";
    let missing: Vec<_> = NEEDED.into_iter().filter(|controller| !has(controller)).collect();
    if missing.is_empty() {
        return Finding::ok(name, NEEDED.join(", "));
    }
    // Arguments for kernels that disable them to save memory.
    let words: Vec<_> = missing.iter().map(|controller| format!("cgroup_enable={controller}")).collect();
    Finding::fail(
        name,
        format!("no {}: the kubelet does not start", missing.join(", ")),
        format!("add {} to the kernel's command line and reboot", words.join(" ")),
    )
}

fn driver(subject: &Subject<'_>) -> Option<Finding> {
    let name = "cgroup driver";
    let own = match Driver::settle(&subject.config.cgroups) {
        Ok((driver, _)) => driver.name(),
        Err(error) => {
            return Some(Finding::fail(
                name,
                error.to_string(),
                "empty cgroups.default_parent in podwright's configuration, or set it in the driver's style",
            ));
        }
    };
    let kubelet = subject.kubelet?;
    let file = kubelet.file.display();
    match kubelet.cgroup_driver.as_deref() {
        Some(theirs) if theirs == own => {
            Some(Finding::ok(name, format!("{own}, in the kubelet's configuration too")))
        }
        Some(theirs) => Some(Finding::fail(
            name,
            format!("podwright's is {own}, the kubelet's is {theirs} ({file})"),
            remedy(own, theirs, &kubelet.file),
        )),
        // The default of a kubelet that is not configured and cannot ask the runtime.
        None if own == "cgroupfs" => Some(Finding::ok(name, format!("{own}, the kubelet's default"))),
        None => Some(Finding::warn(
            name,
            format!("podwright's is {own}; kubelets before 1.34 do not ask for it and take cgroupfs"),
            format!("in {file}, set cgroupDriver: {own}"),
        )),
    }
}

/// The kubelet's can change; ours too, if the host supports it.
fn remedy(own: &str, theirs: &str, file: &Path) -> String {
    let kubelet = format!("in {}, set cgroupDriver: {own}, and: systemctl restart kubelet", file.display());
    let possible = theirs == "cgroupfs" || theirs == Driver::choose(CgroupDriver::Auto).name();
    if !possible {
        return kubelet;
    }
    format!(
        "{kubelet}\nor in podwright's, set [cgroups] driver = \"{theirs}\", and: systemctl restart podwright"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Kubelet, Verdict};
    use crate::config::{CgroupDriver, Config};

    fn with(text: &str) -> Option<Finding> {
        let mut config = Config::default();
        config.cgroups.driver = CgroupDriver::Cgroupfs;
        let kubelet = Kubelet::parse("/k".as_ref(), text).unwrap();
        driver(&Subject { config: &config, kubelet: Some(&kubelet) })
    }

    #[test]
    fn drivers_have_to_agree() {
        let Some(Finding { found, verdict: Verdict::Fail { remedy }, .. }) = with("cgroupDriver: systemd\n")
        else {
            panic!("no failure")
        };
        assert!(found.contains("systemd") && found.contains("/k"), "{found}");
        assert!(remedy.contains("cgroupDriver: cgroupfs"), "{remedy}");
        assert_eq!(with("cgroupDriver: cgroupfs").unwrap().verdict, Verdict::Ok);
        assert_eq!(with("port: 1").unwrap().verdict, Verdict::Ok);
        assert!(driver(&Subject { config: &Config::default(), kubelet: None }).is_none());
    }

    #[test]
    fn a_missing_controller_is_named() {
        let finding = controllers(|name| name != "memory");
        assert!(finding.found.starts_with("no memory:"), "{}", finding.found);
        assert_eq!(controllers(|_| true).verdict, Verdict::Ok);
    }
}
