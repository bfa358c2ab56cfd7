//! The index of pods and containers: create, find, list. Holds handles and names, no state; every answer about
//! state comes from a pod's snapshot.

use super::announce::Subscription;
use super::mailbox::{Command, NewContainer, Outcome, PodHandle};
use super::pod::Pod;
use super::shared::Shared;
use crate::host::netns;
use crate::host::network::PodRanges;
use crate::images::{Image, ImageError, ImageKind};
use crate::model::{
    ContainerId, ContainerSpec, NamespaceMode, PodName, Resources, Restore, SandboxId, SandboxSpec, Timestamp,
};
use crate::sandbox::acts::bring_up::shm_bytes;
use crate::sandbox::acts::bundle::CREATION_LIMIT;
use crate::sandbox::acts::exec;
use crate::sandbox::acts::granted;
use crate::sandbox::acts::node::Node;
use crate::sandbox::acts::selinux;
use crate::sandbox::acts::session::{self, AttachSession, AttachStream, ExecSession, ExecStream};
use crate::sandbox::acts::volumes;
use crate::sandbox::checkpoint::Checkpoints;
use crate::sandbox::offload::blocking;
use crate::sandbox::spec::linux_resources;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::record::PodLimits;
use crate::sandbox::words::snapshot::{ContainerSnapshot, PodSnapshot};
use crate::sandbox::words::state::SandboxState;
use crate::sandbox::words::tally;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// The pods of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Manager {
    shared: Shared,
    checkpoints: Arc<Checkpoints>,
}

/// What a pod and its containers take in lists.
fn weights(pod: &PodSnapshot) -> impl Iterator<Item = tally::Weight> {
    pod.containers.iter().map(|container| tally::container(&container.spec)).chain([tally::pod(&pod.spec)])
}

impl Manager {
    pub(super) fn new(shared: Shared) -> Self {
        let checkpoints = Arc::new(Checkpoints::new(shared.node.clone()));
        Self { shared, checkpoints }
    }

    /// Subscribes to container events; None: there are as many subscribers as there may be.
    #[must_use]
    pub fn subscribe(&self) -> Option<Subscription> {
        self.shared.announcer.subscribe()
    }

    /// The mechanisms below.
    #[must_use]
    pub fn node(&self) -> &Arc<Node> {
        &self.shared.node
    }

    /// Brings a sandbox up. The same request again joins the first, or gets what it made.
    ///
    /// # Errors
    /// When the name is taken by a different sandbox, or a step fails; then everything was undone.
    pub async fn run_pod(&self, mut spec: SandboxSpec) -> Outcome<SandboxId> {
        let runtime = self.shared.node.handlers.runtime(&spec.runtime_handler).map_err(Arc::new)?;
        shm_bytes(&self.shared.node, &spec).map_err(Arc::new)?;
        if spec.cgroup_parent.is_empty() {
            // Recorded, since another configuration would have another default.
            spec.cgroup_parent.clone_from(&self.shared.node.cgroups.default_parent);
        }
        self.shared.node.cgroups.driver.check(&spec.cgroup_parent).map_err(|e| Arc::new(e.into()))?;
        self.shared.node.user_namespaces.check(&spec).await.map_err(Arc::new)?;
        selinux::check(&self.shared.node, &spec, None).map_err(Arc::new)?;
        let (id, mut up) = {
            let mut tables = self.shared.index.lock();
            match tables.names.get(&spec.name).and_then(|id| tables.pods.get(id)) {
                Some(existing) => {
                    let snapshot = existing.snapshots.borrow().clone();
                    retry_of(&snapshot, &spec)?;
                    (snapshot.spec.id.clone(), existing.up.clone())
                }
                None => {
                    let others: Vec<_> =
                        tables.pods.values().map(|pod| pod.snapshots.borrow().clone()).collect();
                    let tallies = others.iter().flat_map(|pod| weights(pod));
                    let limit = self.shared.node.config.grpc.max_message_bytes;
                    let new = tally::pod(&spec);
                    tally::check("pods", new, std::iter::empty(), tallies, limit).map_err(Arc::new)?;
                    spec.created_at = spec.created_at.after(attempts_of(&spec.name, &others));
                    let others = others.iter().map(AsRef::as_ref);
                    spec.selinux_level =
                        selinux::level(&self.shared.node, &spec, others).map_err(Arc::new)?;
                    let spec = Arc::new(spec);
                    let pod = Pod::new(&self.shared, spec.clone(), runtime, SandboxState::Preparing);
                    let handle = pod.spawn_new();
                    let up = handle.up.clone();
                    tables.names.insert(spec.name.clone(), spec.id.clone());
                    tables.pods.insert(spec.id.clone(), handle);
                    (spec.id.clone(), up)
                }
            }
        };
        let outcome = up.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        match outcome {
            Ok(Some(Ok(()))) => Ok(id),
            Ok(Some(Err(error))) => Err(error),
            Ok(None) | Err(_) => Err(Arc::new(SandboxError::ShuttingDown)),
        }
    }

