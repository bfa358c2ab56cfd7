//! The CRI RuntimeService: decode, delegate, encode. Owns nothing; every method is a few lines.

use super::chunks::{Chunks, chunks};
use super::lookup::required;
use super::proto as pb;
use super::proto::runtime_service_server::RuntimeService;
use super::status::status;
use super::{checkpoint, decode, encode, events, holding, info, pod_metrics, stats, streaming};
use crate::host::cgroups::Driver;
use crate::model::{ContainerId, SandboxId, Timestamp};
use crate::sandbox::{Condition, ContainerSnapshot, Manager, PodSnapshot, SandboxError, conditions};
use crate::streaming::Urls;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Our name in VersionResponse: it becomes the prefix of container ids in a pod's status, so it never changes.
const RUNTIME_NAME: &str = "podwright";
/// CRI's own version of the Version call (both peers).
const KUBELET_API_VERSION: &str = "0.1.0";
/// The API served.
const API_VERSION: &str = "v1";

/// The service.
#[derive(Debug, Clone)]
pub struct Runtime {
    pods: Manager,
    urls: Urls,
}

type Answer<T> = Result<Response<T>, Status>;

impl Runtime {
    /// The service over these pods; `urls` are for streams.
    #[must_use]
    pub fn new(pods: Manager, urls: Urls) -> Self {
        Self { pods, urls }
    }

    fn wanted_pods(
        &self,
        filter: Option<pb::PodSandboxFilter>,
    ) -> impl Iterator<Item = Arc<PodSnapshot>> + Send + 'static {
        let filter = filter.unwrap_or_default();
        let pods = self.pods.pods().into_iter();
        pods.filter(move |pod| encode::sandbox_passes(&pod.spec, &pod.state, &filter))
    }

    fn wanted_containers(
        &self,
        filter: Option<pb::ContainerFilter>,
    ) -> impl Iterator<Item = Arc<ContainerSnapshot>> + Send + 'static {
        let filter = filter.unwrap_or_default();
        let containers = self.pods.pods().into_iter().flat_map(|pod| pod.containers.clone());
        containers.filter(move |container| encode::container_passes(container, &filter))
    }
}

fn shared<T>(outcome: Result<T, Arc<SandboxError>>) -> Result<T, Status> {
    outcome.map_err(|error| status(&error))
}

fn own<T>(outcome: Result<T, SandboxError>) -> Result<T, Status> {
    outcome.map_err(|error| status(&error))
}

