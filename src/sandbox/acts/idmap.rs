//! The ids of pods with a user namespace of their own: what is mounted, made and written for such a pod has the ids that
//! its users have on the host. Decides no mapping; the request names it.

use super::volumes;
use crate::host::foreign::Found;
use crate::host::monitor::{IdMappings, IdRange as MonitorRange, NamespacePaths};
use crate::host::mountinfo;
use crate::host::rootfs::{self, Detached, IdMap, IdRange};
use crate::model::{IdMapping, Mount, Propagation, SandboxSpec, UserNamespace};
use crate::sandbox::spec::SpecError;
use crate::sandbox::words::error::SandboxError;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The mapping as a monitor is told it.
pub(in crate::sandbox) fn for_monitor(user: &UserNamespace) -> IdMappings {
    let ranges = |ranges: &[IdMapping]| {
        let one =
            |r: &IdMapping| MonitorRange { inside: r.container_id, outside: r.host_id, count: r.length };
        ranges.iter().map(one).collect()
    };
    IdMappings { uids: ranges(&user.uids), gids: ranges(&user.gids) }
}

fn ranges(ranges: &[IdMapping]) -> Vec<IdRange> {
    ranges.iter().map(|r| IdRange { inside: r.container_id, outside: r.host_id, count: r.length }).collect()
}

/// The pod's mapping with its user namespace, which its monitor holds; None: the pod has the host's.
pub(in crate::sandbox) fn of_pod(
    pod: &SandboxSpec,
    paths: &NamespacePaths,
) -> Result<Option<IdMap>, SandboxError> {
    let Some(user) = &pod.namespaces.user else { return Ok(None) };
    let path = paths.user.as_ref().ok_or(SpecError::MissingNamespace { kind: "user" })?;
    let namespace = std::fs::File::open(path).map_err(SandboxError::io("open", Path::new(path)))?;
    Ok(Some(IdMap::of(namespace.into(), ranges(&user.uids), ranges(&user.gids))))
}

/// What `net.ipv4.ping_group_range` may be in a user namespace: groups that are not mapped are an error to the kernel.
/// Both ends are cut to the last mapped one, where the mapping is one range from 0 on.
pub(in crate::sandbox) fn ping_group_range(asked: &str, user: &UserNamespace) -> String {
    let last = user.gids.iter().map(|r| r.container_id.saturating_add(r.length - 1)).max().unwrap_or(0);
    let cut = |end: &str| end.parse::<u32>().map_or_else(|_| end.to_owned(), |end| end.min(last).to_string());
    asked.split_whitespace().map(cut).collect::<Vec<_>>().join(" ")
}

/// Lets root of the pod, and nobody else, go through a private directory of ours: the OCI runtime mounts the container's
/// root from inside the user namespace.
pub(in crate::sandbox) fn let_through(dir: &Path, map: &IdMap) -> Result<(), SandboxError> {
    let group = map.root().map(|(_, gid)| gid);
    std::os::unix::fs::chown(dir, None, group).map_err(SandboxError::io("change the group of", dir))?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o710))
        .map_err(SandboxError::io("change the mode of", dir))
}

/// What to bind for a mount that names mappings: its source with mapped ids, mounted nowhere yet. None: any other.
/// Blocking, for as long as the source does not answer.
pub(in crate::sandbox) fn mapped_source(
    mount: &Mount,
    source: &Found,
    of_pod: Option<&IdMap>,
) -> Result<Option<Detached>, SandboxError> {
    if mount.uid_mappings.is_empty() {
        return Ok(None);
    }
    let (uids, gids) = (ranges(&mount.uid_mappings), ranges(&mount.gid_mappings));
    let own;
    let map = match of_pod.filter(|map| map.is_of(&uids, &gids)) {
        Some(map) => map,
        None => {
            own = IdMap::new(uids, gids)?;
            &own
        }
    };
    let follows = match mount.propagation {
        Propagation::Private => false,
        Propagation::HostToContainer => true,
        Propagation::Bidirectional => {
            let path = mount.container_path.clone();
            return Err(SpecError::MappedBidirectional { path }.into());
        }
    };
    if follows {
        check_follows(mount, &source.path)?;
    }
    Ok(Some(rootfs::clone_mapped(source.file.as_fd(), &source.path, map, follows)?))
}

/// Mounts such a source below `bundle`, for the mount of that number.
pub(in crate::sandbox) fn attach(
    bundle: &Path,
    number: usize,
    mapped: &Detached,
) -> Result<PathBuf, SandboxError> {
    let dir = volumes::dir(bundle);
    std::fs::create_dir_all(&dir).map_err(SandboxError::io("make directory", &dir))?;
    let target = dir.join(format!("{}{number}", volumes::MAPPED));
    let made = match mapped.is_dir {
        true => std::fs::create_dir(&target),
        false => std::fs::File::create(&target).map(drop),
    };
    made.map_err(SandboxError::io("make a mount point at", &target))?;
    mapped.attach(&target)?;
    Ok(target)
}

/// As for a mount that is not mapped, of whose source the spec's builder asks this.
fn check_follows(mount: &Mount, source: &Path) -> Result<(), SandboxError> {
    let mounts = mountinfo::read().map_err(SandboxError::io("read", Path::new("/proc/self/mountinfo")))?;
    let follows = mountinfo::holding(&mounts, source)
        .is_some_and(|host| host.shared.is_some() || host.master.is_some());
    if follows {
        return Ok(());
    }
    Err(SpecError::Propagation {
        path: mount.container_path.clone(),
        source_path: source.to_owned(),
        needed: "shared or slave",
    }
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> UserNamespace {
        let range = vec![IdMapping { host_id: 100_000, container_id: 0, length: 65_536 }];
        UserNamespace { uids: range.clone(), gids: range }
    }

    #[test]
    fn groups_that_are_not_mapped_are_cut_off() {
        assert_eq!(ping_group_range("0 2147483647", &user()), "0 65535");
        assert_eq!(ping_group_range("0\t10", &user()), "0 10");
        // What the kernel refuses, it shall refuse.
        assert_eq!(ping_group_range("x y", &user()), "x y");
    }

    #[test]
    fn ids_on_the_host() {
        assert_eq!(user().root(), Some((100_000, 100_000)));
        let gids = user().gids;
        assert_eq!(IdMapping::on_host(&gids, 65_535), Some(165_535));
        assert_eq!(IdMapping::on_host(&gids, 65_536), None);
    }

    #[test]
    fn a_private_directory_lets_the_pods_root_through() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let range = vec![IdRange { inside: 0, outside: 300_000, count: 10 }];
        let map = IdMap::new(range.clone(), range).unwrap();
        let_through(dir.path(), &map).unwrap();
        let found = std::fs::metadata(dir.path()).unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (0, 300_000, 0o710));
    }
}