    /// Stops a sandbox; unknown is fine.
    ///
    /// # Errors
    /// When something it holds could not be given back; to be called again.
    pub async fn stop_pod(&self, id: &str) -> Outcome<()> {
        self.ask_pod(id, |reply| Command::StopPod { reply }).await
    }

    /// Removes a sandbox with its containers; unknown is fine.
    ///
    /// # Errors
    /// When it could not be stopped or its files not removed; to be called again.
    pub async fn remove_pod(&self, id: &str) -> Outcome<()> {
        self.ask_pod(id, |reply| Command::RemovePod { reply }).await
    }

    async fn ask_pod(
        &self,
        id: &str,
        command: impl FnOnce(oneshot::Sender<Outcome<()>>) -> Command,
    ) -> Outcome<()> {
        match self.shared.index.find_pod(id) {
            Ok(handle) => ask(&handle, command, Ok(())).await,
            Err(error) => absent_is_fine(error),
        }
    }

    /// Creates a container. The same request again joins the first, or gets what it made.
    ///
    /// # Errors
    /// When the sandbox is not ready, the image is absent, or a step fails; then everything was undone.
    pub async fn create_container(&self, mut spec: ContainerSpec) -> Outcome<ContainerId> {
        let until = Instant::now() + CREATION_LIMIT;
        let handle = self.shared.index.find_pod(spec.sandbox_id.as_str()).map_err(Arc::new)?;
        let node = &self.shared.node;
        let limits =
            linux_resources(&spec.resources, node.config.containers.pids_limit, &node.handlers.facts)
                .map_err(|e| Arc::new(e.into()))?;
        self.check_listed(&spec).map_err(Arc::new)?;
        let hold = self.shared.node.images.hold(spec.image.id.as_str()).map_err(|e| Arc::new(e.into()))?;
        if let ImageKind::Artifact { .. } = hold.image().kind {
            let reason = "an artifact, which can only be mounted as a volume".to_owned();
            let error = ImageError::Unsupported { what: spec.image.display, reason };
            return Err(Arc::new(error.into()));
        }
        let hold = Arc::new(hold);
        let volumes = volumes::hold(&self.shared.node.images, &mut spec).map_err(Arc::new)?;
        let pod = handle.snapshots.borrow().spec.clone();
        self.checkpoints.check_container(&pod, &spec, until).await.map_err(Arc::new)?;
        let gone = Err(Arc::new(SandboxError::SandboxNotFound(spec.sandbox_id.to_string())));
        let granted =
            granted::grant(&self.shared.node, &pod, &spec, limits, until).await.map_err(Arc::new)?;
        let new = Box::new(NewContainer { spec, hold, volumes, granted, until });
        ask(&handle, |reply| Command::Create { new, reply }, gone).await
    }

    /// Whether a list can tell this container, too.
    fn check_listed(&self, spec: &ContainerSpec) -> Result<(), SandboxError> {
        let pods = self.pods();
        // The same request again is for the same container.
        let of = |spec: &ContainerSpec| (spec.sandbox_id.clone(), spec.name.clone(), spec.attempt);
        let is_other = |other: &&Arc<ContainerSnapshot>| of(&other.spec) != of(spec);
        let of_pod = pods.iter().filter(|pod| pod.spec.id == spec.sandbox_id).flat_map(|pod| &pod.containers);
        let of_pod = of_pod.filter(is_other).map(|other| tally::container(&other.spec));
        let containers = pods.iter().flat_map(|pod| &pod.containers).filter(is_other);
        let all = containers.map(|other| tally::container(&other.spec));
        let all = all.chain(pods.iter().map(|pod| tally::pod(&pod.spec)));
        let limit = self.shared.node.config.grpc.max_message_bytes;
        tally::check("containers", tally::container(spec), of_pod, all, limit)
    }

