//! Cleaning up after an ended container: what the OCI runtime, the kernel and the mount table keep of it. May be repeated.

use super::bundle::unmount;
use super::node::Node;
use super::room;
use super::stop::{kill_cgroup, shares_pid_namespace};
use crate::host::oci::{OciError, Runtime};
use crate::model::{ContainerId, ContainerSpec, SandboxSpec};
use crate::sandbox::offload::blocking;
use crate::sandbox::words::error::SandboxError;
use std::sync::Arc;
use std::time::Duration;

/// How long RemoveContainer and RemovePodSandbox wait for what an ended container left, before they tell that it is still
/// there: less than the kubelet's two minutes, and longer than a runtime that hangs once.
pub(in crate::sandbox) const CLEAN_WAIT: Duration = Duration::from_secs(30);

/// An ended container of which something is left.
pub(in crate::sandbox) fn unclean(id: &ContainerId, why: String) -> SandboxError {
    SandboxError::Unclean { id: id.to_string(), why, waited: CLEAN_WAIT }
}

/// Removes what the runtime, the kernel and the mount table keep of an ended container; to be repeated until it succeeds.
/// Its record, log and writable layer stay. `all`: kills whatever is left in its cgroup, since nobody saw its end.
pub(in crate::sandbox) async fn clean(
    node: &Arc<Node>,
    pod: &SandboxSpec,
    spec: &ContainerSpec,
    runtime: &Runtime,
    all: bool,
) -> Result<(), SandboxError> {
    if all || shares_pid_namespace(spec) {
        kill_cgroup(&node.cgroups, pod, spec).await;
    }
    let (cgroups, leaf) = (node.cgroups.kernel.clone(), node.cgroups.leaf(pod, &spec.id)?);
    // The runtime would look for nested cgroups by path. What stays is reported below.
    let _ = blocking(move |off| Ok(cgroups.remove_below(off, &leaf)?)).await;
    let deleted = node.metrics.step("clean_container", "runtime", runtime.delete(spec.id.as_str())).await;
    let (cgroups, leaf) = (node.cgroups.kernel.clone(), node.cgroups.leaf(pod, &spec.id)?);
    let removed = blocking(move |off| {
        let removed = cgroups.remove(off, &leaf);
        if removed.is_err() {
            // What the runtime did not reach. It is gone at the next try, if the kernel lets it.
            cgroups.kill_all(off, &leaf)?;
        }
        Ok(removed?)
    })
    .await;
    let unmounted = unmount(node, spec.sandbox_id.as_str(), node.places.bundle(&spec.id)).await;
    let removed = removed.and(unmounted);
    node.layers.ended(&spec.id);
    // First: the caller gives up on the runtime's notes after a while, but never on a process, cgroup or mount.
    removed?;
    match deleted {
        Ok(()) | Err(OciError::Missing { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let bundle = node.places.bundle(&spec.id);
    blocking(move |off| room::end_config(off, &bundle)).await
}
