//! The pod network: CNI configuration and plugins.

use super::Finding;
use crate::config;
use crate::host::network::{self, Configured, Examination};
use std::fmt::Write as _;
use std::path::Path;

const CONFIGURATION: &str = "CNI configuration";
const PLUGINS: &str = "CNI plugins";

pub(super) async fn all(config: &config::Network) -> Vec<Finding> {
    findings(config, network::examine(config).await)
}

fn findings(config: &config::Network, examined: Examination) -> Vec<Finding> {
    let mut found = Vec::new();
    match examined.configured {
        Err(reason) => found.push(none(&config.conf_dir, &reason)),
        Ok(networks) => {
            for (place, network) in networks.iter().enumerate() {
                let mut text = format!(
                    "network {} of CNI {} in {}, as {} of each pod",
                    network.network,
                    network.version,
                    network.file.display(),
                    network.interface
                );
                if place + 1 == networks.len() && examined.unread > 0 {
                    let _infallible = write!(
                        text,
                        "; files after it are not used: {} (network.max_conf_num is {})",
                        examined.unread, config.max_conf_num
                    );
                }
                found.push(Finding::ok(CONFIGURATION, text));
                found.push(plugins(config, network));
            }
        }
    }
    for error in examined.skipped {
        let file = error.split(':').next().unwrap_or_default();
        let path = config.conf_dir.join(file).display().to_string();
        let remedy = format!("correct {path}, or move it away: mv {path} {path}.off");
        found.push(Finding::warn(format!("CNI file {file}"), format!("skipped: {error}"), remedy));
    }
    found
}

fn none(dir: &Path, reason: &str) -> Finding {
    Finding::fail(
        CONFIGURATION,
        format!(
            "none in {}: {reason}; the node is NotReady, and only pods on its own network run",
            dir.display()
        ),
        format!(
            "install the cluster's network plugin, which writes one (before that, this is to be expected)\nor, for a node by itself: cp /usr/share/doc/podwright/examples/10-podwright.conflist {}/",
            dir.display()
        ),
    )
}

fn plugins(config: &config::Network, configured: &Configured) -> Finding {
    if !configured.missing.is_empty() {
        let dirs: Vec<_> = config.bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
        return Finding::fail(
            PLUGINS,
            format!("no executable {} in {}", configured.missing.join(", "), dirs.join(", ")),
            "apt-get install containernetworking-plugins\nor add their directory to network.bin_dirs",
        );
    }
    match &configured.problem {
        Some(problem) => Finding::fail(
            PLUGINS,
            problem,
            "ask the network plugin's own pods and logs: it says itself that it is not ready",
        ),
        None => Finding::ok(PLUGINS, configured.plugins.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    fn configured() -> Configured {
        Configured {
            network: "n".into(),
            interface: "eth0".into(),
            version: "1.0.0",
            file: "/etc/cni/net.d/10-n.conflist".into(),
            plugins: vec!["bridge".into()],
            missing: Vec::new(),
            problem: None,
        }
    }

    fn look(configured: Result<Configured, String>, skipped: &[&str]) -> Vec<Finding> {
        let skipped = skipped.iter().map(|text| (*text).to_owned()).collect();
        let configured = configured.map(|one| vec![one]);
        findings(&config::Network::default(), Examination { configured, skipped, unread: 0 })
    }

    #[test]
    fn each_network_is_told_and_so_is_what_is_not_used() {
        let second = Configured { network: "m".into(), interface: "eth1".into(), ..configured() };
        let examined =
            Examination { configured: Ok(vec![configured(), second]), skipped: Vec::new(), unread: 3 };
        let config = config::Network { max_conf_num: 2, ..config::Network::default() };
        let found = findings(&config, examined);
        let texts: Vec<_> = found.iter().map(|finding| finding.found.as_str()).collect();
        assert_eq!(texts.len(), 4);
        assert!(
            texts[0].starts_with("network n of") && texts[0].ends_with("as eth0 of each pod"),
            "{texts:?}"
        );
        assert!(texts[2].starts_with("network m of") && texts[2].contains("as eth1"), "{texts:?}");
        assert!(texts[2].ends_with("not used: 3 (network.max_conf_num is 2)"), "{texts:?}");
    }

    #[test]
    fn verdicts() {
        assert!(look(Ok(configured()), &[]).iter().all(|finding| finding.verdict == Verdict::Ok));
        assert!(matches!(look(Err("empty".into()), &[])[0].verdict, Verdict::Fail { .. }));
        let missing = look(Ok(Configured { missing: vec!["bridge".into()], ..configured() }), &[]);
        let Verdict::Fail { remedy } = &missing[1].verdict else { panic!("{missing:?}") };
        assert!(remedy.contains("containernetworking-plugins"));
        let refused = look(Ok(Configured { problem: Some("code 50".into()), ..configured() }), &[]);
        assert!(matches!(refused[1].verdict, Verdict::Fail { .. }));
        let skipped = look(Ok(configured()), &["05-x.conflist: expected value"]);
        let Verdict::Warn { remedy } = &skipped[2].verdict else { panic!("{skipped:?}") };
        assert!(remedy.contains("mv /etc/cni/net.d/05-x.conflist"), "{remedy}");
    }
}