    /// The image of the container whose checkpoint this is: what a container that continues from it is of.
    ///
    /// # Errors
    /// When the checkpoint cannot be read or restored here, or its image is absent and cannot be pulled.
    pub async fn base_image(&self, from: &Restore) -> Result<Arc<Image>, SandboxError> {
        self.checkpoints.base(from).await
    }

    /// Starts a created container.
    ///
    /// # Errors
    /// When it is not in the created state, or the OCI runtime fails.
    pub async fn start_container(&self, id: &str) -> Outcome<()> {
        let (handle, id) = self.shared.index.find_container(id).map_err(Arc::new)?;
        let gone = Err(Arc::new(SandboxError::ContainerNotFound(id.to_string())));
        ask(&handle, |reply| Command::Start { id, reply }, gone).await
    }

    /// Stops a container and waits until it is gone; unknown is fine.
    ///
    /// # Errors
    /// When the id is ambiguous.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Outcome<()> {
        match self.shared.index.find_container(id) {
            Ok((handle, id)) => ask(&handle, |reply| Command::Stop { id, grace, reply }, Ok(())).await,
            Err(error) => absent_is_fine(error),
        }
    }

    /// Removes a container, by force if it runs; unknown is fine.
    ///
    /// # Errors
    /// When what it left behind could not be removed; to be called again.
    pub async fn remove_container(&self, id: &str) -> Outcome<()> {
        match self.shared.index.find_container(id) {
            Ok((handle, id)) => ask(&handle, |reply| Command::Remove { id, reply }, Ok(())).await,
            Err(error) => absent_is_fine(error),
        }
    }

    /// Changes a container's limits, live where it runs.
    ///
    /// # Errors
    /// When it is unknown or the OCI runtime refuses; then nothing changed.
    pub async fn update_container(&self, id: &str, resources: Resources) -> Outcome<()> {
        let (handle, id) = self.shared.index.find_container(id).map_err(Arc::new)?;
        let gone = Err(Arc::new(SandboxError::ContainerNotFound(id.to_string())));
        ask(&handle, |reply| Command::Update { id, resources: Box::new(resources), reply }, gone).await
    }

    /// Takes note of what a pod's own cgroup is limited to now; the kubelet has changed it already.
    ///
    /// # Errors
    /// When it is unknown, or the note cannot be written; then nothing changed.
    pub async fn update_pod(&self, id: &str, limits: PodLimits) -> Outcome<()> {
        let handle = self.shared.index.find_pod(id).map_err(Arc::new)?;
        let gone = Err(Arc::new(SandboxError::SandboxNotFound(id.to_owned())));
        ask(&handle, |reply| Command::UpdatePod { limits: Box::new(limits), reply }, gone).await
    }

    /// Has a running container's log opened anew; the new file is in use when this returns.
    ///
    /// # Errors
    /// When it is unknown or does not run; then no file was made.
    pub async fn reopen_log(&self, id: &str) -> Result<(), SandboxError> {
        let (pod, container) = self.container(id)?;
        let id = container.spec.id.as_str();
        let (true, Some(monitor)) = (container.state.may_have_process(), &pod.monitor) else {
            let state = container.state.name();
            return Err(SandboxError::ContainerState {
                operation: "reopen the log of",
                id: id.to_owned(),
                state,
            });
        };
        Ok(monitor.reopen_log(id.to_owned()).await?)
    }

    /// Runs a command in a running container and collects its output.
    ///
    /// # Errors
    /// When the container does not run, the command cannot start, or takes longer than `timeout`.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<exec::Output, SandboxError> {
        let (pod, container) = self.container(id)?;
        exec::exec_sync(&self.shared.node, &pod, &container, command, timeout).await
    }

    /// Runs a command in a running container with streams; see [`ExecSession`] for what the caller owes it.
    ///
    /// # Errors
    /// When the container does not run, the command cannot start, or the pod has as many sessions as it may.
    pub async fn exec_stream(&self, id: &str, ask: ExecStream) -> Result<ExecSession, SandboxError> {
        let (pod, container) = self.container(id)?;
        session::exec(&self.shared.node, &pod, &container, ask).await
    }

    /// Connects to the streams of a running container.
    ///
    /// # Errors
    /// When it does not run, or the pod has as many sessions as it may.
    pub async fn attach(&self, id: &str, ask: AttachStream) -> Result<AttachSession, SandboxError> {
        let (pod, container) = self.container(id)?;
        session::attach(&pod, &container, ask).await
    }

    /// Connects to a TCP port of the pod's loopback device, by IPv4 and then by IPv6.
    ///
    /// # Errors
    /// When the sandbox is not ready, or nobody listens.
    pub async fn port_forward(&self, id: &str, port: u16) -> Result<TcpStream, SandboxError> {
        let sandbox = self.ready_pod("forward a port", id)?;
        let pod = self.pod(sandbox.as_str())?;
        let own = pod.spec.namespaces.network != NamespaceMode::Node;
        let netns = own.then(|| self.shared.node.places.netns(&sandbox));
        netns::connect_loopback(netns.as_deref(), port).await.map_err(|source| SandboxError::Connect {
            sandbox,
            port,
            source,
        })
    }

    /// Writes a running container's checkpoint to a tar at `location`; the container goes on.
    ///
    /// # Errors
    /// When CRIU does not work here, the container does not run, or the time is over.
    pub async fn checkpoint_container(
        &self,
        id: &str,
        location: &Path,
        limit: Duration,
    ) -> Result<(), SandboxError> {
        let (pod, container) = self.container(id)?;
        self.checkpoints.container(&pod, &container, location, limit).await
    }

    /// Writes the checkpoints of running containers of one pod, taken at one moment, into the empty directory `output`.
    ///
    /// # Errors
    /// As [`Self::checkpoint_container`]; then `output` is empty again, and everything goes on.
    pub async fn checkpoint_pod(
        &self,
        id: &str,
        containers: &[ContainerId],
        output: &Path,
        limit: Duration,
    ) -> Result<(), SandboxError> {
        self.ready_pod("checkpoint containers", id)?;
        let pod = self.pod(id)?;
        self.checkpoints.pod(&pod, containers, output, limit).await
    }

    /// Makes a sandbox and containers from what [`Self::checkpoint_pod`] wrote; StartContainer lets them continue.
    ///
    /// # Errors
    /// When they do not fit the checkpoint, or anything fails; then nothing of it stays.
    pub async fn restore_pod(
        &self,
        spec: SandboxSpec,
        containers: Vec<ContainerSpec>,
        from: &Path,
    ) -> Outcome<(SandboxId, Vec<ContainerId>)> {
        self.checkpoints.check_pod(from, &spec, &containers).await.map_err(Arc::new)?;
        let ours = spec.id.clone();
        let id = self.run_pod(spec).await?;
        let mut made = Vec::new();
        for mut container in containers {
            container.sandbox_id = id.clone();
            container.restore = Some(Restore::Directory(from.join(&container.name)));
            match self.create_container(container).await {
                Ok(container) => made.push(container),
                Err(error) if id == ours => {
                    return Err(match self.remove_pod(id.as_str()).await {
                        Ok(()) => error,
                        Err(left) => {
                            // Log: RestorePod failed, and so did removing its pod.
                            // Do: Stop and remove the pod.
                            tracing::error!(sandbox = %id, error = %left, "a pod that could not be restored stays");
                            error
                        }
                    });
                }
                // An earlier request made the sandbox: what it has may run.
                Err(error) => return Err(error),
            }
        }
        Ok((id, made))
    }

    /// Makes a CNI configuration of the template, where there is one and nobody else has made it.
    ///
    /// # Errors
    /// When the template gives no configuration, or that cannot be written.
    pub async fn configure_network(&self, ranges: Option<PodRanges>) -> Result<(), SandboxError> {
        let template = self.shared.node.config.network.conf_template.clone();
        let (Some(ranges), false) = (ranges, template.as_os_str().is_empty()) else { return Ok(()) };
        let network = self.shared.node.network.clone();
        blocking(move |_| Ok(network.configure(&template, &ranges).map(|_| ())?)).await
    }

    /// The full id of a container that runs, for a caller that will do `operation` later.
    ///
    /// # Errors
    /// When there is none, or it does not run.
    pub fn running_container(&self, operation: &'static str, id: &str) -> Result<ContainerId, SandboxError> {
        let (pod, container) = self.container(id)?;
        session::running(operation, &pod, &container)?;
        Ok(container.spec.id.clone())
    }

    /// The full id of a sandbox that is ready, for a caller that will do `operation` later.
    ///
    /// # Errors
    /// When there is none, or it is not ready.
    pub fn ready_pod(&self, operation: &'static str, id: &str) -> Result<SandboxId, SandboxError> {
        let pod = self.pod(id)?;
        match &pod.state {
            SandboxState::Ready { .. } => Ok(pod.spec.id.clone()),
            state => Err(SandboxError::SandboxState {
                operation,
                id: pod.spec.id.to_string(),
                state: state.name(),
            }),
        }
    }

    /// Has the CNI plugins look at every pod that has a network, one after the other, and logs what they find amiss.
    /// Nothing is changed: a pod without its network is for people to see, and for probes to end.
    pub async fn check_networks(&self) {
        for pod in self.pods() {
            if !matches!(pod.state, SandboxState::Ready { network: Some(_) }) {
                continue;
            }
            let id = &pod.spec.id;
            if let Err(error) = self.shared.node.network.check(id, &self.shared.node.places.netns(id)).await {
                // Log: At start, a plugin's CHECK found that an interface, address or rule of the pod is gone. The
                // pod is left alone.
                // Do: Find out who removed it; delete the pod if its probes do not.
                tracing::warn!(sandbox = %id, pod = %pod.spec.name, %error, "a pod's network is not as it was made");
            }
        }
    }

    /// Every listed pod.
    #[must_use]
    pub fn pods(&self) -> Vec<Arc<PodSnapshot>> {
        let tables = self.shared.index.lock();
        tables
            .pods
            .values()
            .map(|handle| handle.snapshots.borrow().clone())
            .filter(|pod| pod.listed())
            .collect()
    }

    /// A pod by id or unique prefix.
    ///
    /// # Errors
    /// When there is none, or several.
    pub fn pod(&self, id: &str) -> Result<Arc<PodSnapshot>, SandboxError> {
        Ok(self.shared.index.find_pod(id)?.snapshots.borrow().clone())
    }

    /// A container by id or unique prefix, with its pod.
    ///
    /// # Errors
    /// When there is none, or several.
    pub fn container(&self, id: &str) -> Result<(Arc<PodSnapshot>, Arc<ContainerSnapshot>), SandboxError> {
        let (handle, id) = self.shared.index.find_container(id)?;
        let pod = handle.snapshots.borrow().clone();
        let container =
            pod.container(&id).cloned().ok_or_else(|| SandboxError::ContainerNotFound(id.to_string()))?;
        Ok((pod, container))
    }
}

