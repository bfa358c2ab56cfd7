//! From the files of a checkpoint to what a new container starts from. They are copied when the container is created:
//! whoever owns them may change them afterwards.

pub(in crate::sandbox) mod pod_images;
pub(in crate::sandbox) mod rights;
pub(in crate::sandbox) mod source;
pub(in crate::sandbox) mod whiteouts;

use super::restore::source::Source;
use crate::host::foreign::{Moving, Progress};
use crate::host::monitor::NamespacePaths;
use crate::host::{remove, settings};
use crate::images::Images;
use crate::model::Restore;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::layout::{CHANGES, DELETED, IMAGES};
use oci_spec::runtime::Spec;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where a restored container's copies lie, in its directory for writable layers.
const DIRECTORY: &str = "restore";
/// Below that: where CRIU works and logs. Its log is as long as there are processes and mappings in the checkpoint, and so
/// has no place on the node's /run.
const WORK: &str = "work";
/// Names CRIU's configuration file for a container; stands in for [`RUNC_CONFIG`] (runc's
/// libcontainer/criu_linux.go, handleCriuConfigurationFile).
const CONFIG_ANNOTATION: &str = "org.criu.config";
/// CRIU's configuration for all of runc's containers.
const RUNC_CONFIG: &str = "/etc/criu/runc.conf";

/// What a restored container has beside its image.
#[derive(Debug)]
pub(in crate::sandbox) struct Restored {
    /// A layer on top of the image's: the changes of the checkpointed container.
    pub(in crate::sandbox) layer: PathBuf,
}

/// The paths of the host that a checkpoint is read from.
pub(in crate::sandbox) fn places(from: &Restore) -> Vec<PathBuf> {
    match from {
        Restore::Directory(path) | Restore::Archive(path) => vec![path.clone()],
        Restore::Image(_) => Vec::new(),
    }
}

/// CRIU's images for the start of a restored container.
pub(in crate::sandbox) fn images(writable: &Path) -> PathBuf {
    writable.join(DIRECTORY).join(IMAGES)
}

/// CRIU's directory for that start.
pub(in crate::sandbox) fn work(writable: &Path) -> PathBuf {
    writable.join(DIRECTORY).join(WORK)
}

/// Has CRIU restore a container's processes into its own cgroup, a path from the hierarchy's root: for a runtime that
/// does not say it to CRIU itself. What the administrator has set for runc holds on.
pub(in crate::sandbox) fn lead_into_cgroup(
    oci: &mut Spec,
    bundle: &Path,
    cgroup: &Path,
) -> Result<(), SandboxError> {
    let file = bundle.join("criu.conf");
    let mut text = match std::fs::read_to_string(RUNC_CONFIG) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        text => text.map_err(SandboxError::io("read", Path::new(RUNC_CONFIG)))?,
    };
    text.push_str(&format!("\ncgroup-root {}\n", cgroup.display()));
    std::fs::write(&file, text).map_err(SandboxError::io("write", &file))?;
    let mut annotations = oci.annotations().clone().unwrap_or_default();
    annotations.insert(CONFIG_ANNOTATION.to_owned(), file.to_string_lossy().into_owned());
    oci.set_annotations(Some(annotations));
    Ok(())
}

/// They are needed for one start only, and as large as the memory of the processes.
pub(in crate::sandbox) fn forget_images(writable: &Path) {
    let images = images(writable);
    if let Err(error) = remove::tree(&images) {
        tracing::debug!(images = %images.display(), %error, "images of a restored container stay until its removal");
    }
}

/// Copies what a container starts from in a pod with these namespaces into `writable`, which is there. Blocking, for as
/// long as the checkpoint's file system does not answer; when that comes back late, and `writable` is gone, it makes
/// nothing.
pub(in crate::sandbox) fn fetch(
    from: &Restore,
    writable: &Path,
    namespaces: &NamespacePaths,
    store: &Images,
    progress: Option<&Progress>,
) -> Result<Restored, SandboxError> {
    progress.into_iter().for_each(Progress::works);
    let source = Source::open(from, store)?;
    let to = writable.join(DIRECTORY);
    let copies = to.join(IMAGES);
    for dir in [&to, &copies, &to.join(WORK), &to.join("fs"), &to.join("replaced")] {
        std::fs::create_dir(dir).map_err(SandboxError::io("make directory", dir))?;
    }
    copy_images(&source, &copies, progress)?;
    let path = |path: &Option<String>| path.as_ref().map(PathBuf::from);
    let (ipc, uts) = (path(&namespaces.ipc), path(&namespaces.uts));
    let of_pod = settings::read(ipc.as_deref(), uts.as_deref(), &pod_images::settings())
        .map_err(SandboxError::io("read the settings of the pod in", Path::new("/proc/sys")))?;
    pod_images::adapt(&copies, &of_pod)?;
    let deleted: Vec<String> = source.maybe_json(Path::new(DELETED))?.unwrap_or_default();
    let whiteouts = whiteouts::whiteouts(deleted);
    // Peers leave it out where nothing was changed.
    let changed: Box<dyn Read + Send> = match source.file(Path::new(CHANGES))? {
        Some(file) => Box::new(Moving::new(file.content, progress)),
        None => Box::new(std::io::empty()),
    };
    store.unpack_changes(whiteouts, changed, &to, &source.shown(CHANGES))?;
    Ok(Restored { layer: to.join("fs") })
}

fn copy_images(source: &Source, to: &Path, progress: Option<&Progress>) -> Result<(), SandboxError> {
    for name in source.images()? {
        let inside = Path::new(IMAGES).join(&name);
        let Some(from) = source.file(&inside)? else {
            return Err(source.malformed(&inside, "is gone"));
        };
        let copy = to.join(&name);
        let mut from = Moving::new(from.content, progress);
        let copied = File::create_new(&copy).and_then(|mut copy| std::io::copy(&mut from, &mut copy));
        copied.map_err(SandboxError::io("copy a checkpoint to", &copy))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::words::layout::CONFIG_DUMP;
    use rustix::fs::Mode;

    #[test]
    fn links_out_of_the_checkpoint_are_not_read() {
        let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let images = dir.path().join(IMAGES);
        std::fs::create_dir(&images).unwrap();
        let source = Source::directory(dir.path(), "checkpoint_path").unwrap();
        assert!(copy_images(&source, out.path(), None).unwrap_err().to_string().contains("no images"));
        std::fs::write(images.join("pages-1.img"), "pages").unwrap();
        copy_images(&source, out.path(), None).unwrap();
        assert_eq!(std::fs::read_to_string(out.path().join("pages-1.img")).unwrap(), "pages");
        for (name, target) in [("link.img", "/etc/passwd"), ("up.img", "../config.dump")] {
            std::os::unix::fs::symlink(target, images.join(name)).unwrap();
            let again = tempfile::tempdir().unwrap();
            let error = copy_images(&source, again.path(), None).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            std::fs::remove_file(images.join(name)).unwrap();
        }
        std::fs::remove_dir_all(&images).unwrap();
        std::os::unix::fs::symlink("/etc", &images).unwrap();
        copy_images(&source, out.path(), None).unwrap_err();
        // Nor is a fifo waited for.
        let (fifo, mode) = (dir.path().join(CONFIG_DUMP), Mode::from_raw_mode(0o600));
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let error = source.json::<serde_json::Value>(Path::new(CONFIG_DUMP)).unwrap_err().to_string();
        assert!(error.contains("no plain file"), "{error}");
    }
}
