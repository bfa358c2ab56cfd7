//! A scratch node with a daemon and a client, and requests in few words. Owns no assertions about the daemon but one:
//! that a node leaves nothing behind.

use pb::image_service_client::ImageServiceClient;
use pb::runtime_service_client::RuntimeServiceClient;
use podwright::cri::proto as pb;
use podwright_testkit::{
    Artifact, CgroupDriver, Compression, Daemon, Entry, Image, ImageBuilder, LayerBuilder, Ledger, Options,
    Programs, Registry, Scratch, patience, wait_for,
};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// The image that most tests use.
pub(crate) const BUSYBOX: &str = "docker.io/library/busybox:test";
/// Where its programs are.
pub(crate) const PATH: &str = "PATH=/bin:/sbin:/usr/bin:/usr/sbin";
/// How long a state that must come may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node under test.
pub(crate) struct Node {
    pub(crate) daemon: Daemon,
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    pub(crate) images: ImageServiceClient<Channel>,
    // Dropped after the daemon.
    pub(crate) scratch: Scratch,
    pub(crate) registry: Registry,
    before: Ledger,
    _registry_dir: tempfile::TempDir,
}

pub(crate) fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(|| Programs::load().unwrap())
}

/// busybox with its applets as hard links, root and one other user.
pub(crate) fn busybox() -> ImageBuilder {
    let programs = programs();
    let mut layer = LayerBuilder::new().entries([
        Entry::dir("bin"),
        Entry::dir("sbin"),
        Entry::dir("usr"),
        Entry::dir("usr/bin"),
        Entry::dir("usr/sbin"),
        Entry::dir("etc"),
        Entry::dir("tmp").mode(0o1777),
        Entry::file("bin/busybox", programs.busybox.clone()).mode(0o755),
        Entry::file("etc/passwd", &b"root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home:/bin/sh\n"[..]),
        Entry::file("etc/group", &b"root:x:0:\nalice:x:1000:\nstaff:x:50:alice\n"[..]),
    ]);
    for applet in programs.applets.iter().filter(|a| *a != "bin/busybox") {
        layer = layer.entry(Entry::hard_link(applet, "bin/busybox"));
    }
    ImageBuilder::new()
        .layer(&layer.build(Compression::Gzip).unwrap())
        .env(&[PATH, "FROM_IMAGE=yes"])
        .cmd(&["sleep", "1000000"])
}

pub(crate) fn push(registry: &Registry, repository: &str, tag: &str, image: Image) {
    registry.push(repository, tag, &Artifact::Image(image)).unwrap();
}

impl Node {
    /// A node with busybox pulled.
    pub(crate) async fn with_busybox() -> Self {
        let mut node = Self::new(Options::default()).await;
        node.pull(BUSYBOX).await.unwrap();
        node
    }

