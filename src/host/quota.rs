//! Project quotas: each container's writable layer is a project of its file system, which counts its usage and may
//! limit it. Owns the ids and the calls; never walks a tree and never decides about limits.
//!
//! The id is stored on the directory itself, so a restart reads it back, and no list can get out of step.

use podwright_sys::quota::{self, ProjectQuota, ProjectUsage};
use rustix::fs::{Mode, OFlags};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Ids tried before giving up: those used elsewhere are skipped, and are few.
const TRIES: u32 = 1024;

/// Why a project could not be created, read or limited.
#[derive(Debug, thiserror::Error)]
pub enum QuotaError {
    /// A system call.
    #[error("{operation} {path}: {source}")]
    Io {
        /// The operation.
        operation: &'static str,
        /// Its object.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// A limit was requested that would not be enforced.
    #[error(
        "{key} is set, but the file system of {path} has no project quotas ({found}): on xfs mount it with the option \
         prjquota; on ext4 make it with `mkfs.ext4 -O quota,project -E quotatype=prjquota` (or `tune2fs -O quota,project \
         -Q prjquota` while it is not mounted) and mount it with prjquota; or set {key} = 0"
    )]
    NotEnforced {
        /// The configuration's key.
        key: &'static str,
        /// Parent of writable layers.
        path: PathBuf,
        /// The available mode.
        found: &'static str,
    },
    /// All ids are taken.
    #[error("no free project id between {first} and {last} for {path}: see containers.project_id_count")]
    NoId {
        /// First of the range.
        first: u32,
        /// Last of the range.
        last: u32,
        /// The directory concerned.
        path: PathBuf,
    },
}

/// Hard limits of a project; 0: none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

impl Limits {
    /// Whether there is any.
    #[must_use]
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

/// The projects of one directory's file system.
#[derive(Debug)]
pub struct Projects {
    /// Any descriptor of the file system: quotactl_fd(2) takes it.
    file_system: OwnedFd,
    range: Range<u32>,
    ids: Mutex<Ids>,
}

#[derive(Debug, Default)]
struct Ids {
    of: HashMap<PathBuf, u32>,
    taken: HashSet<u32>,
    /// Position of the next search, so that an id is reused as late as possible.
    next: u32,
}

impl Projects {
    /// The projects of the file system of `parent`; None where it keeps no usage of projects. Directories in `parent`
    /// that have an id of the range keep it.
    ///
    /// # Errors
    /// If `limits` are requested that would not be enforced, or the directory cannot be read.
    pub fn detect(parent: &Path, range: Range<u32>, limits: Limits) -> Result<Option<Self>, QuotaError> {
        let file_system = open(parent)?;
        let state = quota::project_quota(file_system.as_fd()).map_err(io("ask for quotas of", parent))?;
        let found = match state {
            ProjectQuota::Enforced if range.is_empty() => Some("containers.project_id_count is 0"),
            ProjectQuota::Enforced => None,
            ProjectQuota::Accounted => Some("it counts, but does not limit"),
            ProjectQuota::Off => Some("they are off"),
        };
        if let (Some(found), true) = (found, limits.any()) {
            let key = if limits.bytes > 0 {
                "containers.writable_layer_limit_bytes"
            } else {
                "containers.writable_layer_limit_inodes"
            };
            return Err(QuotaError::NotEnforced { key, path: parent.to_owned(), found });
        }
        if state == ProjectQuota::Off || range.is_empty() {
            return Ok(None);
        }
        let projects =
            Self { file_system, ids: Mutex::new(Ids { next: range.start, ..Ids::default() }), range };
        for entry in std::fs::read_dir(parent).map_err(io("read", parent))? {
            let path = entry.map_err(io("read", parent))?.path();
            if path.is_dir() {
                projects.remember(&path)?;
            }
        }
        Ok(Some(projects))
    }

    fn remember(&self, directory: &Path) -> Result<(), QuotaError> {
        let opened = open(directory)?;
        let id = quota::project_of(opened.as_fd()).map_err(io("read the project of", directory))?;
        if self.range.contains(&id) {
            let mut ids = self.ids();
            if ids.taken.insert(id) {
                ids.of.insert(directory.to_owned(), id);
            } else {
                // Only a copy made by hand gets here; its usage is walked.
                // Log: A writable layer was copied by hand. Its usage is walked.
                // Do: Nothing.
                tracing::warn!(directory = %directory.display(), id, "another directory has the same project id");
            }
            ids.next = ids.next.max(id.saturating_add(1));
        }
        Ok(())
    }

    /// Makes an empty directory a project of its own, with these limits; new files in it belong to it.
    ///
    /// # Errors
    /// If no id is free or the kernel refuses; the directory then has none.
    pub fn assign(&self, directory: &Path, limits: Limits) -> Result<u32, QuotaError> {
        let opened = open(directory)?;
        let id = self.take(directory)?;
        // Limits last: without a directory that has the id, they would never be removed.
        let assigned = quota::set_project(opened.as_fd(), id)
            .and_then(|()| self.limit(id, limits))
            .map_err(io("make a project of", directory));
        match assigned {
            Ok(()) => Ok(id),
            Err(error) => {
                self.release(directory);
                Err(error)
            }
        }
    }

    fn limit(&self, id: u32, limits: Limits) -> std::io::Result<()> {
        if !limits.any() {
            return Ok(());
        }
        quota::set_project_limits(self.file_system.as_fd(), id, limits.bytes, limits.inodes)
    }

    fn take(&self, directory: &Path) -> Result<u32, QuotaError> {
        let mut ids = self.ids();
        for _ in 0..TRIES {
            let id = if self.range.contains(&ids.next) { ids.next } else { self.range.start };
            ids.next = id.saturating_add(1);
            if !self.range.contains(&id) || ids.taken.contains(&id) {
                continue;
            }
            let used = quota::project_usage(self.file_system.as_fd(), id)
                .map_err(io("read a project's usage for", directory))?;
            // Another user's, or ours with files that a process still has open.
            if used != ProjectUsage::default() {
                continue;
            }
            ids.taken.insert(id);
            ids.of.insert(directory.to_owned(), id);
            return Ok(id);
        }
        let (first, last) = (self.range.start, self.range.end.saturating_sub(1));
        Err(QuotaError::NoId { first, last, path: directory.to_owned() })
    }

    /// The id of a directory that has one of ours.
    #[must_use]
    pub fn id(&self, directory: &Path) -> Option<u32> {
        self.ids().of.get(directory).copied()
    }

    /// Usage of a project, by the file system's own count.
    ///
    /// # Errors
    /// When the kernel refuses, as after a remount without quotas.
    pub fn usage(&self, id: u32) -> std::io::Result<ProjectUsage> {
        quota::project_usage(self.file_system.as_fd(), id)
    }

    /// Gives the id of a removed directory back. Harmless where it has none.
    pub fn release(&self, directory: &Path) {
        let mut ids = self.ids();
        let Some(id) = ids.of.remove(directory) else { return };
        // Without limits and files the file system forgets it.
        if let Err(error) = quota::set_project_limits(self.file_system.as_fd(), id, 0, 0) {
            tracing::debug!(id, %error, "a project keeps its limits");
        }
        ids.taken.remove(&id);
    }

    fn ids(&self) -> MutexGuard<'_, Ids> {
        // Every section leaves the tables whole.
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> QuotaError {
    let path = path.to_owned();
    move |source| QuotaError::Io { operation, path, source }
}

/// Not O_PATH, which takes no ioctl.
fn open(directory: &Path) -> Result<OwnedFd, QuotaError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty()).map_err(|e| io("open", directory)(e.into()))
}
