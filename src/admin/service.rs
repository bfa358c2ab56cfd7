//! The Images service.

use super::proto as pb;
use super::proto::images_server::{Images as Service, ImagesServer};
use super::status::status;
use super::{About, encode, node, pull, verify};
use crate::images::{Credentials, ExportOptions, Format, Images, LoadOptions, Peer, Repair};
use std::convert::Infallible;
use std::path::PathBuf;
use tokio::io::DuplexStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

/// The service.
#[derive(Debug, Clone)]
struct Admin {
    images: Images,
}

type Answer<T> = Result<Response<T>, Status>;

fn server(images: Images, limit: usize) -> ImagesServer<Admin> {
    ImagesServer::new(Admin { images }).max_decoding_message_size(limit).max_encoding_message_size(limit)
}

/// Both services, to be served beside another one. `limit`: bytes of a message.
#[must_use]
pub fn routes(images: Images, about: About, limit: usize) -> Routes {
    Routes::new(server(images, limit)).add_service(node::server(about, limit))
}

/// Serves one client at the other end of `stream` until it disconnects.
///
/// # Errors
/// When the transport fails.
pub async fn serve_one(
    stream: DuplexStream,
    images: Images,
    limit: usize,
) -> Result<(), tonic::transport::Error> {
    let streams = tokio_stream::once(Ok::<_, Infallible>(stream));
    tonic::transport::Server::builder().add_service(server(images, limit)).serve_with_incoming(streams).await
}

/// Credentials for the image's own registry.
fn credentials(given: pb::Credentials) -> Credentials {
    Credentials { username: given.username, password: given.password, ..Default::default() }
}

fn present(field: &str, value: String) -> Result<String, Status> {
    if value.is_empty() { Err(Status::invalid_argument(format!("{field}: is empty"))) } else { Ok(value) }
}

fn absolute(field: &str, path: String) -> Result<PathBuf, Status> {
    let path = PathBuf::from(path);
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Status::invalid_argument(format!("{field}: {} is not absolute", path.display())))
}

/// Default stores of containerd (`defaults.DefaultRootDir`) and containers/storage (storage.conf).
fn peer(peer: pb::import_from_request::Peer, root: &str) -> Result<Peer, Status> {
    use pb::import_from_request::Peer as Of;
    let root = |default: &str| absolute("root", if root.is_empty() { default } else { root }.to_owned());
    match peer {
        Of::Containerd => Ok(Peer::Containerd { root: root("/var/lib/containerd")? }),
        Of::Crio => Ok(Peer::Crio { root: root("/var/lib/containers/storage")? }),
        Of::Unknown => Err(Status::invalid_argument("peer: is not one that is known")),
    }
}

#[tonic::async_trait]
impl Service for Admin {
    async fn list(&self, r: Request<pb::ListRequest>) -> Answer<pb::ListResponse> {
        let stored = self.images.details(&r.into_inner().name).await.map_err(|e| status(&e))?;
        Ok(Response::new(encode::stored(&stored)))
    }

    async fn remove(&self, r: Request<pb::RemoveRequest>) -> Answer<pb::RemoveResponse> {
        let name = present("name", r.into_inner().name)?;
        let removal = self.images.remove_known(&name).await.map_err(|e| status(&e))?;
        // Log: `podwright images rm`.
        tracing::info!(id = %removal.id, containers = removal.containers, "image removed by admin");
        Ok(Response::new(encode::removal(removal)))
    }

    type PullStream = pull::Events;
    async fn pull(&self, r: Request<pb::PullRequest>) -> Answer<Self::PullStream> {
        let r = r.into_inner();
        let reference = present("reference", r.reference)?;
        Ok(Response::new(pull::events(self.images.clone(), reference, r.credentials.map(credentials))))
    }

    async fn load(&self, r: Request<pb::LoadRequest>) -> Answer<pb::LoadResponse> {
        let r = r.into_inner();
        let path = absolute("path", present("path", r.path)?)?;
        let options = LoadOptions { name: Some(r.name).filter(|name| !name.is_empty()) };
        let loaded = self.images.load(&path, options).await.map_err(|e| status(&e))?;
        Ok(Response::new(encode::loaded(loaded)))
    }

    async fn import_from(&self, r: Request<pb::ImportFromRequest>) -> Answer<pb::ImportFromResponse> {
        let r = r.into_inner();
        let peer = peer(r.peer(), &r.root)?;
        let imported = self.images.import_from(peer, &r.names).await.map_err(|e| status(&e))?;
        Ok(Response::new(encode::imported(imported)))
    }

    async fn export(&self, r: Request<pb::ExportRequest>) -> Answer<pb::ExportResponse> {
        let r = r.into_inner();
        if r.names.is_empty() {
            return Err(Status::invalid_argument("names: is empty"));
        }
        let format = match r.format() {
            pb::export_request::Format::Oci => Format::OciArchive,
            pb::export_request::Format::Docker => Format::DockerArchive,
            pb::export_request::Format::OciDir => Format::OciLayout,
        };
        let options = ExportOptions { format, gzip: r.gzip };
        let path = absolute("path", present("path", r.path)?)?;
        let ids = self.images.export(&r.names, &path, options).await.map_err(|e| status(&e))?;
        Ok(Response::new(pb::ExportResponse { ids: ids.iter().map(ToString::to_string).collect() }))
    }

    type VerifyStream = verify::Events;
    async fn verify(&self, r: Request<pb::VerifyRequest>) -> Answer<Self::VerifyStream> {
        let r = r.into_inner();
        let repair = if r.repair { Repair::Yes } else { Repair::No };
        Ok(Response::new(verify::events(self.images.clone(), r.names, repair)))
    }

    async fn collect(&self, r: Request<pb::CollectRequest>) -> Answer<pb::CollectResponse> {
        let r = r.into_inner();
        let collected = self.images.collect(r.unused_images, r.dry_run).await.map_err(|e| status(&e))?;
        if !r.dry_run {
            let (images, layers) = (collected.images.len(), collected.layers.len());
            // Log: `podwright images gc`.
            tracing::info!(images, layers, bytes = collected.freed_bytes(), "collected by admin");
        }
        Ok(Response::new(encode::collected(collected)))
    }

    async fn endpoints(&self, r: Request<pb::EndpointsRequest>) -> Answer<pb::EndpointsResponse> {
        let r = r.into_inner();
        let reference = present("reference", r.reference)?;
        let endpoints = self.images.endpoints(&reference, r.probe).await.map_err(|e| status(&e))?;
        Ok(Response::new(encode::endpoints(endpoints)))
    }
}
