//! CRI-O's and podman's `registries.conf` (version 2) with its drop-ins, read for every pull: the hosts of an image.
//! Ignores short names: Kubernetes expects them to be Docker Hub's.

use super::files;
use super::hosts::{self, Host, Tls};
use super::reach::Reach;
use crate::images::error::ImageError;
use crate::images::reference::{Reference, Target};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Ignored settings of the file; logged at debug level, since the file is another program's.
type Rest = BTreeMap<String, toml::Value>;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    registry: Vec<Registry>,
    /// Version 1 of the format.
    registries: BTreeMap<String, VersionOne>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct VersionOne {
    registries: Vec<String>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Registry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror: Vec<Mirror>,
    mirror_by_digest_only: bool,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Mirror {
    location: String,
    insecure: bool,
    pull_from_mirror: Option<From>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum From {
    All,
    DigestOnly,
    TagOnly,
}

/// The hosts for `reference`, mirrors first; None: no file has an entry for it. `tls` finds the TLS files of a host.
pub(super) fn hosts_for(
    path: &Path,
    reference: &Reference,
    tls: impl Fn(&str) -> Result<Tls, ImageError>,
) -> Result<Option<Vec<Host>>, ImageError> {
    let Some((path, entry)) = entry_for(path, &reference.name())? else { return Ok(None) };
    let wrong = |reason: String| ImageError::Hosts { path: path.clone(), reason };
    if entry.blocked {
        return Err(ImageError::Blocked { what: reference.to_string(), path });
    }
    let mut found = Vec::new();
    let mut add = |location: &str, insecure: bool, mirror: bool| {
        let target = rewritten(&reference.name(), &entry.prefix, location).ok_or_else(|| {
            wrong(format!("location {location:?} of {:?} is not host[/path]", entry.prefix))
        })?;
        let (registry, repository) = target;
        let mut tls = tls(&registry)?;
        tls.skip_verify |= insecure;
        let schemes: &[&str] = if insecure { &["https", "http"] } else { &["https"] };
        for scheme in schemes {
            let host = hosts::located(scheme, &registry, &repository, tls.clone(), mirror);
            let host = host.map_err(|e| wrong(e.to_string()))?;
            // A wildcard without a location names no host.
            let reach = if location.is_empty() { Reach::of_reference(&host.base) } else { host.reach };
            found.push(Host { origin: Some(path.clone()), reach, ..host });
        }
        Ok(())
    };
    let by_digest = matches!(reference.target(), Target::Digest(_));
    for mirror in &entry.mirror {
        let from = match (mirror.pull_from_mirror, entry.mirror_by_digest_only) {
            (Some(_), true) => {
                return Err(wrong(format!(
                    "{:?} has mirror-by-digest-only, and its mirror {:?} pull-from-mirror; use one of them",
                    entry.prefix, mirror.location
                )));
            }
            (None, true) => From::DigestOnly,
            (from, false) => from.unwrap_or(From::All),
        };
        if from == From::All || (from == From::DigestOnly) == by_digest {
            add(&mirror.location, mirror.insecure, true)?;
        }
    }
    add(&entry.location, entry.insecure, false)?;
    Ok(Some(found))
}

/// The entry with the longest prefix of `name`; the later file's if two have the same prefix.
fn entry_for(path: &Path, name: &str) -> Result<Option<(PathBuf, Registry)>, ImageError> {
    let mut drop_in_dir = path.as_os_str().to_owned();
    drop_in_dir.push(".d");
    let mut best: Option<(PathBuf, Registry)> = None;
    for path in std::iter::once(path.to_owned()).chain(files::drop_ins(Path::new(&drop_in_dir), "conf")?) {
        let Some(text) = files::read(&path)? else { continue };
        for entry in parse(&path, &text)? {
            let longer = best.as_ref().is_none_or(|(_, found)| entry.prefix.len() >= found.prefix.len());
            if longer && covered(name, &entry.prefix).is_some() {
                best = Some((path.clone(), entry));
            }
        }
    }
    Ok(best)
}

fn parse(path: &Path, text: &str) -> Result<Vec<Registry>, ImageError> {
    let wrong = |reason: String| ImageError::Hosts { path: path.to_owned(), reason };
    let file: File = toml::from_str(text).map_err(|e| wrong(files::toml_error(text, &e)))?;
    // Not to be skipped: a block list of the old format would be lifted by it.
    for key in ["block", "insecure"] {
        if file.registries.get(key).is_some_and(|list| !list.registries.is_empty()) {
            return Err(wrong(format!("[registries.{key}] is version 1 of the format; use [[registry]]")));
        }
    }
    let ignore = |rest: &Rest| {
        for key in rest.keys() {
            tracing::debug!(file = %path.display(), key, "key of registries.conf is not acted on");
        }
    };
    ignore(&file.rest);
    let mut entries = file.registry;
    for entry in &mut entries {
        ignore(&entry.rest);
        entry.mirror.iter().for_each(|mirror| ignore(&mirror.rest));
        entry.prefix = entry.prefix.trim_end_matches('/').to_owned();
        let wildcard = entry.prefix.starts_with("*.");
        match (entry.prefix.is_empty(), entry.location.is_empty()) {
            (true, true) => return Err(wrong("a [[registry]] has neither prefix nor location".into())),
            (true, false) => entry.prefix.clone_from(&entry.location),
            (false, true) if !wildcard => entry.location.clone_from(&entry.prefix),
            _ => {}
        }
        if entry.prefix.contains('*') && (!wildcard || entry.prefix[1..].contains(['*', '/'])) {
            return Err(wrong(format!("prefix {:?}: a wildcard is *.host", entry.prefix)));
        }
    }
    Ok(entries)
}

/// The part of `name` after `prefix`; None: no match.
fn covered<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    match prefix.strip_prefix('*') {
        Some(suffix) => {
            let host = name.split('/').next().unwrap_or_default();
            // `*.example` is any depth below, and not `.example` alone.
            (host.len() > suffix.len() && host.ends_with(suffix)).then(|| &name[host.len()..])
        }
        None => name.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/')),
    }
}

/// Host and repository at `location`; an empty location leaves the name unchanged.
fn rewritten(name: &str, prefix: &str, location: &str) -> Option<(String, String)> {
    let location = location.trim_end_matches('/');
    let whole =
        if location.is_empty() { name.to_owned() } else { format!("{location}{}", covered(name, prefix)?) };
    let (host, repository) = whole.split_once('/')?;
    (!host.is_empty() && !repository.is_empty()).then(|| (host.to_owned(), repository.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        unqualified-search-registries = ["evil.example"]
        short-name-mode = "enforcing"
        [aliases]
        "busybox" = "evil.example/busybox"
        [[registry]]
        location = "docker.io"
        [[registry.mirror]]
        location = "m.example:5000/hub"
        [[registry.mirror]]
        location = "t.example"
        pull-from-mirror = "tag-only"
        future = 1
        [[registry.mirror]]
        location = "d.example"
        pull-from-mirror = "digest-only"
        insecure = true
        [[registry]]
        prefix = "docker.io/secret"
        blocked = true
        [[registry]]
        prefix = "r.example/a"
        location = "in.example/b/c"
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = "d.example/x"
        [[registry]]
        prefix = "*.wild.example"
        insecure = true
    "#;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.conf");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn asked(path: &Path, name: &str) -> Vec<String> {
        let reference = Reference::parse(name).unwrap();
        let hosts = hosts_for(path, &reference, |_| Ok(Tls::default())).unwrap().unwrap_or_default();
        hosts.iter().map(|h| format!("{}{}", h.base, h.repository.as_deref().unwrap())).collect()
    }

    #[test]
    fn names_are_rewritten_and_mirrors_chosen_by_target() {
        let (_dir, path) = file(TEXT);
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(
            asked(&path, "busybox"),
            [
                "https://m.example:5000/v2/hub/library/busybox",
                "https://t.example/v2/library/busybox",
                "https://registry-1.docker.io/v2/library/busybox"
            ]
        );
        assert_eq!(
            asked(&path, &format!("busybox@{digest}"))[1..],
            [
                "https://d.example/v2/library/busybox",
                "http://d.example/v2/library/busybox",
                "https://registry-1.docker.io/v2/library/busybox"
            ]
        );
        assert_eq!(asked(&path, "r.example/a/x:1"), ["https://in.example/v2/b/c/x"]);
        assert_eq!(
            asked(&path, &format!("r.example/a/x@{digest}")),
            ["https://d.example/v2/x/x", "https://in.example/v2/b/c/x"]
        );
        assert_eq!(asked(&path, "r.example/ab/x"), Vec::<String>::new());
        assert_eq!(
            asked(&path, "a.b.wild.example/x"),
            ["https://a.b.wild.example/v2/x", "http://a.b.wild.example/v2/x"]
        );
        assert!(asked(&path, "wild.example/x").is_empty());
    }

    #[test]
    fn the_longest_prefix_blocks_and_a_later_file_replaces() {
        let (dir, path) = file(TEXT);
        let blocked = Reference::parse("secret/x").unwrap();
        let error = hosts_for(&path, &blocked, |_| Ok(Tls::default())).unwrap_err();
        assert!(matches!(error, ImageError::Blocked { .. }), "{error}");
        let drop_ins = dir.path().join("registries.conf.d");
        std::fs::create_dir(&drop_ins).unwrap();
        let unblock = "[[registry]]\nprefix = \"docker.io/secret\"\nlocation = \"free.example/s\"\n";
        std::fs::write(drop_ins.join("10.conf"), unblock).unwrap();
        std::fs::write(drop_ins.join("20.toml"), "not read").unwrap();
        assert_eq!(asked(&path, "secret/x"), ["https://free.example/v2/s/x"]);
        assert!(asked(Path::new("/nonexistent/registries.conf"), "busybox").is_empty());
    }

    #[test]
    fn a_broken_file_is_an_error_and_not_a_fallback() {
        for text in [
            "[[registry]]",
            "[[registry]]\nprefix = 1",
            "x =",
            "[registries.block]\nregistries = [\"docker.io\"]",
            "[[registry]]\nprefix = \"a.*.example\"",
            "[[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\npull-from-mirror = \"never\"",
            "[[registry]]\nlocation = \"docker.io\"\nmirror-by-digest-only = true\n[[registry.mirror]]\n\
             location = \"m.example\"\npull-from-mirror = \"all\"",
            "[[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"/x\"",
            "[[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"m ex:y\"",
        ] {
            let (_dir, path) = file(text);
            let reference = Reference::parse("busybox").unwrap();
            let error = hosts_for(&path, &reference, |_| Ok(Tls::default())).unwrap_err();
            assert!(
                matches!(&error, ImageError::Hosts { path: told, .. } if *told == path),
                "{text}: {error}"
            );
        }
        let (_dir, path) = file("[registries.search]\nregistries = [\"docker.io\"]");
        assert!(asked(&path, "busybox").is_empty());
    }
}
