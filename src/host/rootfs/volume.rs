//! The mount of an image as a volume: its layers without anything writable on top.

use super::{Context, RootfsError, checks_options, lacks_lowerdir_plus, mount_by_page};
use rustix::mount::{MountAttrFlags, MountFlags};
use std::path::{Path, PathBuf};

/// For mount(2). Devices in an image are nothing that a volume should lend.
pub(super) const FLAGS: MountFlags = MountFlags::RDONLY.union(MountFlags::NODEV);

/// Mounts `lowers` (bottom layer first) on `target`, read-only. overlayfs wants two layers where there is no upper
/// directory: `empty`, an empty directory, lies below a single one.
///
/// # Errors
/// When there is no layer, a directory is missing or the kernel refuses; nothing is left mounted then.
pub fn mount_read_only(lowers: &[PathBuf], empty: &Path, target: &Path) -> Result<(), RootfsError> {
    let padded;
    let lowers = match lowers {
        [] => return Err(RootfsError::NoLayers { target: target.to_owned() }),
        [one] => {
            padded = [empty.to_owned(), one.clone()];
            &padded
        }
        many => many,
    };
    if !checks_options() {
        return mount_by_page(lowers, None, target, &[]);
    }
    match mount_by_fsconfig(lowers, target) {
        Err(e) if lacks_lowerdir_plus(&e) => mount_by_page(lowers, None, target, &[]),
        done => done,
    }
}

fn mount_by_fsconfig(lowers: &[PathBuf], target: &Path) -> Result<(), RootfsError> {
    let mut context = Context::open("overlay", target)?;
    context.set("source", "overlay")?;
    for lower in lowers.iter().rev() {
        context.set_path("lowerdir+", lower)?;
    }
    context.finish(MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV)
}

#[cfg(test)]
mod tests {
    use super::super::unmount;
    use super::*;
    use std::fs;

    type Mount = fn(&[PathBuf], &Path, &Path) -> Result<(), RootfsError>;

    fn by_page(lowers: &[PathBuf], empty: &Path, target: &Path) -> Result<(), RootfsError> {
        let mut lowers = lowers.to_vec();
        if lowers.len() == 1 {
            lowers.insert(0, empty.to_owned());
        }
        mount_by_page(&lowers, None, target, &[])
    }

    #[test]
    fn layers_are_seen_merged_and_nothing_can_be_written() {
        for (layers, mount) in
            [(1, mount_read_only as Mount), (3, mount_read_only), (1, by_page), (3, by_page)]
        {
            let root = tempfile::tempdir().unwrap();
            let lowers: Vec<_> = (0..layers).map(|i| root.path().join(format!("layer{i}"))).collect();
            for (i, lower) in lowers.iter().enumerate() {
                fs::create_dir(lower).unwrap();
                fs::write(lower.join("who"), i.to_string()).unwrap();
            }
            let (empty, target) = (root.path().join("empty"), root.path().join("target"));
            fs::create_dir(&empty).unwrap();
            fs::create_dir(&target).unwrap();
            mount(&lowers, &empty, &target).unwrap();
            let who = fs::read_to_string(target.join("who"));
            let written = fs::write(target.join("new"), "x");
            unmount(&target).unwrap();
            assert_eq!(who.unwrap(), (layers - 1).to_string());
            assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        }
    }

    #[test]
    fn an_image_without_layers_is_no_volume() {
        let error = mount_read_only(&[], Path::new("/e"), Path::new("/t")).unwrap_err();
        assert!(matches!(error, RootfsError::NoLayers { .. }));
    }
}
