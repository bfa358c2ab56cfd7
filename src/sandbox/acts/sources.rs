//! The host's side of a container's mounts, looked at on threads for foreign file systems (`host::foreign`): what a
//! request names may hang. Keeps to values and descriptors; makes nothing of the container's, so that a look which comes
//! back after its call was answered changes nothing.

use super::idmap;
use super::node::Node;
use super::selinux;
use crate::host::foreign::{self, Asked, Found, Missing, Progress};
use crate::host::monitor::NamespacePaths;
use crate::host::rootfs::Detached;
use crate::model::{ContainerSpec, Mount, MountSource, SandboxSpec};
use crate::sandbox::offload::blocking;
use crate::sandbox::words::error::SandboxError;
use podwright_sys::apart::Outbox;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What to bind for one mount.
#[derive(Debug)]
pub(in crate::sandbox) enum Source {
    /// A path of the host without symlinks.
    Host(PathBuf),
    /// The same with mapped ids, mounted nowhere yet.
    Mapped(Detached),
    /// What the request names is no path of the host's.
    NotOfHost,
}

/// The same as it comes from the process that looked: its files come beside.
enum Resolved {
    Host(PathBuf),
    Mapped { is_dir: bool },
    NotOfHost,
}

/// Whose paths are looked at, and until when.
#[derive(Debug, Clone)]
pub(in crate::sandbox) struct Look {
    pub(in crate::sandbox) node: Arc<Node>,
    pub(in crate::sandbox) pod: Arc<SandboxSpec>,
    pub(in crate::sandbox) spec: Arc<ContainerSpec>,
    /// When its call has to be answered.
    pub(in crate::sandbox) until: Instant,
}

impl Look {
    /// How long a look may take: as configured, or what is left for the call.
    fn limit(&self) -> Duration {
        let left = self.until.saturating_duration_since(Instant::now());
        self.node.config.host_path_limit().min(left)
    }

    /// Does `work`, which says by their numbers at which of the paths it is, in a process of its own; not at all where there
    /// is none. With the files that it hands over.
    pub(in crate::sandbox) async fn at<T: Send + 'static>(
        &self,
        places: Vec<PathBuf>,
        work: impl Fn(&Progress, &Outbox<'_>) -> Result<T, SandboxError> + Send + 'static,
    ) -> Result<Option<(T, Vec<OwnedFd>)>, SandboxError> {
        if places.is_empty() {
            return Ok(None);
        }
        let asked = Asked { pod: self.pod.id.to_string(), places, limit: self.limit() };
        let (result, files) = self.node.foreign.apart(asked, work).await?;
        Ok(Some((result?, files)))
    }

    /// The host's side of each mount.
    pub(in crate::sandbox) async fn sources(
        &self,
        namespaces: &NamespacePaths,
    ) -> Result<Vec<Source>, SandboxError> {
        let (look, namespaces) = (self.clone(), namespaces.clone());
        let places = self.paths(|_| true).map(|(_, path)| path.to_owned()).collect();
        let found = self.at(places, move |progress, outbox| look.resolve(&namespaces, progress, outbox));
        let Some((found, files)) = found.await? else {
            return Ok(self.spec.mounts.iter().map(|_| Source::NotOfHost).collect());
        };
        let mut files = files.into_iter();
        let source = |found| match found {
            Resolved::Host(path) => Some(Source::Host(path)),
            Resolved::Mapped { is_dir } => Some(Source::Mapped(Detached::of(files.next()?, is_dir))),
            Resolved::NotOfHost => Some(Source::NotOfHost),
        };
        let sources: Option<Vec<Source>> = found.into_iter().map(source).collect();
        sources.ok_or(SandboxError::ShuttingDown)
    }

    fn resolve(
        &self,
        namespaces: &NamespacePaths,
        progress: &Progress,
        outbox: &Outbox<'_>,
    ) -> Result<Vec<Resolved>, SandboxError> {
        let map = idmap::of_pod(&self.pod, namespaces)?;
        let mut number = 0;
        let resolve = |mount: &Mount| {
            let MountSource::Host(path) = &mount.source else { return Ok(Resolved::NotOfHost) };
            progress.at(number);
            number += 1;
            let found = host_source(&self.node, mount, path, progress)?;
            Ok(match idmap::mapped_source(mount, &found, map.as_ref())? {
                Some(mapped) => {
                    outbox.put(mapped.as_fd()).map_err(SandboxError::io("hand over", path))?;
                    Resolved::Mapped { is_dir: mapped.is_dir }
                }
                None => Resolved::Host(found.path),
            })
        };
        self.spec.mounts.iter().map(resolve).collect()
    }

