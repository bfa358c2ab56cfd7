//! One runtime under measurement: its connection and the requests of a pod's life. Measures nothing.

use crate::Cli;
use anyhow::{Context as _, Result};
use pb::image_service_client::ImageServiceClient;
use pb::runtime_service_client::RuntimeServiceClient;
use podwright::cri::proto as pb;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tonic::transport::{Channel, Endpoint};

/// Runs until it is ended, unlike a plain sleep, which ignores SIGTERM as PID 1.
const COMMAND: [&str; 3] = ["/bin/sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & wait"];
/// Seconds for a container to end by itself: it does so at once.
const GRACE: i64 = 10;

/// One runtime as given on the command line.
pub(crate) struct Given<'a> {
    pub(crate) address: &'a str,
    pub(crate) pid: Option<u32>,
    pub(crate) dir: Option<&'a Path>,
    pub(crate) binaries: &'a [PathBuf],
    pub(crate) cgroup: &'a str,
    pub(crate) metrics: Option<SocketAddr>,
}

/// A runtime. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    pub(crate) name: String,
    pub(crate) pid: Option<u32>,
    pub(crate) dir: Option<PathBuf>,
    pub(crate) binaries: Vec<PathBuf>,
    pub(crate) metrics: Option<SocketAddr>,
    cgroup: String,
    image: String,
    logs: PathBuf,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

impl Side {
    pub(crate) fn new(given: &Given<'_>, cli: &Cli) -> Result<Self> {
        let (name, socket) = given
            .address
            .split_once("=unix://")
            .with_context(|| format!("{} is not NAME=unix:///SOCKET", given.address))?;
        let channel = connect(Path::new(socket));
        Ok(Self {
            name: name.to_owned(),
            pid: given.pid,
            dir: given.dir.map(Path::to_owned),
            binaries: given.binaries.to_vec(),
            metrics: given.metrics,
            cgroup: given.cgroup.to_owned(),
            image: cli.image.clone(),
            logs: cli.logs.join(name),
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel),
        })
    }

    fn image(&self) -> Option<pb::ImageSpec> {
        Some(pb::ImageSpec { image: self.image.clone(), ..Default::default() })
    }

    pub(crate) async fn pull(&mut self) -> Result<()> {
        self.pull_image(&self.image.clone()).await
    }

    pub(crate) async fn pull_image(&mut self, name: &str) -> Result<()> {
        let image = Some(pb::ImageSpec { image: name.to_owned(), ..Default::default() });
        self.images.pull_image(pb::PullImageRequest { image, ..Default::default() }).await?;
        Ok(())
    }

    pub(crate) async fn remove_image(&mut self, name: &str) -> Result<()> {
        let image = Some(pb::ImageSpec { image: name.to_owned(), ..Default::default() });
        self.images.remove_image(pb::RemoveImageRequest { image }).await?;
        Ok(())
    }

    /// A pod as kubelet describes it.
    pub(crate) fn pod(&self, name: &str) -> Result<pb::PodSandboxConfig> {
        let logs = self.logs.join(name);
        std::fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
        Ok(pb::PodSandboxConfig {
            metadata: Some(pb::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: logs.to_string_lossy().into_owned(),
            linux: Some(pb::LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup.clone(),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    pub(crate) async fn run_pod(&mut self, config: &pb::PodSandboxConfig) -> Result<String> {
        let request = pb::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        Ok(self.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    pub(crate) async fn create(&mut self, pod: &str, sandbox: &pb::PodSandboxConfig) -> Result<String> {
        let own_pids = pb::NamespaceOption { pid: pb::NamespaceMode::Container.into(), ..Default::default() };
        let security =
            pb::LinuxContainerSecurityContext { namespace_options: Some(own_pids), ..Default::default() };
        let config = pb::ContainerConfig {
            metadata: Some(pb::ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
            image: self.image(),
            command: COMMAND.map(str::to_owned).to_vec(),
            log_path: "main.log".to_owned(),
            linux: Some(pb::LinuxContainerConfig { security_context: Some(security), ..Default::default() }),
            ..Default::default()
        };
        let request = pb::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox.clone()),
        };
        Ok(self.runtime.create_container(request).await?.into_inner().container_id)
    }

    pub(crate) async fn start(&mut self, id: &str) -> Result<()> {
        self.runtime.start_container(pb::StartContainerRequest { container_id: id.to_owned() }).await?;
        Ok(())
    }

    pub(crate) async fn exec(&mut self, id: &str) -> Result<()> {
        let cmd = vec!["/bin/true".to_owned()];
        let request = pb::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: 0 };
        let answer = self.runtime.exec_sync(request).await?.into_inner();
        anyhow::ensure!(answer.exit_code == 0, "`true` gave {answer:?}");
        Ok(())
    }

    pub(crate) async fn stop(&mut self, id: &str) -> Result<()> {
        let request = pb::StopContainerRequest { container_id: id.to_owned(), timeout: GRACE };
        self.runtime.stop_container(request).await?;
        Ok(())
    }

    /// Returns when the container is gone, however long that takes.
    pub(crate) async fn kill(&mut self, id: &str) -> Result<()> {
        let request = pb::StopContainerRequest { container_id: id.to_owned(), timeout: 0 };
        self.runtime.stop_container(request).await?;
        Ok(())
    }

    /// The ids of all pods.
    pub(crate) async fn pods(&mut self) -> Result<Vec<String>> {
        let request = pb::ListPodSandboxRequest { filter: None };
        let pods = self.runtime.list_pod_sandbox(request).await?.into_inner().items;
        Ok(pods.into_iter().map(|pod| pod.id).collect())
    }

    pub(crate) async fn containers(&mut self) -> Result<()> {
        self.runtime.list_containers(pb::ListContainersRequest { filter: None }).await?;
        Ok(())
    }

    pub(crate) async fn pod_status(&mut self, id: &str) -> Result<()> {
        let request = pb::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        self.runtime.pod_sandbox_status(request).await?;
        Ok(())
    }

    pub(crate) async fn container_status(&mut self, id: &str) -> Result<()> {
        let request = pb::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        self.runtime.container_status(request).await?;
        Ok(())
    }

    pub(crate) async fn status(&mut self) -> Result<()> {
        self.runtime.status(pb::StatusRequest { verbose: false }).await?;
        Ok(())
    }

    pub(crate) async fn remove(&mut self, id: &str) -> Result<()> {
        self.runtime.remove_container(pb::RemoveContainerRequest { container_id: id.to_owned() }).await?;
        Ok(())
    }

    pub(crate) async fn stop_pod(&mut self, id: &str) -> Result<()> {
        self.runtime.stop_pod_sandbox(pb::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
        Ok(())
    }

    pub(crate) async fn remove_pod(&mut self, id: &str) -> Result<()> {
        self.runtime
            .remove_pod_sandbox(pb::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() })
            .await?;
        Ok(())
    }
}

fn connect(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    // The authority is never resolved: the connector goes to the socket.
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_| {
        let socket = socket.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(socket).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    }))
}
