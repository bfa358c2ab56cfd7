//! Images as volumes: which images a container's mounts name, the holds that keep their layers, and the read-only
//! mounts below the container's bundle that are bound into it. Never pulls an image, and never decides when a
//! container is made or removed.
//!
//! ```text
//! <bundle>/volumes/empty    an empty directory, below an image of one layer
//! <bundle>/volumes/<n>      the n-th image, whole; a sub path is a directory in it
//! <bundle>/volumes/mapped-<n>    what the n-th mount names, with mapped ids (made by `idmap`)
//! ```

use crate::host::rootfs;
use crate::host::rootfs::IdMap;
use crate::images::{Hold, Images};
use crate::model::{ContainerSpec, ImageVolume, MountSource, ResolvedImage};
use crate::sandbox::offload::OffThread;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::volumes::{VolumeError, image_ids};
use podwright_sys::path::{open_in_root, open_root};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The holds on a container's image volumes, one an image.
pub(in crate::sandbox) type Holds = Arc<[Hold]>;

fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::Io { operation, path, source }
}

fn failed(container_path: &Path, volume: &ImageVolume, cause: impl Into<VolumeError>) -> SandboxError {
    SandboxError::ImageVolume {
        container_path: container_path.to_owned(),
        image: volume.image.clone(),
        cause: Box::new(cause.into()),
    }
}

/// Finds the images that the mounts name, notes in the spec which they are, and takes a hold on each.
pub(in crate::sandbox) fn hold(images: &Images, spec: &mut ContainerSpec) -> Result<Holds, SandboxError> {
    let mut holds: Vec<Hold> = Vec::new();
    for mount in &mut spec.mounts {
        let MountSource::Image(volume) = &mut mount.source else { continue };
        if !mount.readonly {
            return Err(failed(&mount.container_path, volume, VolumeError::Writable));
        }
        let hold = images.hold(&volume.image).map_err(|e| failed(&mount.container_path, volume, e))?;
        let image = hold.image();
        let reference = image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string());
        let id = image.id.clone();
        if !holds.iter().any(|held| held.image().id == id) {
            holds.push(hold);
        }
        volume.resolved = Some(ResolvedImage { id, reference });
    }
    Ok(holds.into())
}

/// Takes the holds of a container that lived before this process.
pub(in crate::sandbox) fn restore(images: &Images, spec: &ContainerSpec) -> Holds {
    image_ids(spec).into_iter().filter_map(|id| images.restore_hold(id)).collect()
}

/// What to bind at `container_path`: the image, mounted with `options` below `bundle` by the first mount that needs it,
/// or the directory of it that the sub path names.
pub(in crate::sandbox) fn source(
    off: &OffThread,
    bundle: &Path,
    container_path: &Path,
    volume: &ImageVolume,
    holds: &[Hold],
    map: Option<&IdMap>,
    options: &[&str],
) -> Result<PathBuf, SandboxError> {
    let mounted = mounted(off, bundle, volume, holds, map, options);
    mounted.and_then(|root| within(&root, &volume.sub_path)).map_err(|e| failed(container_path, volume, e))
}

fn mounted(
    off: &OffThread,
    bundle: &Path,
    volume: &ImageVolume,
    holds: &[Hold],
    map: Option<&IdMap>,
    options: &[&str],
) -> Result<PathBuf, VolumeError> {
    let id = volume.resolved.as_ref().map(|resolved| &resolved.id);
    let (number, hold) = holds
        .iter()
        .enumerate()
        .find(|(_, hold)| Some(&hold.image().id) == id)
        .ok_or(VolumeError::NotHeld)?;
    let (target, empty) = (dir(bundle).join(number.to_string()), dir(bundle).join("empty"));
    if !rootfs::is_mounted(&target)? {
        for dir in [&empty, &target] {
            std::fs::create_dir_all(dir).map_err(io("make directory", dir))?;
        }
        hold.check()?;
        rootfs::mount_read_only(off, hold.layers(), &empty, &target, map, options)?;
    }
    Ok(target)
}