fn new_id<T>(id: Result<T, crate::model::IdError>) -> Result<T, Status> {
    id.map_err(|error| Status::internal(error.to_string()))
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<pb::VersionRequest>) -> Answer<pb::VersionResponse> {
        Ok(Response::new(pb::VersionResponse {
            version: KUBELET_API_VERSION.to_owned(),
            runtime_name: RUNTIME_NAME.to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: API_VERSION.to_owned(),
        }))
    }

    async fn run_pod_sandbox(
        &self,
        r: Request<pb::RunPodSandboxRequest>,
    ) -> Answer<pb::RunPodSandboxResponse> {
        let r = r.into_inner();
        let id = new_id(SandboxId::random())?;
        let spec = decode::sandbox(r.config, r.runtime_handler, id, Timestamp::now())?;
        let id = shared(self.pods.run_pod(spec).await)?;
        Ok(Response::new(pb::RunPodSandboxResponse { pod_sandbox_id: id.to_string() }))
    }

    async fn stop_pod_sandbox(
        &self,
        r: Request<pb::StopPodSandboxRequest>,
    ) -> Answer<pb::StopPodSandboxResponse> {
        let id = r.into_inner().pod_sandbox_id;
        required("pod_sandbox_id", &id)?;
        shared(self.pods.stop_pod(&id).await)?;
        Ok(Response::new(pb::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        r: Request<pb::RemovePodSandboxRequest>,
    ) -> Answer<pb::RemovePodSandboxResponse> {
        let id = r.into_inner().pod_sandbox_id;
        required("pod_sandbox_id", &id)?;
        shared(self.pods.remove_pod(&id).await)?;
        Ok(Response::new(pb::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        r: Request<pb::PodSandboxStatusRequest>,
    ) -> Answer<pb::PodSandboxStatusResponse> {
        let r = r.into_inner();
        // Read before the snapshot: an event about a later one must count as newer.
        let timestamp = self.pods.node().clock.next().nanos();
        let pod = own(self.pods.pod(&r.pod_sandbox_id))?;
        let info = if r.verbose { info::sandbox(&pod) } else { Default::default() };
        Ok(Response::new(pb::PodSandboxStatusResponse {
            status: Some(encode::sandbox_status(&pod)),
            info,
            containers_statuses: events::statuses(&self.pods, &pod),
            timestamp,
        }))
    }

    async fn list_pod_sandbox(
        &self,
        r: Request<pb::ListPodSandboxRequest>,
    ) -> Answer<pb::ListPodSandboxResponse> {
        Ok(Response::new(pb::ListPodSandboxResponse::of(self.wanted_pods(r.into_inner().filter))))
    }

    async fn create_container(
        &self,
        r: Request<pb::CreateContainerRequest>,
    ) -> Answer<pb::CreateContainerResponse> {
        let r = r.into_inner();
        required("pod_sandbox_id", &r.pod_sandbox_id)?;
        let Some(config) = r.config else { return Err(Status::invalid_argument("config: is missing")) };
        let pod = own(self.pods.pod(&r.pod_sandbox_id))?;
        let (image, restore) = checkpoint::image(&self.pods, config.image.as_ref()).await?;
        let id = new_id(ContainerId::random())?;
        let mut spec = decode::container(config, &pod.spec, image, id, Timestamp::now())?;
        spec.restore = restore;
        let id = shared(self.pods.create_container(spec).await)?;
        Ok(Response::new(pb::CreateContainerResponse { container_id: id.to_string() }))
    }

    async fn start_container(
        &self,
        r: Request<pb::StartContainerRequest>,
    ) -> Answer<pb::StartContainerResponse> {
        let id = r.into_inner().container_id;
        required("container_id", &id)?;
        shared(self.pods.start_container(&id).await)?;
        Ok(Response::new(pb::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        r: Request<pb::StopContainerRequest>,
    ) -> Answer<pb::StopContainerResponse> {
        let r = r.into_inner();
        required("container_id", &r.container_id)?;
        let grace = Duration::from_secs(u64::try_from(r.timeout).unwrap_or(0));
        shared(self.pods.stop_container(&r.container_id, grace).await)?;
        Ok(Response::new(pb::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        r: Request<pb::RemoveContainerRequest>,
    ) -> Answer<pb::RemoveContainerResponse> {
        let id = r.into_inner().container_id;
        required("container_id", &id)?;
        shared(self.pods.remove_container(&id).await)?;
        Ok(Response::new(pb::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        r: Request<pb::ListContainersRequest>,
    ) -> Answer<pb::ListContainersResponse> {
        Ok(Response::new(pb::ListContainersResponse::of(self.wanted_containers(r.into_inner().filter))))
    }

    async fn container_status(
        &self,
        r: Request<pb::ContainerStatusRequest>,
    ) -> Answer<pb::ContainerStatusResponse> {
        let r = r.into_inner();
        let (pod, container) = own(self.pods.container(&r.container_id))?;
        let signal = info::stop_signal(&self.pods, &container);
        let info =
            if r.verbose { info::container(self.pods.node(), &pod, &container) } else { Default::default() };
        Ok(Response::new(pb::ContainerStatusResponse {
            status: Some(encode::container_status(&container, signal)),
            info,
        }))
    }

    async fn update_container_resources(
        &self,
        r: Request<pb::UpdateContainerResourcesRequest>,
    ) -> Answer<pb::UpdateContainerResourcesResponse> {
        let r = r.into_inner();
        required("container_id", &r.container_id)?;
        let limits = decode::update(r.linux)?;
        shared(self.pods.update_container(&r.container_id, limits).await)?;
        Ok(Response::new(pb::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        r: Request<pb::ReopenContainerLogRequest>,
    ) -> Answer<pb::ReopenContainerLogResponse> {
        own(self.pods.reopen_log(&r.into_inner().container_id).await)?;
        Ok(Response::new(pb::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, r: Request<pb::ExecSyncRequest>) -> Answer<pb::ExecSyncResponse> {
        let r = r.into_inner();
        required("container_id", &r.container_id)?;
        if r.cmd.is_empty() {
            return Err(Status::invalid_argument("cmd: is empty"));
        }
        // Zero means no limit.
        let timeout = u64::try_from(r.timeout).ok().filter(|s| *s > 0).map(Duration::from_secs);
        let output = own(self.pods.exec_sync(&r.container_id, r.cmd, timeout).await)?;
        let most = self.pods.node().config.grpc.max_message_bytes;
        Ok(holding::until_sent(encode::output(output, most)))
    }

    async fn container_stats(
        &self,
        r: Request<pb::ContainerStatsRequest>,
    ) -> Answer<pb::ContainerStatsResponse> {
        let (pod, container) = own(self.pods.container(&r.into_inner().container_id))?;
        let stats = stats::containers(self.pods.node().clone(), vec![(pod, container)]).await;
        Ok(Response::new(pb::ContainerStatsResponse { stats: stats.into_iter().next() }))
    }

    async fn list_container_stats(
        &self,
        r: Request<pb::ListContainerStatsRequest>,
    ) -> Answer<pb::ListContainerStatsResponse> {
        let filter = r.into_inner().filter.unwrap_or_default();
        let wanted = stats::select(&self.pods, &filter);
        let stats = stats::containers(self.pods.node().clone(), wanted).await;
        Ok(Response::new(pb::ListContainerStatsResponse { stats }))
    }

    async fn status(&self, r: Request<pb::StatusRequest>) -> Answer<pb::StatusResponse> {
        let condition = |condition: Condition| pb::RuntimeCondition {
            r#type: condition.name.to_owned(),
            status: condition.ok,
            reason: condition.reason.to_owned(),
            message: condition.message,
        };
        let node = self.pods.node();
        let conditions = conditions(node).into_iter().map(condition).collect();
        let runtime_handlers = info::handlers(node).await;
        // Such a pod gets the host's /sys, recursively read-only.
        let user_namespaces_host_network = runtime_handlers
            .iter()
            .filter_map(|h| h.features)
            .any(|f| f.user_namespaces && f.recursive_read_only_mounts);
        Ok(Response::new(pb::StatusResponse {
            status: Some(pb::RuntimeStatus { conditions }),
            info: if r.into_inner().verbose { info::node(node) } else { Default::default() },
            runtime_handlers,
            features: Some(pb::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network,
                mount_options: true,
            }),
        }))
    }

    async fn runtime_config(
        &self,
        _: Request<pb::RuntimeConfigRequest>,
    ) -> Answer<pb::RuntimeConfigResponse> {
        let driver = match self.pods.node().cgroups.driver {
            Driver::Cgroupfs => pb::CgroupDriver::Cgroupfs,
            Driver::Systemd => pb::CgroupDriver::Systemd,
        };
        let linux = pb::LinuxRuntimeConfiguration { cgroup_driver: driver.into() };
        Ok(Response::new(pb::RuntimeConfigResponse { linux: Some(linux) }))
    }

    async fn update_runtime_config(
        &self,
        r: Request<pb::UpdateRuntimeConfigRequest>,
    ) -> Answer<pb::UpdateRuntimeConfigResponse> {
        let network = r.into_inner().runtime_config.and_then(|c| c.network_config).unwrap_or_default();
        let ranges = decode::pod_ranges(&network.pod_cidr)?;
        own(self.pods.configure_network(ranges).await)?;
        Ok(Response::new(pb::UpdateRuntimeConfigResponse {}))
    }

    async fn exec(&self, r: Request<pb::ExecRequest>) -> Answer<pb::ExecResponse> {
        Ok(Response::new(streaming::exec(&self.pods, &self.urls, r.into_inner())?))
    }

    async fn attach(&self, r: Request<pb::AttachRequest>) -> Answer<pb::AttachResponse> {
        Ok(Response::new(streaming::attach(&self.pods, &self.urls, r.into_inner())?))
    }

    async fn port_forward(&self, r: Request<pb::PortForwardRequest>) -> Answer<pb::PortForwardResponse> {
        Ok(Response::new(streaming::port_forward(&self.pods, &self.urls, r.into_inner())?))
    }

    async fn pod_sandbox_stats(
        &self,
        r: Request<pb::PodSandboxStatsRequest>,
    ) -> Answer<pb::PodSandboxStatsResponse> {
        let id = own(self.pods.ready_pod("read the stats of", &r.into_inner().pod_sandbox_id))?;
        let pod = own(self.pods.pod(id.as_str()))?;
        let stats = stats::pods(&self.pods, vec![pod]).await.into_iter().next();
        Ok(Response::new(pb::PodSandboxStatsResponse { stats }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        r: Request<pb::ListPodSandboxStatsRequest>,
    ) -> Answer<pb::ListPodSandboxStatsResponse> {
        let filter = r.into_inner().filter.unwrap_or_default();
        let wanted = stats::select_pods(&self.pods, &filter);
        Ok(Response::new(pb::ListPodSandboxStatsResponse { stats: stats::pods(&self.pods, wanted).await }))
    }

    async fn checkpoint_container(
        &self,
        r: Request<pb::CheckpointContainerRequest>,
    ) -> Answer<pb::CheckpointContainerResponse> {
        Ok(Response::new(checkpoint::container(&self.pods, r).await?))
    }

    async fn checkpoint_pod(
        &self,
        r: Request<pb::CheckpointPodRequest>,
    ) -> Answer<pb::CheckpointPodResponse> {
        Ok(Response::new(checkpoint::pod(&self.pods, r).await?))
    }

    async fn restore_pod(&self, r: Request<pb::RestorePodRequest>) -> Answer<pb::RestorePodResponse> {
        Ok(Response::new(checkpoint::restore(&self.pods, r).await?))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<pb::ListMetricDescriptorsRequest>,
    ) -> Answer<pb::ListMetricDescriptorsResponse> {
        Ok(Response::new(pb::ListMetricDescriptorsResponse { descriptors: pod_metrics::descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<pb::ListPodSandboxMetricsRequest>,
    ) -> Answer<pb::ListPodSandboxMetricsResponse> {
        Ok(Response::new(pb::ListPodSandboxMetricsResponse {
            pod_metrics: pod_metrics::list(&self.pods).await,
        }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        r: Request<pb::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<pb::UpdatePodSandboxResourcesResponse> {
        let r = r.into_inner();
        required("pod_sandbox_id", &r.pod_sandbox_id)?;
        shared(self.pods.update_pod(&r.pod_sandbox_id, decode::pod_limits(r.overhead, r.resources)).await)?;
        Ok(Response::new(pb::UpdatePodSandboxResourcesResponse {}))
    }

    type StreamPodSandboxesStream = Chunks<pb::StreamPodSandboxesResponse>;
    async fn stream_pod_sandboxes(
        &self,
        r: Request<pb::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let wanted = self.wanted_pods(r.into_inner().filter).map(|pod| encode::sandbox(&pod));
        Ok(Response::new(chunks(wanted, |pod_sandboxes| pb::StreamPodSandboxesResponse { pod_sandboxes })))
    }

    type StreamContainersStream = Chunks<pb::StreamContainersResponse>;
    async fn stream_containers(
        &self,
        r: Request<pb::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let wanted = self.wanted_containers(r.into_inner().filter).map(|c| encode::container(&c));
        Ok(Response::new(chunks(wanted, |containers| pb::StreamContainersResponse { containers })))
    }

    type StreamContainerStatsStream = Chunks<pb::StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        r: Request<pb::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let wanted = stats::select(&self.pods, &r.into_inner().filter.unwrap_or_default());
        let stats = stats::containers(self.pods.node().clone(), wanted).await;
        let message = |container_stats| pb::StreamContainerStatsResponse { container_stats };
        Ok(Response::new(chunks(stats.into_iter(), message)))
    }

    type StreamPodSandboxStatsStream = Chunks<pb::StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        r: Request<pb::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let wanted = stats::select_pods(&self.pods, &r.into_inner().filter.unwrap_or_default());
        let stats = stats::pods(&self.pods, wanted).await;
        let message = |pod_sandbox_stats| pb::StreamPodSandboxStatsResponse { pod_sandbox_stats };
        Ok(Response::new(chunks(stats.into_iter(), message)))
    }

    type StreamPodSandboxMetricsStream = Chunks<pb::StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<pb::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let metrics = pod_metrics::list(&self.pods).await;
        let message = |pod_sandbox_metrics| pb::StreamPodSandboxMetricsResponse { pod_sandbox_metrics };
        Ok(Response::new(chunks(metrics.into_iter(), message)))
    }

    type GetContainerEventsStream = events::Events;
    async fn get_container_events(
        &self,
        _: Request<pb::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        Ok(Response::new(events::subscribe(&self.pods)?))
    }
}
