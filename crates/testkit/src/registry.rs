//! A loopback registry: Debian's `docker-registry`, one process per instance.
//!
//! Owns the process from start to its end, its storage and the pushing of
//! images by the distribution API (version 2). It never listens on anything but
//! 127.0.0.1 and kills only the process it started.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::http;
use crate::image::{Artifact, Blob, Image, sha256};
use crate::stand_ins::StandIn;
use crate::wait::wait_for;

/// A registry that has not bound its port by then never will.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The program, as Debian's package `docker-registry` installs it.
const PROGRAM: &str = "docker-registry";

/// A running registry. Dropping it ends the process and leaves the directory to its owner.
#[derive(Debug)]
pub struct Registry {
    child: Option<Child>,
    address: SocketAddr,
    log: PathBuf,
}

impl Registry {
    /// Starts a registry with its storage, configuration and log in `dir`; port 0 takes a free one.
    ///
    /// # Errors
    /// Fails when the program is missing or does not listen in time; the message carries its log.
    pub fn start(dir: &Path, port: u16) -> Result<Self> {
        let what = || format!("prepare registry in {}", dir.display());
        let storage = dir.join("storage");
        std::fs::create_dir_all(&storage).with_context(what)?;
        let config = dir.join("config.yml");
        std::fs::write(&config, configuration(&storage, port)).with_context(what)?;
        let log = dir.join("registry.log");
        let output = std::fs::File::create(&log).with_context(what)?;
        let mut child = Command::new(PROGRAM)
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(output.try_clone().with_context(what)?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {PROGRAM}"))?;
        let found = wait_for("registry listens", START_LIMIT, || {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(Err(anyhow::anyhow!("{PROGRAM} ended with {status}")));
            }
            listening_address(&std::fs::read_to_string(&log).unwrap_or_default()).map(Ok)
        });
        match found.and_then(|inner| inner) {
            Ok(address) => Ok(Self { child: Some(child), address, log }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.context(std::fs::read_to_string(&log).unwrap_or_default()))
            }
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its log, one line per request among others.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Process id of the registry.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Pushes one image or index under `repository:tag`.
    ///
    /// # Errors
    /// As [`push`].
    pub fn push(&self, repository: &str, tag: &str, artifact: &Artifact) -> Result<()> {
        push(self.address, repository, tag, artifact)
    }

    /// Pushes stand-ins under all their names.
    ///
    /// # Errors
    /// As [`push`].
    pub fn push_all(&self, images: &[StandIn]) -> Result<()> {
        push_all(self.address, images)
    }

    /// Pushes a manifest of any kind with the blobs that it names, such as a signature.
    ///
    /// # Errors
    /// Fails with the registry's answer when it refuses a part.
    pub fn push_raw(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        manifest: &[u8],
        blobs: &[&[u8]],
    ) -> Result<()> {
        for blob in blobs {
            put_blob(self.address, repository, &sha256(blob), blob)?;
        }
        let manifest = Blob { digest: sha256(manifest), bytes: manifest.into() };
        put_manifest(self.address, repository, tag, &manifest, media_type)
    }

    /// Lets the process outlive this value; returns its pid.
    #[must_use]
    pub fn detach(mut self) -> Option<u32> {
        self.child.take().map(|child| child.id())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn configuration(storage: &Path, port: u16) -> String {
    format!(
        "version: 0.1
log:
  level: info
  accesslog:
    disabled: false
storage:
  filesystem:
    rootdirectory: {}
    maxthreads: 100
  delete:
    enabled: true
  maintenance:
    uploadpurging:
      enabled: false
http:
  addr: 127.0.0.1:{port}
",
        storage.display()
    )
}

/// Finds the address in the line `listening on 127.0.0.1:5000` of the log.
fn listening_address(log: &str) -> Option<SocketAddr> {
    let (_, rest) = log.split_once("listening on ")?;
    let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'))?;
    rest[..end].parse().ok()
}

/// Pushes stand-ins to the registry at `address`.
///
/// # Errors
/// As [`push`].
pub fn push_all(address: SocketAddr, images: &[StandIn]) -> Result<()> {
    for image in images {
        for (repository, tag) in &image.names {
            push(address, repository, tag, &image.artifact)?;
        }
    }
    Ok(())
}

/// Pushes one image or index, its parts first.
///
/// # Errors
/// Fails with the registry's answer when it refuses a part.
pub fn push(address: SocketAddr, repository: &str, tag: &str, artifact: &Artifact) -> Result<()> {
    let push = || -> Result<()> {
        match artifact {
            Artifact::Image(image) => push_image(address, repository, tag, image),
            Artifact::Index(index) => {
                for image in &index.images {
                    push_image(address, repository, &image.manifest.digest, image)?;
                }
                put_manifest(address, repository, tag, &index.manifest, index.media_type)
            }
        }
    };
    push().with_context(|| format!("push {repository}:{tag} to {address}"))
}

fn push_image(address: SocketAddr, repository: &str, reference: &str, image: &Image) -> Result<()> {
    put_blob(address, repository, &image.config.digest, &image.config.bytes)?;
    for layer in &image.layers {
        put_blob(address, repository, &layer.digest, &layer.blob)?;
    }
    put_manifest(address, repository, reference, &image.manifest, image.media_type)
}

fn put_manifest(
    address: SocketAddr,
    repository: &str,
    reference: &str,
    manifest: &Blob,
    media_type: &str,
) -> Result<()> {
    let path = format!("/v2/{repository}/manifests/{reference}");
    let answer = http::request(address, "PUT", &path, &[("Content-Type", media_type)], &manifest.bytes)?;
    anyhow::ensure!(answer.status == 201, "PUT {path}: {} {}", answer.status, answer.text());
    Ok(())
}

fn put_blob(address: SocketAddr, repository: &str, digest: &str, bytes: &[u8]) -> Result<()> {
    let known = http::request(address, "HEAD", &format!("/v2/{repository}/blobs/{digest}"), &[], &[])?;
    if known.status == 200 {
        return Ok(());
    }
    let start = http::request(address, "POST", &format!("/v2/{repository}/blobs/uploads/"), &[], &[])?;
    let location = start.header("location").filter(|_| start.status == 202);
    let location = location.with_context(|| format!("start upload: {} {}", start.status, start.text()))?;
    let path = location.strip_prefix(&format!("http://{address}")).unwrap_or(location);
    let separator = if path.contains('?') { '&' } else { '?' };
    let path = format!("{path}{separator}digest={digest}");
    let answer =
        http::request(address, "PUT", &path, &[("Content-Type", "application/octet-stream")], bytes)?;
    anyhow::ensure!(answer.status == 201, "PUT blob {digest}: {} {}", answer.status, answer.text());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Compression, Entry, Format, ImageBuilder, Index, LayerBuilder};

    #[test]
    fn the_address_is_read_from_the_log() {
        let log = "level=info msg=\"listening on 127.0.0.1:41234\" go.version=go1.19\n";
        assert_eq!(listening_address(log), "127.0.0.1:41234".parse().ok());
        assert_eq!(listening_address("msg=\"listening on 127.0.0.1:41"), None);
    }

    #[test]
    fn a_pushed_index_can_be_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::start(dir.path(), 0).unwrap();
        let layer = LayerBuilder::new().entry(Entry::dir("d")).build(Compression::Zstd).unwrap();
        let index: Artifact = Index::new(Format::Oci, vec![ImageBuilder::new().layer(&layer).build()]).into();
        registry.push("a/b", "t", &index).unwrap();
        let accept = [("Accept", "application/vnd.oci.image.index.v1+json")];
        let answer = http::request(registry.address(), "GET", "/v2/a/b/manifests/t", &accept, &[]).unwrap();
        assert_eq!(answer.header("docker-content-digest"), Some(index.digest()));
    }
}
