//! Names of the files of a checkpoint: the peers' and checkpointctl's.

/// Where CRIU's images of a container lie, in the peers' layout.
pub(in crate::sandbox) const IMAGES: &str = "checkpoint";
/// Changed files of the root file system.
pub(in crate::sandbox) const CHANGES: &str = "rootfs-diff.tar";
/// Paths that the container removed from its image's files, a JSON array; absent: none.
pub(in crate::sandbox) const DELETED: &str = "deleted.files";
/// Who the container was.
pub(in crate::sandbox) const CONFIG_DUMP: &str = "config.dump";
/// Its OCI configuration.
pub(in crate::sandbox) const SPEC_DUMP: &str = "spec.dump";
/// Its CRI status, as containerd writes it.
pub(in crate::sandbox) const STATUS_DUMP: &str = "status.dump";
/// Its log.
pub(in crate::sandbox) const LOG: &str = "container.log";
/// Who the pod was.
pub(in crate::sandbox) const POD_DUMP: &str = "pod.dump";
/// Version of a pod's checkpoint and the names of its containers.
pub(in crate::sandbox) const POD_OPTIONS: &str = "pod.options";
