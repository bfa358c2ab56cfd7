//! Looks at one layer, or one config. Owns the thread that does it, the digest, and what follows from which evidence.
//!
//! The tar is made again from recipe and files. Its digest tells whether all data is right. From the same tar a skeleton,
//! a layer without data, is unpacked by the code that unpacked the layer; what differs between the two in names and
//! metadata is damage. So whatever a layer may hold, there is no second opinion of how it should look.

use super::compare;
use super::found::{Damage, Depth, Finding};
use crate::images::Shared;
use crate::images::artifact;
use crate::images::digest::{Digest, Hasher};
use crate::images::directories;
use crate::images::error::{ImageError, cut};
use crate::images::manifest::Descriptor;
use crate::images::offload::blocking;
use crate::images::recipe::{self, RECIPE, Recreated};
use crate::images::staging::Staging;
use crate::images::unpack::{Blame, Limits, Unpacked, skeleton};
use crate::images::worker::{Parser, cannot_start};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;
use tokio::sync::oneshot;

/// Bytes of tar at a time.
const BUFFER: usize = 256 << 10;
/// Nice value of the thread, the lowest priority: verification is never urgent.
const NICE: i32 = 19;
/// The layer was unpacked within limits once, and a skeleton holds no data.
const NO_LIMITS: Limits = Limits { bytes: u64::MAX, entries: u64::MAX };

/// How a layer came to be.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// Unpacked from the tar with this digest.
    Tar(Digest),
    /// A file of an artifact.
    File { key: Digest, path: PathBuf, blob: Descriptor },
    /// Made by `directories`.
    Directories,
}

/// What was found.
#[derive(Debug)]
pub(super) enum Verdict {
    Good(Depth),
    Damaged(Vec<Finding>),
}

impl Verdict {
    fn of(findings: Vec<Finding>, depth: Depth) -> Self {
        if findings.is_empty() { Self::Good(depth) } else { Self::Damaged(findings) }
    }

    fn one(path: &[u8], damage: Damage) -> Self {
        Self::Damaged(vec![finding(path, damage)])
    }
}

pub(super) fn finding(path: &[u8], damage: Damage) -> Finding {
    Finding { path: cut(&String::from_utf8_lossy(path)), damage }
}

/// One layer's verification.
pub(super) struct Task {
    layer_dir: PathBuf,
    staging_dir: PathBuf,
    key: String,
    kind: Kind,
    inodes: u64,
    stop: Arc<AtomicBool>,
}

