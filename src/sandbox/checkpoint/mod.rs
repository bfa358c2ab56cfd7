//! Checkpoints of running containers: all of them frozen, captured, set free again whatever happens between; and the way
//! back from such files to containers that StartContainer lets continue.
//!
//! Owns who is being checkpointed and the layout of the files, which is the peers' and checkpointctl's. CRIU itself is
//! run by the OCI runtime. What a checkpoint says about mounts, devices, names or rights is never used, but to refuse a
//! request that it does not fit: a restored container is what its own request asks for, with the processes and changed
//! files of the checkpoint.

mod archive;
mod capture;
pub(super) mod changes;
mod describe;
mod fits;
mod frozen;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;

pub(super) use frozen::{Leftovers, thaw};

use super::acts::node::Node;
use super::acts::restore::{self, places};
use super::acts::sources::look_at;
use super::offload::blocking;
use super::words::checkpoint_error::CheckpointError;
use super::words::error::SandboxError;
use super::words::layout::{CONFIG_DUMP, POD_DUMP, POD_OPTIONS};
use super::words::snapshot::{ContainerSnapshot, PodSnapshot};
use super::words::state::ContainerState;
use crate::host::criu::Criu;
use crate::host::foreign::Progress;
use crate::images::{Image, ImageError};
use crate::model::{ContainerId, ContainerSpec, Restore, SandboxSpec};
use capture::{Budget, Subject};
use describe::ConfigDump;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// The field of a request that asks for a user namespace.
const USERNS_OPTIONS: &str = "config.linux.security_context.namespace_options.userns_options";
/// What the node knows of checkpoints.
#[derive(Debug)]
pub(super) struct Checkpoints {
    node: Arc<Node>,
    criu: Criu,
    busy: Mutex<HashSet<ContainerId>>,
}

