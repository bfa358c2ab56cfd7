//! Which hosts serve a registry's images: containerd's `certs.d/<host>/hosts.toml`, read anew for every pull; where there is
//! none, `registries.conf`; where that says nothing, the registry itself.

use super::reach::Reach;
use super::{files, registries_conf};
use crate::images::error::ImageError;
use crate::images::reference::{DOCKER_HUB, Reference};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use url::Url;

/// The network host behind `docker.io`, from containerd's core/remotes/docker/config.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// The directory for hosts that have none of their own.
const DEFAULT_DIR: &str = "_default";

/// A place to ask.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// `scheme://authority/…/v2/`, with the slash.
    pub(crate) base: Url,
    /// Whether it may turn a tag into a digest.
    pub(crate) resolve: bool,
    /// Whether it may serve content.
    pub(crate) pull: bool,
    /// TLS files.
    pub(crate) tls: Tls,
    /// Sent with each request to this host only.
    pub(crate) headers: HeaderMap,
    /// Time to connect; None: the configured one.
    pub(crate) dial_timeout: Option<Duration>,
    /// A mirror: gets no credentials that do not name it.
    pub(crate) mirror: bool,
    /// The repository there; None: the image's own, and a mirror is told the registry by `?ns=`.
    pub(crate) repository: Option<String>,
    /// The file that names it; None: it is the registry itself, by default.
    pub(crate) origin: Option<PathBuf>,
    /// What it may lead to.
    pub(crate) reach: Reach,
}

impl Host {
    /// Whether a URL leads to this host, by whatever scheme.
    pub(super) fn is_at(&self, url: &Url) -> bool {
        let place = |url: &Url| (url.host_str().map(str::to_owned), url.port_or_known_default());
        place(&self.base) == place(url)
    }

    /// Whether this is where `registry` itself lives, and not a mirror or a `server` in its place.
    pub(super) fn is_registry(&self, registry: &str) -> bool {
        let own = network_host(registry);
        !self.mirror
            && self.base.host_str().is_some_and(|host| {
                let port = self.base.port_or_known_default().unwrap_or_default();
                own == format!("{host}:{port}") || (self.base.port().is_none() && own == host)
            })
    }
}

/// TLS of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tls {
    /// PEM files of further roots.
    pub(crate) ca: Vec<PathBuf>,
    /// Client certificate and key; None: in one file.
    pub(crate) client: Vec<(PathBuf, Option<PathBuf>)>,
    /// No verification at all.
    pub(crate) skip_verify: bool,
}

impl Tls {
    /// Its files: roots, then each client certificate with its key.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let client = self.client.iter().flat_map(|(certificate, key)| [Some(certificate), key.as_ref()]);
        self.ca.iter().chain(client.flatten())
    }

    /// All of it, for a digest.
    pub(super) fn tell(&self, tell: &mut dyn FnMut(&[u8])) {
        tell(&[u8::from(self.skip_verify)]);
        tell(&self.ca.len().to_be_bytes());
        tell(&self.client.len().to_be_bytes());
        self.client.iter().for_each(|(_, key)| tell(&[u8::from(key.is_some())]));
        self.files().for_each(|file| tell(file.as_os_str().as_encoded_bytes()));
    }
}

#[derive(Debug, Default, Deserialize)]
struct File {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<String, toml::Spanned<Entry>>,
    #[serde(flatten)]
    own: Entry,
}

