//! The kubelet's configuration, where it must agree with ours.
//!
//! Reads the few relevant keys, which are on lines of their own at the top level. Not a YAML parser; judges nothing
//! else in the file.

use super::{Finding, Subject};
use crate::host::kernel;
use std::io;
use std::path::{Path, PathBuf};

/// Where kubeadm puts it.
pub const DEFAULT_CONFIG: &str = "/var/lib/kubelet/config.yaml";

/// The relevant keys of a KubeletConfiguration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubelet {
    /// The file.
    pub file: PathBuf,
    /// `cgroupDriver`.
    pub cgroup_driver: Option<String>,
    /// `containerRuntimeEndpoint`.
    pub endpoint: Option<String>,
    /// `failSwapOn`; true by default.
    pub fail_swap_on: bool,
}

impl Kubelet {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or is JSON that cannot be parsed.
    pub fn read(file: &Path) -> io::Result<Self> {
        Self::parse(file, &std::fs::read_to_string(file)?)
    }

    pub(super) fn parse(file: &Path, text: &str) -> io::Result<Self> {
        let json: Option<serde_json::Value> =
            if text.trim_start().starts_with('{') { Some(serde_json::from_str(text)?) } else { None };
        let get = |key: &str| match json.as_ref().map(|json| json.get(key)) {
            None => top_level(text, key),
            Some(None) => None,
            Some(Some(serde_json::Value::String(text))) => Some(text.clone()),
            Some(Some(other)) => Some(other.to_string()),
        };
        let said = |key| get(key).filter(|value| !value.is_empty());
        Ok(Self {
            file: file.to_owned(),
            cgroup_driver: said("cgroupDriver"),
            endpoint: said("containerRuntimeEndpoint"),
            fail_swap_on: said("failSwapOn").is_none_or(|value| value != "false"),
        })
    }
}

/// The plain value of a top-level key of a YAML mapping.
fn top_level(text: &str, key: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let value = value.split(" #").next()?.trim();
    Some(value.trim_matches(['"', '\'']).to_owned())
}

pub(super) fn all(subject: &Subject<'_>) -> Vec<Finding> {
    let mut found = vec![swap(subject.kubelet, kernel::swaps())];
    found.extend(subject.kubelet.and_then(|kubelet| endpoint(kubelet, &subject.config.grpc.socket)));
    found
}

fn endpoint(kubelet: &Kubelet, socket: &Path) -> Option<Finding> {
    let name = "kubelet's endpoint";
    // The kubelet's command line may set it instead, and overrides the file.
    let said = kubelet.endpoint.as_deref()?;
    if said.strip_prefix("unix://").unwrap_or(said) == socket.to_string_lossy() {
        return Some(Finding::ok(name, said));
    }
    Some(Finding::warn(
        name,
        format!("{said}, which is not podwright's ({})", kubelet.file.display()),
        format!(
            "in {}, set containerRuntimeEndpoint: unix://{}\nsystemctl restart kubelet",
            kubelet.file.display(),
            socket.display()
        ),
    ))
}

fn swap(kubelet: Option<&Kubelet>, swaps: io::Result<Vec<PathBuf>>) -> Finding {
    let name = "swap";
    let swaps = match swaps {
        Ok(swaps) if swaps.is_empty() => return Finding::ok(name, "none"),
        Ok(swaps) => swaps.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
        Err(error) => return Finding::fail(name, error.to_string(), "mount -t proc proc /proc"),
    };
    let remedy = "swapoff -a, and take it out of /etc/fstab\nor set failSwapOn: false and memorySwap in the kubelet's configuration";
    match kubelet {
        Some(kubelet) if !kubelet.fail_swap_on => {
            Finding::ok(name, format!("{swaps}; the kubelet takes that (failSwapOn: false)"))
        }
        Some(_) => Finding::fail(name, format!("{swaps}: the kubelet does not start"), remedy),
        None => {
            Finding::warn(name, format!("{swaps}: a kubelet does not start without such settings"), remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    const YAML: &str = "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: \"systemd\" # as kubeadm writes it
containerRuntimeEndpoint: unix:///run/podwright/podwright.sock
logging:
  failSwapOn: false
failSwapOn: true
";

    #[test]
    fn the_keys_are_read_from_yaml_and_json() {
        let yaml = Kubelet::parse(Path::new("/k"), YAML).unwrap();
        assert_eq!(yaml.cgroup_driver.as_deref(), Some("systemd"));
        assert_eq!(yaml.endpoint.as_deref(), Some("unix:///run/podwright/podwright.sock"));
        assert!(yaml.fail_swap_on);
        let json = r#"{"cgroupDriver": "cgroupfs", "failSwapOn": false, "containerRuntimeEndpoint": ""}"#;
        let json = Kubelet::parse(Path::new("/k"), json).unwrap();
        assert_eq!(
            (json.cgroup_driver.as_deref(), json.endpoint, json.fail_swap_on),
            (Some("cgroupfs"), None, false)
        );
        assert!(Kubelet::parse(Path::new("/k"), "{ broken").is_err());
    }

    #[test]
    fn swap_counts_by_what_the_kubelet_says() {
        let of = |text: &str| Kubelet::parse(Path::new("/k"), text).unwrap();
        let swaps = || Ok(vec![PathBuf::from("/dev/sda2")]);
        assert_eq!(swap(None, Ok(Vec::new())).verdict, Verdict::Ok);
        assert!(matches!(swap(None, swaps()).verdict, Verdict::Warn { .. }));
        assert!(matches!(swap(Some(&of("")), swaps()).verdict, Verdict::Fail { .. }));
        assert_eq!(swap(Some(&of("failSwapOn: false")), swaps()).verdict, Verdict::Ok);
    }

    #[test]
    fn another_runtimes_endpoint_is_told() {
        let of = |text: &str| Kubelet::parse(Path::new("/k"), text).unwrap();
        let socket = Path::new("/run/podwright/podwright.sock");
        assert!(endpoint(&of(""), socket).is_none());
        assert_eq!(endpoint(&of(YAML), socket).unwrap().verdict, Verdict::Ok);
        let other = endpoint(&of("containerRuntimeEndpoint: unix:///run/crio/crio.sock"), socket).unwrap();
        assert!(matches!(other.verdict, Verdict::Warn { .. }) && other.found.contains("crio"));
    }
}