/// Stops the thread when nobody waits any more.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Task {
    pub(super) fn new(inner: &Shared, key: &str, kind: Kind, inodes: u64) -> Self {
        Self {
            layer_dir: inner.store.layer_dir(key),
            staging_dir: inner.store.staging_dir(),
            key: key.to_owned(),
            kind,
            inodes,
            stop: Arc::default(),
        }
    }

    /// Runs on a thread of its own, as its priority stays lowered.
    pub(super) async fn run(self) -> Result<Verdict, ImageError> {
        let (done, outcome) = oneshot::channel();
        let _stop = StopOnDrop(Arc::clone(&self.stop));
        let path = self.layer_dir.clone();
        std::thread::Builder::new()
            .name("layer-verify".into())
            .spawn(move || {
                let own = Some(rustix::thread::gettid());
                // On Linux a thread's number names the thread alone.
                if let Err(error) = rustix::process::setpriority_process(own, NICE) {
                    tracing::debug!(%error, "verification runs at normal priority");
                }
                // Nobody listens when the caller is gone.
                let _ = done.send(self.check());
            })
            .map_err(|e| ImageError::io("start a thread for", &path, e))?;
        outcome.await.unwrap_or_else(|_| Err(stopped()))
    }

    fn check(&self) -> Result<Verdict, ImageError> {
        let fs = self.layer_dir.join("fs");
        if !fs.symlink_metadata().is_ok_and(|m| m.is_dir()) {
            return Ok(Verdict::one(b"", Damage::Lost));
        }
        match &self.kind {
            Kind::Directories => Ok(match directories::key_of(&fs)? {
                Ok(key) if key == self.key => Verdict::Good(Depth::Whole),
                Ok(_) => Verdict::one(b"", Damage::Directories),
                Err(path) => Verdict::one(&path, Damage::Extra),
            }),
            Kind::Tar(_) if !recipe::exists(&self.layer_dir) => {
                let found = compare::count(&fs)?;
                Ok(if found == self.inodes {
                    Verdict::Good(Depth::InodesOnly)
                } else {
                    Verdict::one(b"", Damage::Inodes { expected: self.inodes, found })
                })
            }
            Kind::Tar(diff_id) => self.tar(&fs, diff_id),
            Kind::File { path, blob, .. } => self.file(&fs, path, blob),
        }
    }

    fn file(&self, fs: &Path, path: &Path, blob: &Descriptor) -> Result<Verdict, ImageError> {
        let staging = Staging::new(&self.staging_dir)?;
        artifact::write(&staging, path, &mut io::empty(), &Blame::new(&self.key), NO_LIMITS)?;
        let expected = staging.fs().join(path);
        let resize = || {
            let file = File::options().write(true).open(&expected)?;
            file.set_len(blob.size)?;
            file.set_modified(SystemTime::UNIX_EPOCH)
        };
        resize().map_err(|e| ImageError::io("set the size of", &expected, e))?;
        let mut findings = compare::trees(&staging.fs(), fs, &[], &self.stop)?;
        // Only what was found to be a file where a file belongs is read.
        if findings.is_empty() {
            let actual = fs.join(path);
            let read = || -> io::Result<Digest> {
                let mut hasher = blob.digest.hasher();
                let (mut file, mut buffer) = (File::open(&actual)?, vec![0; BUFFER]);
                loop {
                    match file.read(&mut buffer)? {
                        0 => return Ok(hasher.finish()),
                        _ if self.stop.load(Ordering::Relaxed) => return Err(io::Error::other(stopped())),
                        length => hasher.update(&buffer[..length]),
                    }
                }
            };
            if read().map_err(|e| ImageError::io("read", &actual, e))? != blob.digest {
                let damage = Damage::Content { reason: "its content has changed" };
                findings.push(finding(path.as_os_str().as_bytes(), damage));
            }
        }
        Ok(Verdict::of(findings, Depth::Whole))
    }

    fn tar(&self, fs: &Path, diff_id: &Digest) -> Result<Verdict, ImageError> {
        let recipe_damage = |reason: String| Verdict::one(RECIPE.as_bytes(), Damage::Recipe { reason });
        let recreated = match Recreated::open(&self.layer_dir, recipe::Damage::Told(Vec::new())) {
            Ok(recreated) => recreated,
            Err(error @ ImageError::DamagedLayer { .. }) => return Ok(recipe_damage(error.to_string())),
            Err(error) => return Err(error),
        };
        let staging = Staging::new(&self.staging_dir)?;
        let hashed = Hashed { recreated, hasher: diff_id.hasher(), stop: &self.stop };
        let mut source = BufReader::with_capacity(BUFFER, hashed);
        let parser = Parser::start().map_err(cannot_start)?;
        let made = skeleton(&mut source, parser, staging.path(), &self.key, NO_LIMITS);
        let Unpacked { implied, .. } = match made {
            Ok(unpacked) => unpacked,
            Err(
                error @ (ImageError::DamagedLayer { .. }
                | ImageError::CorruptLayer { .. }
                | ImageError::HostileEntry { .. }
                | ImageError::Limit { .. }),
            ) => return Ok(recipe_damage(error.to_string())),
            Err(error) => return Err(error),
        };
        let Hashed { recreated, hasher, .. } = source.into_inner();
        let (told, actual) = (recreated.into_told(), hasher.finish());
        if told.is_empty() && actual != *diff_id {
            return Ok(recipe_damage(format!("it makes a tar with the digest {actual}")));
        }
        let mut findings = compare::trees(&staging.fs(), fs, &implied, &self.stop)?;
        for (path, reason) in told {
            // What it is instead says more than that its data cannot be had.
            let finding = finding(&path, Damage::Content { reason });
            if !findings.iter().any(|f| f.path == finding.path && tells_why(&f.damage)) {
                findings.push(finding);
            }
        }
        Ok(Verdict::of(findings, Depth::Whole))
    }
}

/// Whether the damage explains that a file's data is not right.
fn tells_why(damage: &Damage) -> bool {
    matches!(damage, Damage::Missing | Damage::Kind { .. } | Damage::Size { .. })
}

pub(super) fn stopped() -> ImageError {
    ImageError::Interrupted { what: "the verification".into() }
}

/// The tar, hashed as it passes.
struct Hashed<'s> {
    recreated: Recreated,
    hasher: Hasher,
    stop: &'s AtomicBool,
}

impl Read for Hashed<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other(stopped()));
        }
        let length = self.recreated.read(into)?;
        self.hasher.update(&into[..length]);
        Ok(length)
    }
}

fn matches(wanted: &str, bytes: &[u8]) -> bool {
    Digest::parse(wanted).is_ok_and(|digest| digest.of_same_kind(bytes) == digest)
}

/// Looks at an image's config, which should have the digest `wanted`.
pub(super) async fn config(inner: &Shared, id: &str, wanted: &str) -> Result<Verdict, ImageError> {
    let (store, id, wanted) = (Arc::clone(&inner.store), id.to_owned(), wanted.to_owned());
    blocking(move || {
        let config = store.index().config(&id)?;
        let good = config.is_some_and(|bytes| matches(&wanted, &bytes));
        Ok(if good { Verdict::Good(Depth::Whole) } else { Verdict::one(b"", Damage::Digest) })
    })
    .await
}
