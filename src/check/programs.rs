//! The monitor and the OCI runtimes.

use super::Finding;
use super::holes;
use super::scratch::Scratch;
use crate::config::Config;
use crate::host::cgroups::{Cgroups, Driver};
use crate::host::monitor;
use crate::host::oci::{self, OciError, Surroundings, Trial};
use crate::host::offload::in_place;
use crate::sandbox::TrialNamespace;

pub(super) async fn all(config: &Config) -> Vec<Finding> {
    let mut found = vec![monitor_binary(config)];
    match Scratch::near(&config.state) {
        Ok(scratch) => {
            match Driver::settle(&config.cgroups) {
                Ok((driver, parent)) => {
                    // Where there are none, another check says so.
                    let cgroups = Cgroups::detect().ok();
                    let around = Surroundings {
                        state: scratch.path(),
                        systemd: driver == Driver::Systemd,
                        probe_cgroup: &|name| driver.oci_path(&parent, name),
                        clear_cgroup: &|name| {
                            if let Some(cgroups) = &cgroups {
                                in_place(|off| cgroups.clear_probe(off, &parent, name));
                            }
                        },
                    };
                    // The kernel's limit on them gives the reason.
                    let namespace = tokio::task::spawn_blocking(TrialNamespace::make).await.ok();
                    let namespace = namespace.and_then(Result::ok);
                    let user = namespace.as_ref().map(TrialNamespace::user);
                    let trials = oci::try_all(&config.runtime, around, user).await;
                    found.extend(runtimes(&config.runtime.default, &trials));
                }
                // The driver's check has reported the mismatch.
                Err(error) => found.push(Finding::fail(
                    "OCI runtimes",
                    format!("not tried: {error}"),
                    "correct cgroups.default_parent first",
                )),
            }
        }
        // Another check has reported that `state` cannot be written.
        Err(_) => found.push(Finding::fail(
            "OCI runtimes",
            format!("not tested: no directory at {}", config.state.display()),
            "correct state first",
        )),
    }
    found
}

fn monitor_binary(config: &Config) -> Finding {
    match monitor::binary(&config.monitor.binary) {
        Ok(path) => Finding::ok("monitor", path.display().to_string()),
        Err(error) => Finding::fail(
            "monitor",
            error.to_string(),
            "install -D -m 0755 podwright-monitor /usr/libexec/podwright/podwright-monitor",
        ),
    }
}

/// An optional runtime may be missing; the default may not.
fn runtimes(default: &str, trials: &[Trial]) -> Vec<Finding> {
    let works = |name: &str| trials.iter().any(|t| t.handler == name && t.outcome.is_ok());
    let chosen =
        if default.is_empty() { oci::PREFERENCE.into_iter().find(|name| works(name)) } else { Some(default) };
    let mut found: Vec<_> = trials
        .iter()
        .flat_map(|trial| [Some(runtime(trial, chosen)), known_holes(trial), in_user_namespace(trial)])
        .flatten()
        .collect();
    if chosen.is_none() {
        found.push(Finding::fail(
            "default OCI runtime",
            "none: neither crun nor runc runs a container here",
            install("runc"),
        ));
    }
    found
}

fn install(program: &str) -> String {
    format!("apt-get install {program}\nor set runtime.handlers.{program}.path to where it is")
}

fn runtime(trial: &Trial, chosen: Option<&str>) -> Finding {
    let name = format!("OCI runtime {}", trial.handler);
    let is_default = chosen == Some(&trial.handler);
    let path = trial.path.display();
    match &trial.outcome {
        Ok(()) => {
            let default = if is_default { ", the default" } else { "" };
            Finding::ok(name, format!("{path} ran a container{default} ({})", trial.version))
        }
        Err(error) if is_default => Finding::fail(name, error.to_string(), install(&trial.handler)),
        // crun and runc are alternatives.
        Err(OciError::Missing { .. })
            if oci::PREFERENCE.contains(&trial.handler.as_str()) && chosen.is_some() =>
        {
            Finding::ok(name, "not installed, and not needed")
        }
        Err(error) => Finding::warn(
            name,
            format!("{error}: pods that ask for it do not start"),
            match error {
                OciError::Missing { .. } => install(&trial.handler),
                _ => format!(
                    "{path} --version\nor take [runtime.handlers.{}] out of the configuration",
                    trial.handler
                ),
            },
        ),
    }
}

