//! Overlay filesystems, layer by layer, so that no option string limits their number.

use std::borrow::Cow;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

/// A directory that takes part in an overlay.
#[derive(Debug, Clone, Copy)]
pub enum Layer<'a> {
    /// By path: what `/proc/mounts` then shows. At most 255 bytes.
    Path(&'a Path),
    /// By an open directory, such as an idmapped mount. Before Linux 6.15 the mount must be attached somewhere.
    Open(BorrowedFd<'a>),
}

/// An overlay to make.
#[derive(Debug, Clone, Copy, Default)]
pub struct Overlay<'a> {
    /// Topmost first; at least one, at most 500.
    pub lower: &'a [Layer<'a>],
    /// Where changes go, and a work directory beside it on the same filesystem; read-only without.
    pub upper: Option<(&'a Path, &'a Path)>,
    /// Forget about fsync: for directories that a crash makes worthless anyway.
    pub volatile: bool,
    /// Further options with values, such as `metacopy`, `index`, `redirect_dir`, `xino`.
    pub options: &'a [(&'a str, &'a str)],
}

impl Layer<'_> {
    fn name(&self) -> Cow<'_, Path> {
        match self {
            Layer::Path(path) => Cow::Borrowed(path),
            Layer::Open(fd) => Cow::Owned(format!("/proc/self/fd/{}", fd.as_raw_fd()).into()),
        }
    }
}

/// Makes an overlay, detached.
///
/// # Errors
/// The kernel's. Before Linux 6.5, which cannot take layers one by one, `InvalidInput` for layers whose names do not
/// fit the 255 bytes of one option, or contain a colon, comma or backslash.
pub fn overlay(request: &Overlay<'_>) -> io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let fd = context.as_fd();
    set_lower(fd, request.lower)?;
    if let Some((upper, work)) = request.upper {
        fsconfig_set_string(fd, "upperdir", upper)?;
        fsconfig_set_string(fd, "workdir", work)?;
    }
    if request.volatile {
        fsconfig_set_flag(fd, "volatile")?;
    }
    for (key, value) in request.options {
        fsconfig_set_string(fd, *key, *value)?;
    }
    fsconfig_create(fd)?;
    Ok(fsmount(fd, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

fn set_lower(context: BorrowedFd<'_>, layers: &[Layer<'_>]) -> io::Result<()> {
    for (index, layer) in layers.iter().enumerate() {
        match fsconfig_set_string(context, "lowerdir+", layer.name().as_ref()) {
            Err(Errno::INVAL) if index == 0 => return set_lower_joined(context, layers),
            result => result?,
        }
    }
    Ok(())
}

fn set_lower_joined(context: BorrowedFd<'_>, layers: &[Layer<'_>]) -> io::Result<()> {
    let mut joined = std::ffi::OsString::new();
    for layer in layers {
        let name = layer.name();
        if name.as_os_str().as_encoded_bytes().iter().any(|byte| b":,\\".contains(byte)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if !joined.is_empty() {
            joined.push(":");
        }
        joined.push(name.as_os_str());
    }
    Ok(fsconfig_set_string(context, "lowerdir", joined)?)
}
