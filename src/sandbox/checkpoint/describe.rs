//! Who the container and its pod were, in the files and words of the peers, so that checkpointctl and they can read our
//! checkpoints. For people and tools: nothing here is believed when a checkpoint is restored, but names and images, which
//! have to agree with the request.

use crate::model::{SandboxSpec, Timestamp};
use crate::sandbox::acts::node::Node;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::layout::{CONFIG_DUMP, LOG, POD_DUMP, POD_OPTIONS, SPEC_DUMP, STATUS_DUMP};
use crate::sandbox::words::snapshot::{ContainerSnapshot, PodSnapshot};
use crate::sandbox::words::state::ContainerState;
use podwright_sys::path::{open_directory_without_links, reopen_regular};
use rustix::fs::{Mode, OFlags, openat};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

/// Bytes of a log's end that are copied.
const MAX_LOG: u64 = 64 << 20;
/// Version of a pod's checkpoint.
pub(super) const POD_VERSION: u32 = 1;

/// Files by name, to be written into a directory.
#[derive(Debug)]
pub(super) struct Description(Vec<(&'static str, Value)>, Option<PathBuf>);

/// What a restore reads of `config.dump`.
#[derive(Debug, Deserialize)]
pub(super) struct ConfigDump {
    /// Our image's id; with peers a name.
    #[serde(default, rename = "rootfsImage")]
    image: String,
    /// A name with a digest, or an image's id.
    #[serde(default, rename = "rootfsImageRef")]
    reference: String,
    /// A name, for what has no reference: it may be another image's by now.
    #[serde(default, rename = "rootfsImageName")]
    name: String,
}

impl ConfigDump {
    /// The id of its image, where it is known.
    pub(super) fn id(&self) -> Option<&str> {
        let is_id = |text: &&str| text.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64);
        Some(self.image.as_str()).filter(is_id)
    }

    /// Names of its image, the surest first.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let named = if self.reference.is_empty() { &self.name } else { &self.reference };
        self.id().into_iter().chain([named.as_str()]).filter(|name| !name.is_empty())
    }
}

/// `pod.options`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PodOptions {
    pub(super) version: u32,
    /// Names, which are those of their directories.
    pub(super) containers: Vec<String>,
}

impl Description {
    pub(super) fn write(&self, dir: &Path) -> Result<(), SandboxError> {
        for (name, value) in &self.0 {
            let path = dir.join(name);
            std::fs::write(&path, value.to_string()).map_err(SandboxError::io("write", &path))?;
        }
        if let Some(config) = &self.1 {
            let path = dir.join(SPEC_DUMP);
            std::fs::copy(config, &path).map_err(SandboxError::io("copy the OCI configuration to", &path))?;
        }
        Ok(())
    }
}

/// The files beside a container's images.
pub(super) fn container(node: &Node, pod: &PodSnapshot, container: &ContainerSnapshot) -> Description {
    let spec = &container.spec;
    let started = match &container.state {
        ContainerState::Running { since, .. } => since.nanos(),
        ContainerState::Creating
        | ContainerState::Created
        | ContainerState::Starting
        | ContainerState::Exited { .. } => 0,
    };
    let config = json!({
        "id": spec.id,
        "name": spec.name,
        "rootfsImage": spec.image.id,
        "rootfsImageRef": spec.image.reference,
        "rootfsImageName": spec.image.display,
        "runtime": pod.runtime.name(),
        "createdTime": rfc3339(spec.created_at),
        "checkpointedTime": rfc3339(Timestamp::now()),
        "restoredTime": "0001-01-01T00:00:00Z",
        "restored": false,
    });
    let status = json!({
        "id": spec.id,
        "metadata": { "name": spec.name, "attempt": spec.attempt },
        // CONTAINER_RUNNING
        "state": 1,
        "created_at": spec.created_at.nanos(),
        "started_at": started,
        "image": { "image": spec.image.display },
        "image_ref": spec.image.reference,
        "image_id": spec.image.id,
        "labels": spec.labels,
        "annotations": spec.annotations,
        "log_path": spec.log_path,
    });
    let bundle = node.places.bundle(&spec.id).join("config.json");
    Description(vec![(CONFIG_DUMP, config), (STATUS_DUMP, status)], Some(bundle))
}

