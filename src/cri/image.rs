//! The CRI ImageService: decode, delegate, encode.

use super::chunks::{Chunks, chunks};
use super::proto as pb;
use super::proto::image_service_server::ImageService;
use super::status::image_status;
use super::{encode, info};
use crate::host::usage::Usage;
use crate::images::{self, Credentials, Images};
use crate::model::Timestamp;
use crate::sandbox::{Node, WritableLayers};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The service.
#[derive(Debug, Clone)]
pub struct Image {
    images: Images,
    layers: Arc<WritableLayers>,
}

type Answer<T> = Result<Response<T>, Status>;

impl Image {
    /// The service over this node's store.
    #[must_use]
    pub fn new(node: &Node) -> Self {
        let (images, layers) = (node.images.clone(), node.layers.clone());
        Self { images, layers }
    }

    fn wanted(&self, filter: Option<pb::ImageFilter>) -> Vec<Arc<images::Image>> {
        match filter.and_then(|f| f.image).map(|i| i.image).filter(|name| !name.is_empty()) {
            None => self.images.list(),
            Some(name) => self.images.status(&name).into_iter().collect(),
        }
    }
}

fn image_of(spec: Option<pb::ImageSpec>) -> Result<String, Status> {
    let image = spec.map(|s| s.image).unwrap_or_default();
    if image.is_empty() { Err(Status::invalid_argument("image.image: is empty")) } else { Ok(image) }
}

fn credentials(auth: pb::AuthConfig) -> Credentials {
    Credentials {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    }
}

#[tonic::async_trait]
impl ImageService for Image {
    async fn list_images(&self, r: Request<pb::ListImagesRequest>) -> Answer<pb::ListImagesResponse> {
        let images = self.wanted(r.into_inner().filter);
        Ok(Response::new(pb::ListImagesResponse {
            images: images.iter().map(|i| encode::image(i)).collect(),
        }))
    }

    type StreamImagesStream = Chunks<pb::StreamImagesResponse>;
    async fn stream_images(&self, r: Request<pb::StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        let images = self.wanted(r.into_inner().filter).into_iter().map(|i| encode::image(&i));
        Ok(Response::new(chunks(images, |images| pb::StreamImagesResponse { images })))
    }

    async fn image_status(&self, r: Request<pb::ImageStatusRequest>) -> Answer<pb::ImageStatusResponse> {
        let r = r.into_inner();
        let name = image_of(r.image)?;
        let image = self.images.status(&name);
        let info = match &image {
            Some(image) if r.verbose => {
                let config = self.images.read_config(&image.id).await.map_err(|e| image_status(&e))?;
                info::image(image, &config)
            }
            Some(_) | None => Default::default(),
        };
        Ok(Response::new(pb::ImageStatusResponse { image: image.map(|i| encode::image(&i)), info }))
    }

    async fn pull_image(&self, r: Request<pb::PullImageRequest>) -> Answer<pb::PullImageResponse> {
        let r = r.into_inner();
        let name = image_of(r.image)?;
        let id = self.images.pull(&name, r.auth.map(credentials)).await.map_err(|e| image_status(&e))?;
        Ok(Response::new(pb::PullImageResponse { image_ref: id.to_string() }))
    }

    async fn remove_image(&self, r: Request<pb::RemoveImageRequest>) -> Answer<pb::RemoveImageResponse> {
        let name = image_of(r.into_inner().image)?;
        self.images.remove(&name).await.map_err(|e| image_status(&e))?;
        Ok(Response::new(pb::RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<pb::ImageFsInfoRequest>) -> Answer<pb::ImageFsInfoResponse> {
        let images = self.images.fs_usage();
        let used = Usage { bytes: images.used_bytes, inodes: images.inodes_used };
        let (layers, now) = (self.layers.total(), Timestamp::now());
        Ok(Response::new(pb::ImageFsInfoResponse {
            image_filesystems: vec![encode::file_system(&images.mountpoint, used, now)],
            container_filesystems: vec![encode::file_system(
                self.layers.file_system(),
                layers.usage,
                layers.at,
            )],
        }))
    }
}
