//! Room in `state`, a file system in memory that all pods share: what containers put there is refused while enough is left
//! for what must go on, commands of probes, stops and removals. One pod has a part of it. Never waits, removes nothing.
//!
//! What a container puts there is its OCI configuration, once for us and once more for the OCI runtime while it runs.

use crate::config::Config;
use crate::model::ContainerId;
use crate::sandbox::offload::OffThread;
use crate::sandbox::words::error::SandboxError;
use std::path::{Path, PathBuf};

/// Bytes that no container takes: half of it for starts of containers that exist, and for pods; the rest for the process
/// files of commands ([`super::process_file`]), exit records and whatever stops and removals write.
const RESERVE: u64 = 32 << 20;
/// But no more than this part of a small file system.
const RESERVE_PART: u64 = 8;
/// The same for inodes; a container has some ten.
const RESERVED_INODES: u64 = 4096;
/// The OCI configurations of one pod may take this part of the file system.
const POD_PART: u64 = 16;
/// But as much as this in any case: some hundred containers with ordinary ones.
const POD_BYTES: u64 = 8 << 20;
/// A configuration up to this size is ordinary. It is kept until its container is removed, for people to look at, while a
/// larger one goes at the end of its container.
pub(in crate::sandbox) const ORDINARY: usize = 64 << 10;

/// Who wants room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) enum For {
    /// A new container: nothing of the reserve.
    Creation,
    /// A pod, or a container that exists: half of the reserve.
    Start,
}

/// A file system as it is now.
#[derive(Debug, Clone, Copy)]
struct Space {
    bytes: u64,
    free: u64,
    /// 0: it does not count them.
    inodes: u64,
    free_inodes: u64,
}

impl Space {
    fn of(path: &Path) -> Result<Self, SandboxError> {
        let found = rustix::fs::statvfs(path)
            .map_err(|error| SandboxError::io("look at the file system of", path)(error.into()))?;
        Ok(Self {
            bytes: found.f_blocks.saturating_mul(found.f_frsize),
            free: found.f_bavail.saturating_mul(found.f_frsize),
            inodes: found.f_files,
            free_inodes: found.f_favail,
        })
    }

    /// Whether so many bytes more leave of the reserve what they have to.
    fn has(&self, what: For, bytes: u64) -> bool {
        let share = |reserve: u64| match what {
            For::Creation => reserve,
            For::Start => reserve / 2,
        };
        let reserve = share(RESERVE.min(self.bytes / RESERVE_PART));
        let inodes = share(RESERVED_INODES.min(self.inodes / RESERVE_PART));
        self.free >= reserve.saturating_add(bytes) && self.free_inodes >= inodes
    }

    /// What one pod's configurations may take.
    fn of_pod(&self) -> u64 {
        (self.bytes / POD_PART).max(POD_BYTES)
    }
}

/// Whether there is room for so many bytes more. Asks the kernel only.
///
/// # Errors
/// When there is not, or `state` cannot be looked at.
pub(in crate::sandbox) fn check(
    _: &OffThread,
    config: &Config,
    what: For,
    bytes: u64,
) -> Result<(), SandboxError> {
    let state = &config.state;
    match Space::of(state)? {
        space if space.has(what, bytes) => Ok(()),
        space => Err(SandboxError::StateFull { state: state.clone(), free: space.free }),
    }
}

/// Whether a configuration may stay that was just written to the bundle of a new container: there has to be room for the
/// OCI runtime's copy, and the pod's containers, `siblings`, have a part only. Of creations side by side each sees those
/// before it.
///
/// # Errors
/// When it may not.
pub(in crate::sandbox) fn check_written(
    off: &OffThread,
    config: &Config,
    bundle: impl Fn(&ContainerId) -> PathBuf,
    siblings: &[ContainerId],
    written: usize,
) -> Result<(), SandboxError> {
    let length = |text: usize| u64::try_from(text).unwrap_or(u64::MAX);
    check(off, config, For::Creation, length(written))?;
    if written <= ORDINARY {
        return Ok(());
    }
    let most = Space::of(&config.state)?.of_pod();
    let all =
        siblings.iter().map(|id| config_bytes(off, &bundle(id))).fold(length(written), u64::saturating_add);
    if all > most { Err(SandboxError::PodConfigs { all, most }) } else { Ok(()) }
}

/// The size of a bundle's configuration; 0 where there is none.
pub(in crate::sandbox) fn config_bytes(_: &OffThread, bundle: &Path) -> u64 {
    std::fs::symlink_metadata(bundle.join("config.json")).map_or(0, |found| found.len())
}

/// The container has ended, and the runtime needs its configuration no more: a large one goes.
pub(in crate::sandbox) fn end_config(off: &OffThread, bundle: &Path) -> Result<(), SandboxError> {
    if config_bytes(off, bundle) <= u64::try_from(ORDINARY).unwrap_or(u64::MAX) {
        return Ok(());
    }
    let config = bundle.join("config.json");
    match std::fs::remove_file(&config) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(SandboxError::io("remove", &config)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::offload::here;

    #[test]
    fn a_creation_fails_before_a_start_and_both_before_there_is_no_room() {
        let space = |free: u64| Space { bytes: 1 << 30, free, inodes: 100_000, free_inodes: 50_000 };
        assert!(space(RESERVE).has(For::Creation, 0));
        assert!(!space(RESERVE).has(For::Creation, 1) && space(RESERVE).has(For::Start, 1));
        assert!(space(RESERVE / 2).has(For::Start, 0) && !space(RESERVE / 2).has(For::Start, 1));
        // Of a small one a part.
        let small = Space { bytes: 16 << 20, ..space(2 << 20) };
        assert!(small.has(For::Creation, 0) && !small.has(For::Creation, 1));
        let few = Space { free_inodes: 3000, ..space(1 << 29) };
        assert!(!few.has(For::Creation, 0) && few.has(For::Start, 0));
        // Such as btrfs, which makes inodes as it needs them.
        assert!(Space { inodes: 0, free_inodes: 0, ..space(1 << 29) }.has(For::Creation, 0));
    }

    #[test]
    fn a_pods_large_configurations_have_a_part_and_go_with_their_ends() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { state: dir.path().to_owned(), ..Config::default() };
        let bundle = |id: &ContainerId| dir.path().join(id.as_str());
        let ids: Vec<ContainerId> = (0..2).map(|_| ContainerId::random().unwrap()).collect();
        let most = Space::of(dir.path()).unwrap().of_pod();
        std::fs::create_dir(bundle(&ids[0])).unwrap();
        // A hole has the length that counts.
        let text = bundle(&ids[0]).join("config.json");
        std::fs::File::create(&text).unwrap().set_len(most - 100_000).unwrap();
        let judge = |written| check_written(&here(), &config, bundle, &ids, written);
        judge(100_000).unwrap();
        judge(ORDINARY).unwrap();
        let refused = judge(100_001).unwrap_err();
        assert!(matches!(refused, SandboxError::PodConfigs { .. }), "{refused}");
        end_config(&here(), &bundle(&ids[0])).unwrap();
        assert!(!text.exists());
        end_config(&here(), &bundle(&ids[1])).unwrap();
        judge(100_001).unwrap();
        std::fs::write(&text, "{}").unwrap();
        end_config(&here(), &bundle(&ids[0])).unwrap();
        assert!(text.exists());
    }
}