/// The files beside the containers of a pod.
pub(super) fn pod(spec: &SandboxSpec, containers: Vec<String>) -> Description {
    let name = &spec.name;
    let pod = json!({
        "metadata": {
            "name": name.name, "uid": name.uid, "namespace": name.namespace, "attempt": name.attempt,
        },
        "hostname": spec.hostname,
    });
    let options = json!(PodOptions { version: POD_VERSION, containers });
    Description(vec![(POD_DUMP, pod), (POD_OPTIONS, options)], None)
}

/// Copies the log, below the pod's log directory, if it is a plain file and no link leads to it: whoever may write into the
/// log directory must not choose what is read. Of a long one the end, from a line on: a kubelet rotates logs at 10 MiB, and
/// how long one becomes without is its container's choice.
pub(super) fn copy_log(log: Option<(&Path, &Path)>, dir: &Path) -> Result<(), SandboxError> {
    let Some((top, log)) = log else { return Ok(()) };
    let (Some(parent), Some(name)) = (log.parent(), log.file_name()) else { return Ok(()) };
    let Ok(below) = parent.strip_prefix(top) else { return Ok(()) };
    let Ok(directory) = open_directory_without_links(top, below, None) else { return Ok(()) };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(place) = openat(&directory, name, flags, Mode::empty()) else { return Ok(()) };
    let Ok(Some(file)) = reopen_regular(place.as_fd(), OFlags::RDONLY) else { return Ok(()) };
    let mut file = File::from(file);
    let copy = dir.join(LOG);
    copy_end(&mut file, &copy, MAX_LOG).map_err(SandboxError::io("copy the log to", &copy))
}

fn copy_end(file: &mut File, copy: &Path, most: u64) -> std::io::Result<()> {
    let start = file.metadata()?.len().saturating_sub(most);
    file.seek(SeekFrom::Start(start))?;
    let mut end = BufReader::new(file.take(most));
    if start > 0 {
        end.skip_until(b'\n')?;
    }
    std::io::copy(&mut end, &mut File::create(copy)?).map(drop)
}

/// As Go writes and reads times.
fn rfc3339(at: Timestamp) -> String {
    let (seconds, nanos) = (at.nanos().div_euclid(1_000_000_000), at.nanos().rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days of years that begin in March, in cycles of 400 years, so that a leap day is the last of its year.
    let days = days + 719_468;
    let (cycle, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = cycle * 400 + year + carry;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_gos() {
        assert_eq!(rfc3339(Timestamp(0)), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(Timestamp(951_782_400_000_000_001)), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(rfc3339(Timestamp(1_767_225_599_999_999_999)), "2025-12-31T23:59:59.999999999Z");
        assert_eq!(rfc3339(Timestamp(1_772_323_200_000_000_000)), "2026-03-01T00:00:00.000000000Z");
    }

    #[test]
    fn a_log_that_is_a_link_or_no_file_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let (log, link) = (dir.path().join("0.log"), dir.path().join("link"));
        std::fs::write(&log, "said").unwrap();
        std::os::unix::fs::symlink(&log, &link).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("up")).unwrap();
        let through = dir.path().join("up/0.log");
        for (from, copied) in
            [(&link, false), (&dir.path().to_owned(), false), (&through, false), (&log, true)]
        {
            copy_log(Some((dir.path(), from)), dir.path()).unwrap();
            assert_eq!(dir.path().join(LOG).exists(), copied, "{}", from.display());
        }
        copy_log(Some((dir.path(), &dir.path().join("none"))), dir.path()).unwrap();
        copy_log(None, dir.path()).unwrap();
    }

    #[test]
    fn of_a_long_log_whole_lines_of_its_end_are_copied() {
        let dir = tempfile::tempdir().unwrap();
        let (log, copy) = (dir.path().join("log"), dir.path().join("copy"));
        std::fs::write(&log, "first line\nsecond line\nthird line\n").unwrap();
        for (most, expected) in [
            (1000, "first line\nsecond line\nthird line\n"),
            (25, "second line\nthird line\n"),
            (15, "third line\n"),
        ] {
            copy_end(&mut File::open(&log).unwrap(), &copy, most).unwrap();
            assert_eq!(std::fs::read_to_string(&copy).unwrap(), expected, "{most}");
        }
        // A terabyte, sparse, and without a line's end.
        let sparse = File::create(&log).unwrap();
        sparse.set_len(1 << 40).unwrap();
        copy_log(Some((dir.path(), &log)), dir.path()).unwrap();
        assert!(std::fs::metadata(dir.path().join(LOG)).unwrap().len() <= MAX_LOG);
    }
}