#[derive(Debug, Default, Clone, Deserialize)]
struct Entry {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Client {
    One(String),
    Many(Vec<OneOrMany>),
}

impl OneOrMany {
    fn list(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// The hosts for `reference` in the order in which they are asked; the registry itself (or `server`) comes last. An empty
/// `registries_conf` is none.
pub(crate) fn hosts_for(
    certs_dirs: &[PathBuf],
    registries_conf: &Path,
    reference: &Reference,
) -> Result<Vec<Host>, ImageError> {
    let registry = reference.registry();
    let dir = find_dir(certs_dirs, registry);
    if let Some(path) = dir.as_ref().map(|dir| dir.join("hosts.toml"))
        && let Some(text) = files::read(&path)?
        && !text.trim().is_empty()
    {
        return parse(&path, &text, registry);
    }
    if !registries_conf.as_os_str().is_empty() {
        let roots = roots(certs_dirs, registries_conf);
        let tls =
            |host: &str| find_dir(&roots, host).map_or_else(|| Ok(Tls::default()), |dir| docker_style(&dir));
        if let Some(hosts) = registries_conf::hosts_for(registries_conf, reference, tls)? {
            return Ok(hosts);
        }
    }
    let is_named = dir.as_ref().is_some_and(|dir| names_its_host(dir));
    let tls = dir.map_or_else(|| Ok(Tls::default()), |dir| docker_style(&dir))?;
    let host = default_host(registry, tls)?;
    let reach = if is_named { Reach::Anywhere } else { host.reach };
    Ok(vec![Host { reach, ..host }])
}

/// Directories of hosts, those beside `registries.conf` too.
fn roots(certs_dirs: &[PathBuf], registries_conf: &Path) -> Vec<PathBuf> {
    let beside = (!registries_conf.as_os_str().is_empty()).then(|| registries_conf.with_file_name("certs.d"));
    certs_dirs.iter().cloned().chain(beside).collect()
}

/// The TLS settings that a directory of its own has for the host of `url`, which another host has led to; None: there is no
/// such directory, and the configuration does not name the host. Its client certificate is not among them: it is not for
/// others to use.
pub(super) fn led_to(
    certs_dirs: &[PathBuf],
    registries_conf: &Path,
    url: &Url,
) -> Result<Option<Tls>, ImageError> {
    let (Some(name), Some(port)) = (url.host_str(), url.port_or_known_default()) else { return Ok(None) };
    // Both become part of a path.
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
    if !name.chars().all(is_plain) || name.starts_with('.') {
        return Ok(None);
    }
    let found = [super::auth::authority(url), format!("{name}:{port}")].into_iter().find_map(|host| {
        let dirs = own_dirs(&roots(certs_dirs, registries_conf), &host);
        Some((dirs.into_iter().find(|dir| dir.is_dir())?, host))
    });
    let Some((dir, host)) = found else { return Ok(None) };
    let path = dir.join("hosts.toml");
    let tls = match files::read(&path)?.filter(|text| !text.trim().is_empty()) {
        Some(text) => {
            let hosts = parse(&path, &text, &host)?;
            hosts.into_iter().rfind(|host| host.is_at(url)).map(|host| host.tls).unwrap_or_default()
        }
        None => docker_style(&dir)?,
    };
    Ok(Some(Tls { client: Vec::new(), ..tls }))
}

/// A host that `registries.conf` names.
pub(super) fn located(
    scheme: &str,
    registry: &str,
    repository: &str,
    tls: Tls,
    mirror: bool,
) -> Result<Host, ImageError> {
    let base = api_base(&format!("{scheme}://{}", network_host(registry)))?;
    let repository = Some(repository.to_owned());
    Ok(Host { mirror, repository, reach: Reach::Anywhere, ..plain(base, tls) })
}

/// A directory for the host itself in any root wins over a `_default` one.
fn find_dir(roots: &[PathBuf], registry: &str) -> Option<PathBuf> {
    dirs(roots, registry).into_iter().find(|dir| dir.is_dir())
}

/// The directories that are looked at, in order.
pub(super) fn dirs(roots: &[PathBuf], registry: &str) -> Vec<PathBuf> {
    let mut dirs = own_dirs(roots, registry);
    dirs.extend(roots.iter().map(|root| root.join(DEFAULT_DIR)));
    dirs
}

/// Those that are for this host alone.
fn own_dirs(roots: &[PathBuf], registry: &str) -> Vec<PathBuf> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    roots.iter().flat_map(|root| names.iter().map(move |name| root.join(name))).collect()
}

/// Whether a directory that was found for a host is its own.
fn names_its_host(dir: &Path) -> bool {
    dir.file_name().is_some_and(|name| name != DEFAULT_DIR)
}

fn default_host(registry: &str, tls: Tls) -> Result<Host, ImageError> {
    let base = api_base(&format!("{}://{}", default_scheme(registry), network_host(registry)))?;
    Ok(plain(base, tls))
}

fn api_base(server: &str) -> Result<Url, ImageError> {
    let wrong = |reason: String| ImageError::Hosts { path: shown(server).into(), reason };
    let base = Url::parse(&format!("{server}/v2/")).map_err(|e| wrong(format!("not a URL: {e}")))?;
    without_credentials(&base).map_err(wrong)?;
    Ok(base)
}

/// An address without what may be a password in it, for messages.
fn shown(address: &str) -> &str {
    address.rsplit('@').next().unwrap_or_default()
}

/// URLs of hosts are told in errors, lists and the index, and a redirect would carry their secrets on.
fn without_credentials(base: &Url) -> Result<(), String> {
    if base.username().is_empty() && base.password().is_none() {
        return Ok(());
    }
    let host = super::auth::authority(base);
    Err(format!("the URL of {host} has credentials: put them into one of images.auth_files"))
}

fn plain(base: Url, tls: Tls) -> Host {
    Host {
        reach: Reach::of_reference(&base),
        base,
        resolve: true,
        pull: true,
        tls,
        headers: HeaderMap::new(),
        dial_timeout: None,
        mirror: false,
        repository: None,
        origin: None,
    }
}

fn network_host(registry: &str) -> &str {
    if registry == DOCKER_HUB { DOCKER_HUB_HOST } else { registry }
}

/// Plain http only for this machine's own registries with a port, as containerd does. `127.x.example` is a name.
fn default_scheme(registry: &str) -> &'static str {
    let local = |host: &str| {
        host == "localhost"
            || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    match registry.rsplit_once(':') {
        Some((host, port)) if port != "443" && !port.ends_with(']') && local(host) => "http",
        _ => "https",
    }
}

/// Docker's layout: `*.crt` are roots, `x.cert` with `x.key` a client certificate.
fn docker_style(dir: &Path) -> Result<Tls, ImageError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) => return Err(ImageError::io("read", dir, e)),
    };
    let mut tls = Tls::default();
    for entry in entries {
        let path = entry.map_err(|e| ImageError::io("read", dir, e))?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("crt") => tls.ca.push(path),
            Some("cert") => tls.client.push((path.clone(), Some(path.with_extension("key")))),
            _ => {}
        }
    }
    tls.ca.sort();
    tls.client.sort();
    Ok(tls)
}