    pub(crate) async fn new(options: Options) -> Self {
        let registry_dir = tempfile::tempdir().unwrap();
        let registry = Registry::start(registry_dir.path(), 0).unwrap();
        push(&registry, "library/busybox", "test", busybox().build());
        let options = Options { registry: Some(registry.address()), ..options };
        let scratch = Scratch::with(&options).unwrap();
        let before = Ledger::of(&scratch);
        let daemon = Daemon::start(&scratch).unwrap();
        let channel = connect(&scratch.socket());
        Self {
            daemon,
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel),
            scratch,
            registry,
            before,
            _registry_dir: registry_dir,
        }
    }

    pub(crate) async fn pull(&mut self, image: &str) -> Result<String, Status> {
        let request = pb::PullImageRequest { image: Some(image_spec(image)), ..Default::default() };
        Ok(self.images.pull_image(request).await?.into_inner().image_ref)
    }

    pub(crate) fn pod(&self, name: &str) -> pb::PodSandboxConfig {
        pb::PodSandboxConfig {
            metadata: Some(pb::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.scratch.logs_dir().join(name).to_string_lossy().into_owned(),
            linux: Some(pb::LinuxPodSandboxConfig {
                cgroup_parent: self.scratch.cgroup_parent(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub(crate) async fn run(&mut self, config: &pb::PodSandboxConfig) -> Result<String, Status> {
        let request = pb::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        Ok(self.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    pub(crate) async fn create(
        &mut self,
        pod: &str,
        sandbox: &pb::PodSandboxConfig,
        config: pb::ContainerConfig,
    ) -> Result<String, Status> {
        let request = pb::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox.clone()),
        };
        Ok(self.runtime.create_container(request).await?.into_inner().container_id)
    }

    pub(crate) async fn start(&mut self, id: &str) -> Result<(), Status> {
        self.runtime.start_container(pb::StartContainerRequest { container_id: id.to_owned() }).await?;
        Ok(())
    }

    /// A pod with one running container.
    pub(crate) async fn running(&mut self, name: &str, command: &[&str]) -> (String, String) {
        let config = self.pod(name);
        let pod = self.run(&config).await.unwrap();
        let id = self.create(&pod, &config, container("main", command)).await.unwrap();
        self.start(&id).await.unwrap();
        (pod, id)
    }

    pub(crate) async fn exec(&mut self, id: &str, command: &[&str]) -> Result<pb::ExecSyncResponse, Status> {
        self.exec_within(id, command, 0).await
    }

    pub(crate) async fn exec_within(
        &mut self,
        id: &str,
        command: &[&str],
        timeout: i64,
    ) -> Result<pb::ExecSyncResponse, Status> {
        let cmd = words(command);
        let request = pb::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout };
        Ok(self.runtime.exec_sync(request).await?.into_inner())
    }

    /// What a command prints in a container.
    pub(crate) async fn output(&mut self, id: &str, command: &[&str]) -> String {
        let answer = self.exec(id, command).await.unwrap();
        assert_eq!(answer.exit_code, 0, "{command:?}: {}", String::from_utf8_lossy(&answer.stderr));
        String::from_utf8(answer.stdout).unwrap().trim_end().to_owned()
    }

    pub(crate) async fn status(&mut self, id: &str) -> Result<pb::ContainerStatus, Status> {
        let request = pb::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        Ok(self.runtime.container_status(request).await?.into_inner().status.unwrap())
    }

    /// The container's first process, as the host sees it.
    pub(crate) async fn pid(&mut self, id: &str) -> u64 {
        let request = pb::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let info = self.runtime.container_status(request).await.unwrap().into_inner().info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
        info["pid"].as_u64().unwrap()
    }

    pub(crate) async fn pod_status(&mut self, id: &str) -> Result<pb::PodSandboxStatus, Status> {
        let request = pb::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        Ok(self.runtime.pod_sandbox_status(request).await?.into_inner().status.unwrap())
    }

    /// Waits until a container has exited.
    pub(crate) async fn exited(&mut self, id: &str) -> pb::ContainerStatus {
        let deadline = tokio::time::Instant::now() + PATIENCE * patience();
        loop {
            let status = self.status(id).await.unwrap();
            if status.state() == pb::ContainerState::ContainerExited {
                return status;
            }
            assert!(tokio::time::Instant::now() < deadline, "container {id} does not exit: {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn stop(&mut self, id: &str, timeout: i64) -> Result<(), Status> {
        self.runtime
            .stop_container(pb::StopContainerRequest { container_id: id.to_owned(), timeout })
            .await?;
        Ok(())
    }

    pub(crate) async fn remove(&mut self, id: &str) -> Result<(), Status> {
        self.runtime.remove_container(pb::RemoveContainerRequest { container_id: id.to_owned() }).await?;
        Ok(())
    }

    pub(crate) async fn stop_pod(&mut self, id: &str) -> Result<(), Status> {
        self.runtime.stop_pod_sandbox(pb::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
        Ok(())
    }

    pub(crate) async fn remove_pod(&mut self, id: &str) -> Result<(), Status> {
        self.runtime
            .remove_pod_sandbox(pb::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() })
            .await?;
        Ok(())
    }

    pub(crate) async fn list_pods(&mut self) -> Vec<pb::PodSandbox> {
        self.runtime
            .list_pod_sandbox(pb::ListPodSandboxRequest { filter: None })
            .await
            .unwrap()
            .into_inner()
            .items
    }

    pub(crate) async fn list_containers(&mut self) -> Vec<pb::Container> {
        let request = pb::ListContainersRequest { filter: None };
        self.runtime.list_containers(request).await.unwrap().into_inner().containers
    }

    /// The container's log, record by record.
    pub(crate) fn log(&self, pod: &str, container: &str) -> Vec<String> {
        let path = self.log_path(pod, container);
        std::fs::read_to_string(&path).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    pub(crate) fn log_path(&self, pod: &str, container: &str) -> PathBuf {
        self.scratch.logs_dir().join(pod).join(format!("{container}/0.log"))
    }

    /// Removes every pod, then proves that nothing is left.
    pub(crate) async fn finish(mut self) {
        // That a daemon was killed a moment ago may be noticed by the next call, which this one is.
        let _ = self.runtime.version(pb::VersionRequest::default()).await;
        for pod in self.list_pods().await {
            self.stop_pod(&pod.id).await.unwrap();
            self.remove_pod(&pod.id).await.unwrap();
        }
        assert!(self.list_pods().await.is_empty() && self.list_containers().await.is_empty());
        self.daemon.stop().unwrap();
        self.nothing_left();
    }

    /// Proves that nothing of a pod is left.
    pub(crate) fn nothing_left(&self) {
        // The bridge plugin never removes its bridge, and the pod's cgroup is its caller's.
        let (bridge, parent) = (format!("+ link: {}", self.scratch.bridge()), self.scratch.cgroup_parent());
        let ours = || {
            let all = self.before.difference(&Ledger::of(&self.scratch));
            // Other tests' nodes come and go beside this one.
            let ours = |line: &String| {
                line.starts_with("+ ")
                    && *line != bridge
                    && !line.ends_with(&parent)
                    && (!line.starts_with("+ rule") || line.contains(self.scratch.id()))
            };
            all.into_iter().filter(ours).collect::<Vec<_>>()
        };
        // Process 1 of the machine may take its time to reap what a killed monitor left.
        let gone = wait_for("every trace is gone", PATIENCE, || ours().is_empty().then_some(()));
        assert!(gone.is_ok(), "left behind: {:#?}", ours());
        for dir in ["state/pods", "state/containers", "root/pods", "root/containers"] {
            let dir = self.scratch.root().join(dir);
            let names = |dir: &Path| -> Vec<PathBuf> {
                std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect()
            };
            let mut left = names(&dir);
            // The trash stays, with nothing in it.
            left.retain(|path| !path.ends_with(".trash") || !names(path).is_empty());
            assert!(left.is_empty(), "left behind: {left:?}");
        }
    }
}

pub(crate) fn connect(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    // The authority is never looked up: the connector goes to the socket.
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_| {
        let socket = socket.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(socket).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    }))
}

pub(crate) fn image_spec(image: &str) -> pb::ImageSpec {
    pb::ImageSpec { image: image.to_owned(), ..Default::default() }
}

pub(crate) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

pub(crate) fn container(name: &str, command: &[&str]) -> pb::ContainerConfig {
    pb::ContainerConfig {
        metadata: Some(pb::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(image_spec(BUSYBOX)),
        command: words(command),
        log_path: format!("{name}/0.log"),
        linux: Some(pb::LinuxContainerConfig {
            security_context: Some(pb::LinuxContainerSecurityContext {
                namespace_options: Some(pb::NamespaceOption {
                    pid: pb::NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(crate) fn security(config: &mut pb::ContainerConfig) -> &mut pb::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

pub(crate) fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// What an OCI runtime may not be able to do. docs/compatibility.md lists the gaps of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ability {
    Checkpoints,
    /// Devices open as far as the container's rules allow.
    DeviceRules,
    /// A command of an exec has its container's seccomp profile.
    SeccompInExec,
    /// Each volume has its own requested propagation, not the container's widest.
    OwnPropagation,
    /// The size of an exec's terminal is there before its command is.
    FirstSize,
    UserNamespaces,
}

/// Whether the runtime of these tests can. By its name: what a daemon says of itself is what is tested.
#[allow(clippy::print_stdout)]
pub(crate) fn runtime_can(ability: Ability) -> bool {
    let Options { runtime, cgroup_driver, .. } = Options::default();
    // youki lacks all of them; devices it leaves to systemd alone.
    let can =
        runtime != "youki" || (ability == Ability::DeviceRules && cgroup_driver == CgroupDriver::Cgroupfs);
    if !can {
        println!("{runtime} lacks {ability:?}");
    }
    can
}

/// Asserts code and that the message says each of these.
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, says: &[&str]) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{}", status.message());
    for word in says {
        assert!(status.message().contains(word), "{word:?} is not in: {}", status.message());
    }
}

/// All items of a stream, and how many messages they came in.
macro_rules! streamed {
    ($client:expr, $call:ident, $request:expr, $items:ident) => {{
        let mut stream = $client.$call($request).await.unwrap().into_inner();
        let (mut items, mut messages) = (Vec::new(), 0);
        while let Some(message) = stream.message().await.unwrap() {
            assert!(!message.$items.is_empty());
            items.extend(message.$items);
            messages += 1;
        }
        (items, messages)
    }};
}
pub(crate) use streamed;
