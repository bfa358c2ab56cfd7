//! A CNI configuration from the administrator's template and the kubelet's pod addresses, for nodes without another
//! source of one. Writes one file, and only if there is no configuration yet. Never changes one.

use super::Network;
use super::directory::{self, FILE_LIMIT, Loaded};
use super::error::NetworkError;
use super::list::Draft;
use super::template::{self, Values};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Name of the file: in the same order as containerd's, so that a file added by hand can come before or after it.
const FILE_NAME: &str = "10-podwright-net.conflist";
/// Routes to everywhere.
const EVERYWHERE: [(Family, &str); 2] = [(Family::V4, "0.0.0.0/0"), (Family::V6, "::/0")];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// The address ranges of a node's pods, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRanges(Vec<(Family, String)>);

impl PodRanges {
    /// Parses comma-separated ranges as the kubelet sends them; None: none.
    ///
    /// # Errors
    /// The invalid range.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        let ranges: Result<Vec<_>, String> = text.split(',').map(|range| one(range.trim())).collect();
        Ok(Some(Self(ranges?)))
    }

    fn values(&self) -> Values {
        let all: Vec<String> = self.0.iter().map(|(_, range)| range.clone()).collect();
        let routes = EVERYWHERE.iter().filter(|(family, _)| self.0.iter().any(|(f, _)| f == family));
        Values {
            pod_cidr: all.first().cloned().unwrap_or_default(),
            pod_cidr_ranges: all,
            routes: routes.map(|(_, route)| (*route).to_owned()).collect(),
        }
    }
}

fn one(range: &str) -> Result<(Family, String), String> {
    let bad = || format!("{range:?} is no address range such as 10.1.0.0/24");
    let (address, length) = range.split_once('/').ok_or_else(bad)?;
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let (family, longest) = match address {
        IpAddr::V4(_) => (Family::V4, 32),
        IpAddr::V6(_) => (Family::V6, 128),
    };
    match length.parse::<u8>() {
        Ok(length) if length <= longest => Ok((family, range.to_owned())),
        _ => Err(bad()),
    }
}

impl Network {
    /// Fills the template and puts it into the configuration directory, unless a valid configuration exists. Blocking.
    /// True: it was written.
    ///
    /// # Errors
    /// If the template cannot be read or filled, the result is no CNI configuration, or it cannot be written.
    pub fn configure(&self, template: &Path, ranges: &PodRanges) -> Result<bool, NetworkError> {
        let dir = &self.inner.conf_dir;
        if let Loaded::Networks { chosen, .. } = directory::load(dir, 1) {
            let file = chosen.first().map(|network| network.file.display().to_string());
            tracing::debug!(file, "a CNI configuration is there, none is made");
            return Ok(false);
        }
        let file = dir.join(FILE_NAME);
        let wrong = |reason| NetworkError::Template { path: template.to_owned(), reason };
        let text = fill(template, ranges).map_err(wrong)?;
        write(dir, &file, text.as_bytes())?;
        // Log: From `network.conf_template` and the pod CIDR.
        tracing::info!(file = %file.display(), template = %template.display(), "made a CNI configuration");
        if super::lock(&self.inner.watcher).is_none() {
            self.inner.reload(None);
        }
        Ok(true)
    }
}

fn fill(template: &Path, ranges: &PodRanges) -> Result<String, String> {
    let length = template.metadata().map_err(|e| e.to_string())?.len();
    if length > FILE_LIMIT {
        return Err(format!("{length} bytes are too many for a CNI configuration"));
    }
    let text = std::fs::read_to_string(template).map_err(|e| e.to_string())?;
    let text = template::render(&text, &ranges.values())?;
    let filled = Draft::list(text.as_bytes()).and_then(Draft::finish);
    filled.map_err(|e| format!("filled in, it is no CNI configuration: {e}"))?;
    Ok(text)
}

/// Readers of the directory see all of it or nothing: written under an ignored name, then renamed.
fn write(dir: &Path, file: &Path, text: &[u8]) -> Result<(), NetworkError> {
    let failed = |operation: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| NetworkError::Generate { operation, path, source }
    };
    std::fs::create_dir_all(dir).map_err(failed("make directory", dir))?;
    let unseen = file.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let written = options.write(true).create(true).truncate(true).mode(0o644).open(&unseen);
    written
        .and_then(|mut new| new.write_all(text).and_then(|()| new.sync_all()))
        .map_err(failed("write CNI configuration", &unseen))?;
    std::fs::rename(&unseen, file).map_err(failed("move into place", file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_what_a_kubelet_sends() {
        assert_eq!(PodRanges::parse("").unwrap(), None);
        let two = PodRanges::parse("10.1.0.0/24, fd00::/64").unwrap().unwrap().values();
        assert_eq!(two.pod_cidr, "10.1.0.0/24");
        assert_eq!(two.pod_cidr_ranges, ["10.1.0.0/24", "fd00::/64"]);
        assert_eq!(two.routes, ["0.0.0.0/0", "::/0"]);
        let six = PodRanges::parse("fd00::/64").unwrap().unwrap().values();
        assert_eq!((six.pod_cidr.as_str(), six.routes.as_slice()), ("fd00::/64", &["::/0".to_owned()][..]));
        for bad in ["10.1.0.0", "10.1.0.0/33", "fd00::/129", "10.1.0.0/24,", "x/8", "10.1.0.0/-1", "\"/8"] {
            assert!(PodRanges::parse(bad).is_err(), "{bad}");
        }
    }

    const TEMPLATE: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipam": {
        "type": "host-local", "ranges": [{{range $i, $r := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$r}}"}]{{end}}]}}]}"#;

    fn network(dir: &Path) -> Network {
        let config = crate::config::Network {
            conf_dir: dir.join("net.d"),
            cache_dir: dir.join("cache"),
            ..Default::default()
        };
        Network::start(&config).unwrap()
    }

    #[tokio::test]
    async fn a_configuration_is_made_once_and_never_over_another() {
        let dir = tempfile::tempdir().unwrap();
        let (template, net) = (dir.path().join("template"), network(dir.path()));
        std::fs::write(&template, TEMPLATE).unwrap();
        let ranges = |text| PodRanges::parse(text).unwrap().unwrap();
        assert!(net.configure(&template, &ranges("10.1.0.0/24,fd00::/64")).unwrap());
        let made = dir.path().join("net.d").join(FILE_NAME);
        let text = std::fs::read_to_string(&made).unwrap();
        assert!(text.contains(r#"[[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]"#), "{text}");
        assert!(!net.configure(&template, &ranges("10.9.0.0/24")).unwrap());
        assert_eq!(std::fs::read_to_string(&made).unwrap(), text);
        assert_eq!(std::fs::read_dir(dir.path().join("net.d")).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_template_that_gives_no_configuration_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (template, net) = (dir.path().join("template"), network(dir.path()));
        let ranges = PodRanges::parse("10.1.0.0/24").unwrap().unwrap();
        let missing = net.configure(&template, &ranges).unwrap_err().to_string();
        assert!(missing.contains("template"), "{missing}");
        for (text, word) in
            [("{{.Nope}}", ".Nope"), ("{", "no CNI configuration"), ("{}", "no CNI configuration")]
        {
            std::fs::write(&template, text).unwrap();
            let error = net.configure(&template, &ranges).unwrap_err();
            assert!(matches!(error, NetworkError::Template { .. }), "{error}");
            assert!(error.to_string().contains(word), "{text}: {error}");
        }
        assert!(!dir.path().join("net.d").exists());
    }
}
