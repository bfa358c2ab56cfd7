//! Errors of mounts. Owns the wording.

use std::path::PathBuf;

/// Why a root file system could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// An overlay needs at least one layer.
    #[error("mount overlay on {}: the image has no layer", target.display())]
    NoLayers {
        /// Mount point.
        target: PathBuf,
    },
    /// A directory could not be opened.
    #[error("open {} for a mount: {cause}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Cause.
        cause: std::io::Error,
    },
    /// The kernel refused an option.
    #[error("set {fstype} option {key}={value:?} for {}: {cause}{detail}", target.display())]
    Option {
        /// File system type.
        fstype: &'static str,
        /// Option name.
        key: String,
        /// Option value.
        value: String,
        /// Mount point.
        target: PathBuf,
        /// Cause.
        cause: std::io::Error,
        /// The kernel's message, if it gave one.
        detail: String,
    },
    /// The option string of mount(2) would exceed one page.
    #[error("mount overlay on {}: options of {layers} layers take {bytes} bytes, more than a page", target.display())]
    TooManyLayers {
        /// Mount point.
        target: PathBuf,
        /// Number of layers.
        layers: usize,
        /// Bytes.
        bytes: usize,
    },
    /// The layers cannot be shown with mapped ids.
    #[error("map the ids of layer {}: {cause}: {why}", layer.display())]
    IdMap {
        /// The layer.
        layer: PathBuf,
        /// The missing thing.
        why: &'static str,
        /// Cause.
        cause: std::io::Error,
    },
    /// A volume cannot be shown with mapped ids.
    #[error("map the ids of volume {} ({file_system}): {cause}: {why}", source_path.display())]
    Volume {
        /// The volume.
        source_path: PathBuf,
        /// The type of its file system.
        file_system: String,
        /// The missing thing.
        why: &'static str,
        /// Cause.
        cause: std::io::Error,
    },
    /// A user namespace that only holds the mapping of ids could not be created.
    #[error("make a user namespace with the mapping {mapping}: {cause}")]
    UserNamespace {
        /// Uids and gids, inside:outside:count.
        mapping: String,
        /// Cause.
        cause: std::io::Error,
    },
    /// A directory operation of a mount with mapped ids.
    #[error("{operation} {}: {cause}", path.display())]
    Directory {
        /// The operation.
        operation: &'static str,
        /// Its object.
        path: PathBuf,
        /// Cause.
        cause: std::io::Error,
    },
    /// The mount failed.
    #[error("{step} of {fstype} on {}: {cause}{detail}", target.display())]
    Mount {
        /// File system type.
        fstype: &'static str,
        /// System call.
        step: &'static str,
        /// Mount point.
        target: PathBuf,
        /// Cause.
        cause: std::io::Error,
        /// The kernel's message, if it gave one.
        detail: String,
    },
    /// The unmount failed.
    #[error("unmount {}: {cause}", target.display())]
    Unmount {
        /// Mount point.
        target: PathBuf,
        /// Cause.
        cause: std::io::Error,
    },
    /// It could not be found out whether a path is a mount point.
    #[error("look whether {} is a mount point: {cause}", target.display())]
    Inspect {
        /// The path.
        target: PathBuf,
        /// Cause.
        cause: std::io::Error,
    },
}