/// When the other attempts of this pod were made.
fn attempts_of<'a>(
    name: &PodName,
    pods: &'a [Arc<PodSnapshot>],
) -> impl Iterator<Item = Timestamp> + use<'a> {
    let name = name.clone();
    let same = move |other: &PodName| {
        (&other.uid, &other.namespace, &other.name) == (&name.uid, &name.namespace, &name.name)
    };
    pods.iter().filter(move |pod| same(&pod.spec.name)).map(|pod| pod.spec.created_at)
}

/// Whether a request for a name in use is a retry that may have the sandbox that is there.
fn retry_of(existing: &PodSnapshot, spec: &SandboxSpec) -> Outcome<()> {
    let asked = SandboxSpec {
        id: existing.spec.id.clone(),
        created_at: existing.spec.created_at,
        selinux_level: existing.spec.selinux_level.clone(),
        ..spec.clone()
    };
    let why = match (&existing.state, asked == *existing.spec) {
        (SandboxState::Preparing | SandboxState::Ready { .. }, true) => return Ok(()),
        (SandboxState::Preparing | SandboxState::Ready { .. }, false) => {
            "which has another configuration; use another attempt number or remove it"
        }
        (SandboxState::NotReady { .. }, _) => "which is not ready; remove it or use another attempt number",
    };
    let (name, id) = (Box::new(spec.name.clone()), existing.spec.id.clone());
    Err(Arc::new(SandboxError::SandboxNameTaken { name, id, why }))
}

fn absent_is_fine(error: SandboxError) -> Outcome<()> {
    match error {
        SandboxError::SandboxNotFound(_) | SandboxError::ContainerNotFound(_) => Ok(()),
        error => Err(Arc::new(error)),
    }
}

/// Sends a command and waits for its outcome; `gone` is the answer of a pod that ended meanwhile.
async fn ask<T>(
    handle: &PodHandle,
    command: impl FnOnce(oneshot::Sender<Outcome<T>>) -> Command,
    gone: Outcome<T>,
) -> Outcome<T> {
    let (reply, answer) = oneshot::channel();
    if handle.mailbox.send(command(reply)).await.is_err() {
        return gone;
    }
    answer.await.unwrap_or(gone)
}