fn parse(path: &Path, text: &str, registry: &str) -> Result<Vec<Host>, ImageError> {
    let wrong = |reason: String| ImageError::Hosts { path: path.to_owned(), reason };
    let file: File = toml::from_str(text).map_err(|e| wrong(files::toml_error(text, &e)))?;
    let mut mirrors: Vec<_> = file.host.into_iter().collect();
    // Order in the file is the order of asking; a table's span is where it starts.
    mirrors.sort_by_key(|(_, entry)| entry.span().start);
    let mut hosts = Vec::new();
    for (address, entry) in mirrors {
        hosts.push(host(path, &address, entry.into_inner(), true)?);
    }
    let names_server = file.server.is_some() || path.parent().is_some_and(names_its_host);
    let server =
        file.server.unwrap_or_else(|| format!("{}://{}", default_scheme(registry), network_host(registry)));
    let own = host(path, &server, file.own, false)?;
    let reach = if names_server { Reach::Anywhere } else { Reach::of_reference(&own.base) };
    hosts.push(Host { reach, ..own });
    Ok(hosts)
}

fn host(path: &Path, address: &str, entry: Entry, mirror: bool) -> Result<Host, ImageError> {
    let wrong = |reason: String| ImageError::Hosts { path: path.to_owned(), reason };
    let address = if address.contains("://") { address.to_owned() } else { format!("https://{address}") };
    let (parsed, address) = (Url::parse(&address), shown(&address));
    let mut base = parsed.map_err(|e| wrong(format!("{address:?} is not a URL: {e}")))?;
    if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
        return Err(wrong(format!("{address:?} is not an http or https URL")));
    }
    without_credentials(&base).map_err(wrong)?;
    let mut prefix = base.path().trim_end_matches('/').to_owned();
    if !entry.override_path && !prefix.ends_with("/v2") {
        prefix.push_str("/v2");
    }
    base.set_path(&format!("{prefix}/"));
    let (mut resolve, mut pull) = (entry.capabilities.is_none(), entry.capabilities.is_none());
    for capability in entry.capabilities.iter().flatten() {
        match capability.as_str() {
            "resolve" => resolve = true,
            "pull" => pull = true,
            "push" | "referrers" => {}
            other => return Err(wrong(format!("unknown capability {other:?} of {address}"))),
        }
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    let client = match entry.client {
        None => Vec::new(),
        Some(Client::One(file)) => vec![(dir.join(file), None)],
        Some(Client::Many(list)) => list
            .into_iter()
            .map(|item| match item {
                OneOrMany::One(file) => Ok((dir.join(file), None)),
                OneOrMany::Many(pair) => match pair.as_slice() {
                    [cert] => Ok((dir.join(cert), None)),
                    [cert, key] if key.is_empty() => Ok((dir.join(cert), None)),
                    [cert, key] => Ok((dir.join(cert), Some(dir.join(key)))),
                    _ => Err(wrong(format!("a client entry of {address} is not a certificate and a key"))),
                },
            })
            .collect::<Result<_, _>>()?,
    };
    let mut headers = HeaderMap::new();
    for (name, values) in entry.header {
        let key = HeaderName::try_from(&name).map_err(|_| wrong(format!("{name:?} is not a header name")))?;
        for value in values.list() {
            let mut value = HeaderValue::from_str(&value)
                .map_err(|_| wrong(format!("the value of header {name} is not one")))?;
            value.set_sensitive(true);
            headers.append(key.clone(), value);
        }
    }
    let dial_timeout = entry
        .dial_timeout
        .map(|text| duration(&text).ok_or_else(|| wrong(format!("dial_timeout {text:?} is not a duration"))))
        .transpose()?;
    Ok(Host {
        base,
        resolve,
        pull,
        tls: Tls {
            ca: entry.ca.map(OneOrMany::list).unwrap_or_default().into_iter().map(|f| dir.join(f)).collect(),
            client,
            skip_verify: entry.skip_verify,
        },
        headers,
        dial_timeout,
        mirror,
        repository: None,
        origin: Some(path.to_owned()),
        reach: Reach::Anywhere,
    })
}