/// Known holes of its version. A warning at most: distributions patch without a new number.
fn known_holes(trial: &Trial) -> Option<Finding> {
    let holes = holes::of(&trial.version);
    if trial.outcome.is_err() || holes.is_empty() {
        return None;
    }
    let path = trial.path.display();
    Some(Finding::warn(
        format!("holes of {}", trial.handler),
        format!("{} has {}, unless your distribution patched it", trial.version, holes.join("; ")),
        format!("ask your distribution: apt-get changelog {0}\nor install a newer {path}", trial.handler),
    ))
}

/// As in the daemon's Status for the handler.
fn in_user_namespace(trial: &Trial) -> Option<Finding> {
    let name = format!("user namespaces with {}", trial.handler);
    let path = trial.path.display();
    Some(match trial.in_user_namespace.as_ref()? {
        Ok(()) => Finding::ok(name, "ran a container in one"),
        Err(error) => Finding::warn(
            name,
            format!("{error}: pods with hostUsers: false are refused"),
            format!(
                "{path} --version\ninstall a newer {path}, or give such pods a RuntimeClass whose handler can do it"
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    fn trial(handler: &str, works: bool) -> Trial {
        let missing = || OciError::Missing { runtime: handler.into(), path: handler.into() };
        let outcome = if works { Ok(()) } else { Err(missing()) };
        let in_user_namespace = works.then_some(Ok(()));
        Trial {
            handler: handler.into(),
            path: handler.into(),
            version: "1.0".into(),
            outcome,
            in_user_namespace,
        }
    }

    #[test]
    fn each_runtime_that_works_tells_of_user_namespaces() {
        let refuses = OciError::Missing { runtime: "crun".into(), path: "crun".into() };
        let without = Trial { in_user_namespace: Some(Err(refuses)), ..trial("crun", true) };
        let found = runtimes("", &[without, trial("runc", true), trial("youki", false)]);
        let names: Vec<_> = found.iter().map(|finding| finding.name.as_str()).collect();
        let both = [
            "OCI runtime crun",
            "user namespaces with crun",
            "OCI runtime runc",
            "user namespaces with runc",
        ];
        assert_eq!(names, [&both[..], &["OCI runtime youki"]].concat());
        let Verdict::Warn { remedy } = &found[1].verdict else { panic!("{found:?}") };
        assert!(found[1].found.contains("hostUsers: false") && remedy.contains("RuntimeClass"), "{found:?}");
        assert_eq!(found[3].verdict, Verdict::Ok);
    }

    #[test]
    fn a_version_with_known_holes_is_a_warning_that_names_them() {
        let old = Trial { version: "runc version 1.1.5+ds1".into(), ..trial("runc", true) };
        let found = runtimes("", &[old]);
        assert!(matches!(found[1].verdict, Verdict::Warn { .. }), "{found:?}");
        let said = &found[1].found;
        assert!(
            said.contains("1.1.5+ds1 has CVE-2024-21626;") && said.contains("unless your distribution"),
            "{said}"
        );
        let new = Trial { version: "runc version 1.5.0".into(), ..trial("runc", true) };
        assert!(runtimes("", &[new]).iter().all(|finding| finding.verdict == Verdict::Ok));
    }

    #[test]
    fn one_runtime_that_works_is_enough() {
        let found = runtimes("", &[trial("crun", false), trial("runc", true)]);
        assert!(found.iter().all(|finding| finding.verdict == Verdict::Ok), "{found:?}");
        assert!(found[1].found.contains("the default"), "{found:?}");
    }

    #[test]
    fn none_and_a_missing_default_are_failures() {
        let none = runtimes("", &[trial("crun", false), trial("runc", false)]);
        let last = none.last().unwrap();
        let Verdict::Fail { remedy } = &last.verdict else { panic!("{last:?}") };
        assert!(remedy.contains("apt-get install runc"), "{remedy}");
        let found = runtimes("kata", &[trial("kata", false), trial("runc", true)]);
        assert!(matches!(found[0].verdict, Verdict::Fail { .. }));
        let found = runtimes("", &[trial("kata", false), trial("runc", true)]);
        assert!(matches!(found[0].verdict, Verdict::Warn { .. }));
    }
}