/// The directory that a sub path names, as a path without symbolic links. Links and `..` are followed as if the image
/// were the whole file system, so that none leads out; what is read-only cannot change between this look and the
/// OCI runtime's.
fn within(root: &Path, sub_path: &str) -> Result<PathBuf, VolumeError> {
    if sub_path.is_empty() {
        return Ok(root.to_owned());
    }
    let absent = |source| VolumeError::SubPath { sub_path: sub_path.to_owned(), source };
    let image = open_root(root).map_err(io("open", root))?;
    let found =
        open_in_root(image.as_fd(), Path::new(sub_path), OFlags::PATH, Mode::empty()).map_err(absent)?;
    let stat = rustix::fs::fstat(&found).map_err(|e| absent(e.into()))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Directory {
        return Err(VolumeError::NotDirectory { sub_path: sub_path.to_owned() });
    }
    std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(absent)
}

/// Unmounts every volume below `bundle` that is of our own; may be repeated, and the bundle may be gone. Returns where those
/// are that come from the host: if nobody else has their file system any more, unmounting asks its server.
pub(in crate::sandbox) fn unmount(off: &OffThread, bundle: &Path) -> Result<Vec<PathBuf>, SandboxError> {
    let dir = dir(bundle);
    let entries = match std::fs::read_dir(&dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(SandboxError::io("list", &dir))?,
    };
    let mut of_host = Vec::new();
    for entry in entries {
        let entry = entry.map_err(SandboxError::io("list", &dir))?;
        match entry.file_name().as_encoded_bytes().starts_with(MAPPED.as_bytes()) {
            true => of_host.push(entry.path()),
            false => rootfs::unmount(off, &entry.path())?,
        }
    }
    Ok(of_host)
}

/// How the names begin of what comes from the host with mapped ids; a number follows.
pub(in crate::sandbox) const MAPPED: &str = "mapped-";

/// What is mounted for a bundle, and unmounted with it.
pub(in crate::sandbox) fn dir(bundle: &Path) -> PathBuf {
    bundle.join("volumes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::offload::here;
    use std::os::unix::fs::symlink;

    #[test]
    fn sub_paths_stay_in_the_image() {
        let outside = tempfile::tempdir().unwrap();
        let root = outside.path().canonicalize().unwrap().join("image");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::create_dir(outside.path().join("secret")).unwrap();
        std::fs::write(root.join("a/file"), "x").unwrap();
        symlink("/a/b", root.join("absolute")).unwrap();
        symlink("../../../../secret", root.join("escape")).unwrap();
        symlink(outside.path().join("secret"), root.join("host")).unwrap();
        for (sub_path, found) in [
            ("", ""),
            ("a/b", "a/b"),
            ("absolute", "a/b"),
            ("a/../absolute/..", "a"),
            ("../../a", "a"),
            (".", ""),
        ] {
            let expected = if found.is_empty() { root.clone() } else { root.join(found) };
            assert_eq!(within(&root, sub_path).unwrap(), expected, "{sub_path}");
        }
        for sub_path in ["escape", "host", "absent", "a/file/x"] {
            assert!(matches!(within(&root, sub_path), Err(VolumeError::SubPath { .. })), "{sub_path}");
        }
        assert!(matches!(within(&root, "a/file"), Err(VolumeError::NotDirectory { .. })));
    }

    #[test]
    fn a_bundle_without_volumes_is_unmounted_at_once() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(unmount(&here(), bundle.path()).unwrap().is_empty());
        assert!(unmount(&here(), &bundle.path().join("gone")).unwrap().is_empty());
        // What is the host's is left to who may wait for it.
        std::fs::create_dir_all(dir(bundle.path()).join("mapped-3")).unwrap();
        std::fs::create_dir_all(dir(bundle.path()).join("0")).unwrap();
        assert_eq!(unmount(&here(), bundle.path()).unwrap(), [dir(bundle.path()).join("mapped-3")]);
    }
}