/// Go's duration text, whole numbers only: `10s`, `500ms`, `1m30s`.
fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u32 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return None,
        };
        total = total.checked_add(unit.checked_mul(number)?)?;
        rest = &rest[end..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(roots: &[PathBuf], registry: &str) -> Vec<Host> {
        let reference = Reference::parse(&format!("{registry}/x/y")).unwrap();
        hosts_for(roots, Path::new(""), &reference).unwrap()
    }

    fn bases(hosts: &[Host]) -> Vec<&str> {
        hosts.iter().map(|h| h.base.as_str()).collect()
    }

    #[test]
    fn without_configuration_the_registry_itself_is_asked() {
        for (registry, base) in [
            ("docker.io", "https://registry-1.docker.io/v2/"),
            ("r.example", "https://r.example/v2/"),
            ("r.example:5000", "https://r.example:5000/v2/"),
            ("localhost:5000", "http://localhost:5000/v2/"),
            ("127.0.0.1:1", "http://127.0.0.1:1/v2/"),
            ("[::1]:1", "http://[::1]:1/v2/"),
            ("localhost", "https://localhost/v2/"),
            ("[::1]", "https://[::1]/v2/"),
            // Names, whatever they look like.
            ("127.evil.example:80", "https://127.evil.example:80/v2/"),
            ("127.0.0.1.evil.example:5000", "https://127.0.0.1.evil.example:5000/v2/"),
            ("localhost.evil.example:5000", "https://localhost.evil.example:5000/v2/"),
            ("a.localhost:5000", "https://a.localhost:5000/v2/"),
            ("10.0.0.1:5000", "https://10.0.0.1:5000/v2/"),
        ] {
            assert_eq!(bases(&hosts(&[], registry)), [base]);
        }
    }

    #[test]
    fn the_order_of_the_file_is_kept() {
        let text = r#"
            server = "https://up.example"
            skip_verify = true
            [host."https://z.example"]
            capabilities = ["pull"]
            [host."http://m.example:80/prefix"]
            ca = "ca.pem"
            client = [["c.pem", "k.pem"], "both.pem"]
            dial_timeout = "1m30s"
            [host."http://m.example:80/prefix".header]
            x-a = ["1", "2"]
            [host."a.example/p/v2"]
            override_path = true
        "#;
        let hosts = parse(Path::new("/etc/c/r/hosts.toml"), text, "r.example").unwrap();
        assert_eq!(
            bases(&hosts),
            [
                "https://z.example/v2/",
                "http://m.example/prefix/v2/",
                "https://a.example/p/v2/",
                "https://up.example/v2/"
            ]
        );
        assert!(!hosts[0].resolve && hosts[0].pull && hosts[0].mirror);
        assert_eq!(hosts[1].tls.ca, [Path::new("/etc/c/r/ca.pem")]);
        assert_eq!(
            hosts[1].tls.client,
            [("/etc/c/r/c.pem".into(), Some("/etc/c/r/k.pem".into())), ("/etc/c/r/both.pem".into(), None)]
        );
        assert_eq!(hosts[1].dial_timeout, Some(Duration::from_secs(90)));
        assert_eq!(hosts[1].headers.get_all("x-a").iter().count(), 2);
        assert!(!hosts[3].mirror && hosts[3].tls.skip_verify);
    }

    #[test]
    fn a_broken_file_is_an_error_and_not_a_fallback() {
        for text in
            ["server = 1", "[host.\"ftp://x\"]", "capabilities = [\"fly\"]", "dial_timeout = \"soon\"", "x ="]
        {
            assert!(parse(Path::new("/c/hosts.toml"), text, "r.example").is_err(), "{text}");
        }
    }

    #[test]
    fn secrets_of_the_files_are_neither_urls_nor_told() {
        for text in [
            "server = \"https://u:hunter2@r.example\"",
            "server = \"u:hunter2@r.example\"",
            "[host.\"https://hunter2@m.example\"]",
            "server = \"https://u:hunter2@r.example:wrong\"",
            "[header]\nauthorization = \"hunter2",
            "header = \"hunter2\"",
        ] {
            let error = parse(Path::new("/c/hosts.toml"), text, "r.example").unwrap_err().to_string();
            assert!(error.contains("hosts.toml") && !error.contains("hunter2"), "{error}");
        }
        let error =
            located("https", "u:hunter2@r.example", "x", Tls::default(), true).unwrap_err().to_string();
        assert!(error.contains("auth_files") && !error.contains("hunter2"), "{error}");
        let hosts = parse(Path::new("/c/hosts.toml"), "[header]\nauthorization = \"hunter2\"", "r").unwrap();
        assert!(!format!("{hosts:?}").contains("hunter2"));
    }

    #[test]
    fn what_the_configuration_names_may_be_anywhere() {
        let root = tempfile::tempdir().unwrap();
        let roots = [root.path().to_owned()];
        let reach = |registry: &str| hosts(&roots, registry).iter().map(|h| h.reach).collect::<Vec<_>>();
        assert_eq!(reach("r.example:5000"), [Reach::Node]);
        assert_eq!(reach("127.0.0.1:5000"), [Reach::Anywhere]);
        std::fs::create_dir(root.path().join("r.example_5000_")).unwrap();
        assert_eq!(reach("r.example:5000"), [Reach::Anywhere], "a directory of its own names it");
        let default = root.path().join("_default");
        std::fs::create_dir(&default).unwrap();
        assert_eq!(reach("evil.example"), [Reach::Node], "that of all others does not");
        std::fs::write(default.join("hosts.toml"), "[host.\"http://127.0.0.1:5001\"]").unwrap();
        assert_eq!(reach("evil.example"), [Reach::Anywhere, Reach::Node]);
        std::fs::write(default.join("hosts.toml"), "server = \"http://127.0.0.1:5001\"").unwrap();
        assert_eq!(reach("evil.example"), [Reach::Anywhere]);
    }

    #[test]
    fn a_host_that_others_lead_to_has_settings_of_its_own_only() {
        let root = tempfile::tempdir().unwrap();
        let roots = [root.path().to_owned()];
        let led = |url: &str| led_to(&roots, Path::new(""), &Url::parse(url).unwrap()).unwrap();
        let dir = |name: &str| {
            let dir = root.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            dir
        };
        let (a, b) = (dir("auth.example_8443_"), dir("certs.example"));
        std::fs::write(
            a.join("hosts.toml"),
            "skip_verify = true\nclient = \"c.pem\"\n[host.\"https://m.example\"]\nca = \"m.pem\"",
        )
        .unwrap();
        std::fs::write(b.join("ca.crt"), "").unwrap();
        std::fs::write(b.join("c.cert"), "").unwrap();
        dir("_default");
        let found = led("https://auth.example:8443/token").unwrap();
        assert!(found.skip_verify && found.client.is_empty() && found.ca.is_empty(), "{found:?}");
        let found = led("https://certs.example/token").unwrap();
        assert!(found.client.is_empty() && found.ca == [b.join("ca.crt")], "{found:?}");
        for other in [
            "https://auth.example/",
            "https://m.example/",
            "https://_default/",
            "https://../",
            "https://./",
            "http://certs.example:81/",
        ] {
            assert_eq!(Url::parse(other).ok().and_then(|_| led(other)), None, "{other}");
        }
    }

    #[test]
    fn directories_are_found_as_containerd_does() {
        let root = tempfile::tempdir().unwrap();
        let (a, b) = (root.path().join("a"), root.path().join("b"));
        for dir in [a.join("_default"), b.join("r.example_5000_"), a.join("x.example")] {
            std::fs::create_dir_all(dir).unwrap();
        }
        let roots = [a.clone(), b.clone()];
        assert_eq!(find_dir(&roots, "r.example:5000"), Some(b.join("r.example_5000_")));
        assert_eq!(find_dir(&roots, "x.example"), Some(a.join("x.example")));
        assert_eq!(find_dir(&roots, "other"), Some(a.join("_default")));
        std::fs::write(a.join("x.example/ca.crt"), "").unwrap();
        std::fs::write(a.join("x.example/c.cert"), "").unwrap();
        let hosts = hosts(&roots, "x.example");
        assert_eq!((hosts[0].tls.ca.len(), hosts[0].tls.client.len()), (1, 1));
    }
}