    /// Labels the volumes that ask for it. One that is so large that the time is up is labelled to its end by the thread
    /// that began, and the next call finds it done; as long as it labels file after file, it does not hang.
    pub(in crate::sandbox) async fn label_volumes(&self) -> Result<(), SandboxError> {
        let look = self.clone();
        let places = self.paths(|mount| mount.selinux_relabel).map(|(_, path)| path.to_owned()).collect();
        let labelled = self.at(places, move |progress, _| {
            let mounts = look.paths(|mount| mount.selinux_relabel).enumerate();
            for (number, (mount, path)) in mounts {
                progress.at(number);
                let source = host_source(&look.node, mount, path, progress)?.path;
                progress.works();
                let moves = || progress.moves();
                selinux::label_volume(&look.node, &look.pod, &look.spec, mount, &source, &moves)?;
            }
            Ok(())
        });
        labelled.await.map(|_| ())
    }

    fn paths(&self, of: impl Fn(&Mount) -> bool) -> impl Iterator<Item = (&Mount, &Path)> {
        self.spec.mounts.iter().filter(move |mount| of(mount)).filter_map(|mount| match &mount.source {
            MountSource::Host(path) => Some((mount, path.as_path())),
            MountSource::Image(_) => None,
        })
    }
}

/// Does `work`, which looks at `places` of the host that a request names for `whose` sake; without any, on a thread of
/// the common pool. Each is gone to first, so that what hangs is known by what it is, and by its own name. `work` is told
/// whereby it can say where it is.
pub(in crate::sandbox) async fn look_at<T: Send + 'static>(
    node: &Node,
    whose: &str,
    places: Vec<PathBuf>,
    limit: Duration,
    work: impl FnOnce(Option<&Progress>) -> Result<T, SandboxError> + Send + 'static,
) -> Result<T, SandboxError> {
    if places.is_empty() {
        return blocking(move |_| work(None)).await;
    }
    let asked = Asked { pod: whose.to_owned(), places: places.clone(), limit };
    let looks = move |progress: &Progress| {
        for (number, place) in places.iter().enumerate() {
            progress.at(number);
            // What is missing, or not to be had, is told by the work.
            drop(foreign::find(progress, place, Missing::Refused)?);
        }
        work(Some(progress))
    };
    node.foreign.run(asked, looks).await?
}

/// As [`look_at`], in a process of its own where there are places: `work` may neither capture nor return descriptors.
pub(in crate::sandbox) async fn look_apart<T: Send + 'static>(
    node: &Node,
    whose: &str,
    places: Vec<PathBuf>,
    limit: Duration,
    work: impl Fn(Option<&Progress>) -> Result<T, SandboxError> + Send + 'static,
) -> Result<T, SandboxError> {
    if places.is_empty() {
        return blocking(move |_| work(None)).await;
    }
    let asked = Asked { pod: whose.to_owned(), places: places.clone(), limit };
    let looks = move |progress: &Progress, _: &Outbox<'_>| {
        for (number, place) in places.iter().enumerate() {
            progress.at(number);
            drop(foreign::find(progress, place, Missing::Refused)?);
        }
        work(Some(progress))
    };
    node.foreign.apart(asked, looks).await?.0
}

/// A host path without symlinks. One that is missing becomes a directory, as with both peers: `hostPath` volumes
/// without a `type` rely on it. It stays when the container goes, for it is the host's.
fn host_source(node: &Node, mount: &Mount, path: &Path, progress: &Progress) -> Result<Found, SandboxError> {
    let must_exist = &node.config.containers.absent_mount_sources_to_reject;
    let missing = if must_exist.iter().any(|m| m == path) { Missing::Refused } else { Missing::Made };
    foreign::find(progress, path, missing)?.map_err(|source| SandboxError::MountSource {
        container_path: mount.container_path.clone(),
        host_path: path.to_owned(),
        source,
    })
}