impl Checkpoints {
    /// As configured.
    pub(in crate::sandbox) fn new(node: Arc<Node>) -> Self {
        let criu = Criu::new(node.config.runtime.criu);
        Self { node, criu, busy: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<ContainerId>> {
        // Every section leaves the set whole.
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The containers that are ours to freeze, until dropped.
struct Claim {
    of: Arc<Checkpoints>,
    ids: Vec<ContainerId>,
}

impl Claim {
    fn take(of: &Arc<Checkpoints>, ids: Vec<ContainerId>) -> Result<Self, SandboxError> {
        let mut busy = of.lock();
        if let Some(id) = ids.iter().find(|id| busy.contains(*id)) {
            return Err(CheckpointError::Busy(id.clone()).into());
        }
        busy.extend(ids.iter().cloned());
        drop(busy);
        Ok(Self { of: of.clone(), ids })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut busy = self.of.lock();
        for id in &self.ids {
            busy.remove(id);
        }
    }
}

impl Checkpoints {
    /// Whether checkpoints can be made and restored here.
    async fn available(&self) -> Result<(), SandboxError> {
        Ok(self.criu.check().await.map_err(CheckpointError::from)?)
    }

    /// Whether a container can continue from a checkpoint here.
    pub(in crate::sandbox) async fn check_container(
        self: &Arc<Self>,
        pod: &SandboxSpec,
        spec: &ContainerSpec,
        until: Instant,
    ) -> Result<(), SandboxError> {
        let node = &self.node;
        let Some(from) = spec.restore.clone() else { return Ok(()) };
        check_namespaces(pod)?;
        self.available().await?;
        let (own, spec, places) = (node.clone(), spec.clone(), places(&from));
        let fits = move |_: Option<&Progress>| fits::container(&from, &spec, &own.images, &own.config.root);
        let limit = node.config.host_path_limit().min(until.saturating_duration_since(Instant::now()));
        look_at(node, pod.id.as_str(), places, limit, fits).await
    }

    /// Whether these containers can continue from a pod's checkpoint here.
    pub(in crate::sandbox) async fn check_pod(
        self: &Arc<Self>,
        from: &Path,
        pod: &SandboxSpec,
        containers: &[ContainerSpec],
    ) -> Result<(), SandboxError> {
        let node = &self.node;
        check_namespaces(pod)?;
        self.available().await?;
        let (own, from, containers) = (node.clone(), from.to_owned(), containers.to_vec());
        let places = vec![from.clone()];
        let fits = move |_: Option<&Progress>| fits::pod(&from, &containers, &own.images, &own.config.root);
        look_at(node, pod.id.as_str(), places, node.config.host_path_limit(), fits).await
    }

    /// The image of a checkpoint's container. One that is not here is pulled where the checkpoint says exactly which it was,
    /// with the node's own credentials.
    pub(in crate::sandbox) async fn base(
        self: &Arc<Self>,
        from: &Restore,
    ) -> Result<Arc<Image>, SandboxError> {
        let node = &self.node;
        if let Restore::Image(id) = from
            && !node.config.runtime.restore_images
        {
            return Err(CheckpointError::ImagesOff(id.clone()).into());
        }
        self.available().await?;
        let (images, from, places) = (node.images.clone(), from.clone(), places(from));
        let read = move |_: Option<&Progress>| {
            restore::source::Source::open(&from, &images)?.json(Path::new(CONFIG_DUMP))
        };
        let dump: ConfigDump =
            look_at(node, "a checkpoint", places, node.config.host_path_limit(), read).await?;
        if let Some(image) = dump.names().find_map(|name| node.images.status(name)) {
            return Ok(image);
        }
        let name = dump.names().last().unwrap_or_default();
        let failed = |cause| CheckpointError::Image { image: name.to_owned(), cause: Box::new(cause) };
        let missing = || failed(ImageError::NotFound { name: name.to_owned() }).into();
        if !name.contains('@') {
            return Err(missing());
        }
        let id = node.images.pull(name, None).await.map_err(failed)?;
        node.images.status(id.as_str()).ok_or_else(missing)
    }

    /// Writes a running container's checkpoint to a tar at `location`. The container goes on.
    ///
    /// The work is not cut off when the caller goes away: the container must be set free.
    pub(in crate::sandbox) async fn container(
        self: &Arc<Self>,
        pod: &Arc<PodSnapshot>,
        container: &Arc<ContainerSnapshot>,
        location: &Path,
        limit: Duration,
    ) -> Result<(), SandboxError> {
        let node = &self.node;
        running(container)?;
        let place = location.to_owned();
        let opened = move |_: Option<&Progress>| archive::Target::new(&place);
        let out = look_at(
            node,
            pod.spec.id.as_str(),
            vec![location.to_owned()],
            node.config.host_path_limit().min(limit),
            opened,
        )
        .await?;
        self.available().await?;
        let claim = Claim::take(self, vec![container.spec.id.clone()])?;
        let (node, pod, container) = (node.clone(), pod.clone(), container.clone());
        let (budget, until, place) = (Budget::within(limit), Instant::now() + limit, location.to_owned());
        detached("a checkpoint", async move {
            let _claim = claim;
            let own = node.clone();
            let staging = blocking(move |off| frozen::Staging::new(off, &own)).await?;
            let spec = &container.spec;
            let subjects = vec![subject(&node, spec, staging.path().to_owned(), Vec::new())];
            capture::capture(&node, &pod.runtime, &subjects, vec![staging.path().to_owned()], budget).await?;
            let described = describe::container(&node, &pod, &container);
            let log = pod.spec.log_directory.clone().zip(spec.log_path.clone());
            let write = move |progress: Option<&Progress>| {
                progress.into_iter().for_each(Progress::works);
                // Ours until the end of this work, however late.
                let dir = staging.path();
                described.write(dir)?;
                let log = log.as_ref().map(|(top, log)| (top.as_path(), log.as_path()));
                describe::copy_log(log, dir)?;
                out.fill(dir, progress)
            };
            let left = until.saturating_duration_since(Instant::now()).max(node.config.host_path_limit());
            look_at(&node, pod.spec.id.as_str(), vec![place], left, write).await
        })
        .await
    }

    /// Writes the checkpoints of several running containers of one pod, taken at one moment, into the empty directory
    /// `output`: one directory a container. On an error it is empty again.
    pub(in crate::sandbox) async fn pod(
        self: &Arc<Self>,
        pod: &Arc<PodSnapshot>,
        ids: &[ContainerId],
        output: &Path,
        limit: Duration,
    ) -> Result<(), SandboxError> {
        let node = &self.node;
        let containers = wanted(pod, ids)?;
        let place = output.to_owned();
        let looked = move |_: Option<&Progress>| check_empty(&place);
        look_at(
            node,
            pod.spec.id.as_str(),
            vec![output.to_owned()],
            node.config.host_path_limit().min(limit),
            looked,
        )
        .await?;
        self.available().await?;
        let claim = Claim::take(self, ids.to_vec())?;
        let (node, pod, output) = (node.clone(), pod.clone(), output.to_owned());
        let budget = Budget::within(limit);
        detached("a checkpoint", async move {
            let _claim = claim;
            let dirs: Vec<PathBuf> = containers.iter().map(|c| output.join(&c.spec.name)).collect();
            let made =
                [output.join(POD_DUMP), output.join(POD_OPTIONS)].into_iter().chain(dirs.clone()).collect();
            let subjects: Vec<_> = containers
                .iter()
                .zip(dirs)
                .map(|(c, dir)| subject(&node, &c.spec, dir, vec![output.clone()]))
                .collect();
            let captured = capture::capture(&node, &pod.runtime, &subjects, made, budget).await;
            let described: Vec<_> = containers.iter().map(|c| describe::container(&node, &pod, c)).collect();
            let names = containers.iter().map(|c| c.spec.name.clone()).collect();
            let pod_dump = describe::pod(&pod.spec, names);
            let (place, limit) = (vec![output.clone()], node.config.host_path_limit());
            let write = move |progress: Option<&Progress>| {
                progress.into_iter().for_each(Progress::works);
                let written = captured.and_then(|()| {
                    subjects.iter().zip(&described).try_for_each(|(subject, d)| d.write(&subject.dir))?;
                    pod_dump.write(&output)
                });
                if written.is_err() {
                    empty(&output);
                }
                written
            };
            look_at(&node, pod.spec.id.as_str(), place, limit, write).await
        })
        .await
    }
}

/// CRIU is not let into the other namespaces of a pod that has a user namespace.
fn check_namespaces(pod: &SandboxSpec) -> Result<(), SandboxError> {
    if pod.namespaces.user.is_none() {
        return Ok(());
    }
    let why = "CRIU cannot restore a container in a pod with a user namespace".to_owned();
    Err(CheckpointError::Request { field: USERNS_OPTIONS, why }.into())
}

fn running(container: &ContainerSnapshot) -> Result<(), SandboxError> {
    match &container.state {
        ContainerState::Running { .. } => Ok(()),
        state => Err(SandboxError::ContainerState {
            operation: "checkpoint",
            id: container.spec.id.to_string(),
            state: state.name(),
        }),
    }
}

fn subject(node: &Node, spec: &Arc<ContainerSpec>, dir: PathBuf, places: Vec<PathBuf>) -> Subject {
    let layers = node.images.restore_hold(&spec.image.id).map(|hold| hold.layers().to_vec());
    Subject {
        spec: spec.clone(),
        upper: node.places.writable(&spec.id).join("upper"),
        layers: layers.unwrap_or_default(),
        dir,
        places,
    }
}

/// The containers that were named: at least one, none twice, all running, no two of one name.
fn wanted(pod: &PodSnapshot, ids: &[ContainerId]) -> Result<Vec<Arc<ContainerSnapshot>>, SandboxError> {
    let bad = |why: String| CheckpointError::Request { field: "container_ids", why };
    if ids.is_empty() {
        return Err(bad("is empty".to_owned()).into());
    }
    let (mut names, mut found) = (HashSet::new(), Vec::new());
    for id in ids {
        let Some(container) = pod.container(id) else {
            return Err(bad(format!("{id} is no container of pod sandbox {}", pod.spec.id)).into());
        };
        if !names.insert(container.spec.name.as_str()) {
            return Err(bad(format!("{id}: it, or another container of that name, is named twice")).into());
        }
        running(container)?;
        found.push(container.clone());
    }
    Ok(found)
}

/// Whether a checkpoint can be written into a directory.
fn check_empty(dir: &Path) -> Result<(), SandboxError> {
    let bad = |why: String| CheckpointError::Request { field: "output_path", why };
    let shown = dir.display();
    let mut entries = std::fs::read_dir(dir).map_err(|e| bad(format!("open {shown}: {e}")))?;
    if entries.next().is_some() {
        return Err(bad(format!("{shown} is not empty")).into());
    }
    Ok(())
}

/// Empties the caller's directory again.
fn empty(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if let Err(error) = crate::host::remove::tree(&path) {
            tracing::warn!(path = %path.display(), %error, "half a checkpoint stays");
        }
    }
}

/// Work that goes on when its caller does not.
async fn detached<T: Send + 'static>(
    what: &'static str,
    work: impl Future<Output = Result<T, SandboxError>> + Send + 'static,
) -> Result<T, SandboxError> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => Err(SandboxError::Panicked(what)),
        Err(_) => Err(SandboxError::ShuttingDown),
    }
}
