//! A container's bundle: made at create, removed at remove. Each step is idempotent or undone. Decides nothing about
//! states: that is `life::pod`.

use super::files::PodFiles;
use super::granted::Granted;
use super::idmap;
use super::node::Node;
use super::private::{make_private_dir, remove_tree, write_private};
use super::restore;
use super::room;
use super::root_dirs;
use super::run;
use super::selinux;
use super::sources::{Look, Source, look_apart};
use super::volumes;
use crate::host::foreign::{Asked, Progress};
use crate::host::monitor::NamespacePaths;
use crate::host::rootfs::IdMap;
use crate::host::users::{self, User};
use crate::host::{devices, mountinfo, pidns, remove, rootfs};
use crate::images::Hold;
use crate::model::{ContainerId, ContainerSpec, Mount, MountSource, NamespaceMode, SandboxSpec};
use crate::sandbox::offload::{OffThread, blocking};
use crate::sandbox::spec::{self, ImageProcess, Inputs, PodNamespaces};
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::record::ContainerRecord;
use crate::sandbox::words::state::{ContainerState, Init};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a creation may take, from the call to the bundle: the kubelet's own limit for CreateContainer.
pub(in crate::sandbox) const CREATION_LIMIT: Duration = Duration::from_secs(110);
/// How long RemoveContainer waits for a writable layer to be gone, a tenth of the kubelet's own limit. A larger one is out
/// of sight by then, and goes on being removed; a daemon that ends meanwhile goes on with it at its next start.
const REMOVAL_WAIT: Duration = Duration::from_secs(12);
/// How long unmounting a volume of the host's is waited for: a server that answers takes some milliseconds.
const UNMOUNT_WAIT: Duration = Duration::from_secs(5);
/// Nothing reads a writable layer after a reboot (records of containers do not survive one either), so nothing in it
/// need be synced. Without this (Linux 5.10), the end of each container syncs the whole file system that the layer is
/// on, other people's data included.
const WRITABLE_LAYER: &[&str] = &["volatile"];
/// What making a bundle needs.
#[derive(Debug)]
pub(in crate::sandbox) struct Request {
    pub(in crate::sandbox) node: Arc<Node>,
    pub(in crate::sandbox) pod: Arc<SandboxSpec>,
    pub(in crate::sandbox) spec: Arc<ContainerSpec>,
    pub(in crate::sandbox) hold: Arc<Hold>,
    pub(in crate::sandbox) volumes: volumes::Holds,
    pub(in crate::sandbox) granted: Granted,
    pub(in crate::sandbox) namespaces: NamespacePaths,
    /// Whose PID namespace a TARGET container joins.
    pub(in crate::sandbox) target: Option<Init>,
    /// When the call has to be answered.
    pub(in crate::sandbox) until: Instant,
    /// The pod's other containers.
    pub(in crate::sandbox) siblings: Vec<ContainerId>,
    /// As it is recorded before there is a bundle.
    pub(in crate::sandbox) record: ContainerRecord,
}

/// A bundle that is ready.
#[derive(Debug)]
pub(in crate::sandbox) struct Prepared {
    pub(in crate::sandbox) user: User,
}

/// Whether `again` asks for what `existing` is.
pub(in crate::sandbox) fn retry_of(existing: &ContainerSpec, again: &ContainerSpec) -> bool {
    let same = ContainerSpec { id: existing.id.clone(), created_at: existing.created_at, ..again.clone() };
    same == *existing
}

/// Holds the target's PID namespace in the bundle from now on, which unmounts it with its volumes: between create and
/// start the target may end, and its pid become another's.
fn pin_target(bundle: &Path, spec: &ContainerSpec, target: Init) -> Result<PathBuf, SandboxError> {
    let dir = volumes::dir(bundle);
    std::fs::create_dir_all(&dir).map_err(SandboxError::io("make directory", &dir))?;
    let at = dir.join("target-pid");
    pidns::pin(target.pid, target.start_time, &at).map_err(|error| match &spec.security.namespaces.pid {
        NamespaceMode::Target(id) if error.kind() == std::io::ErrorKind::NotFound => {
            SandboxError::Target { target: id.to_string(), why: run::NOT_RUNNING }
        }
        _ => SandboxError::io("pin a PID namespace at", &at)(error),
    })?;
    Ok(at)
}

/// Makes the bundle; leaves nothing behind when it cannot.
pub(in crate::sandbox) async fn prepare_or_undo(request: Request) -> Result<Prepared, SandboxError> {
    let (node, spec) = (request.node.clone(), request.spec.clone());
    let begun = std::time::Instant::now();
    let until = request.until;
    let result = match outside(&request, until).await {
        Ok(found) => within_limit(request, found, until).await,
        Err(error) => Err(error),
    };
    node.metrics.observe("create_container", "total", begun);
    if let Err(cause) = result {
        return match remove(&node, &spec).await {
            Ok(()) => Err(cause),
            Err(undo) => Err(SandboxError::Several(vec![cause, undo])),
        };
    }
    result
}

/// What a container has of places that are not podwright's own.
#[derive(Debug)]
struct Outside {
    sources: Vec<Source>,
    restored: Option<restore::Restored>,
}

async fn outside(request: &Request, until: Instant) -> Result<Outside, SandboxError> {
    Ok(Outside { sources: sources(request, until).await?, restored: restored(request, until).await? })
}

/// A checkpoint's files, copied into the directory for the writable layer.
async fn restored(request: &Request, until: Instant) -> Result<Option<restore::Restored>, SandboxError> {
    let Request { node, pod, spec, namespaces, .. } = request;
    let Some(from) = spec.restore.clone() else { return Ok(None) };
    let (own, writable) = (node.clone(), node.places.writable(&spec.id));
    blocking(move |off| make_writable(off, &own, &writable)).await?;
    let (own, writable, namespaces) = (node.clone(), node.places.writable(&spec.id), namespaces.clone());
    let (places, left) = (restore::places(&from), until.saturating_duration_since(Instant::now()));
    let fetch = move |progress: Option<&Progress>| {
        restore::fetch(&from, &writable, &namespaces, &own.images, progress)
    };
    look_apart(node, pod.id.as_str(), places, left, fetch).await.map(Some)
}

fn make_writable(off: &OffThread, node: &Node, writable: &Path) -> Result<(), SandboxError> {
    make_private_dir(off, writable)?;
    Ok(node.layers.adopt(writable)?)
}

/// What the mounts name on the host, which may hang; labelled where that was asked for.
async fn sources(request: &Request, until: Instant) -> Result<Vec<Source>, SandboxError> {
    let Request { node, pod, spec, namespaces, .. } = request;
    let look = Look { node: node.clone(), pod: pod.clone(), spec: spec.clone(), until };
    if selinux::relabels(node, pod, spec) {
        look.label_volumes().await?;
    }
    look.sources(namespaces).await
}

/// Makes the bundle from what is podwright's own. When the time is up that goes on, and is undone once more at its end:
/// what it makes until then is nobody's.
async fn within_limit(request: Request, found: Outside, until: Instant) -> Result<Prepared, SandboxError> {
    let (node, spec) = (request.node.clone(), request.spec.clone());
    let mut work = tokio::spawn(blocking(move |off| prepare(off, &request, &found)));
    if let Ok(done) = tokio::time::timeout_at(until, &mut work).await {
        return done.unwrap_or(Err(SandboxError::ShuttingDown));
    }
    let id = spec.id.to_string();
    tokio::spawn(async move {
        let _ = work.await;
        if let Err(error) = remove(&node, &spec).await {
            // Log: Parts remain of a pod that an earlier daemon had begun, or of a container whose creation took too
            // long.
            // Do: The next start tries again.
            tracing::error!(container = %spec.id, %error, "cannot undo an unfinished creation");
        }
    });
    Err(SandboxError::StepTimeout { step: "creation", id, limit: CREATION_LIMIT })
}

fn prepare(off: &OffThread, request: &Request, found: &Outside) -> Result<Prepared, SandboxError> {
    let Request { node, pod, spec, hold, granted, namespaces, target, .. } = request;
    let bundle = node.places.bundle(&spec.id);
    let (root, writable) = (bundle.join("rootfs"), node.places.writable(&spec.id));
    let (upper, work) = (writable.join("upper"), writable.join("work"));
    let map = idmap::of_pod(pod, namespaces)?;
    room::check(off, &node.config, room::For::Creation, 0)?;
    make_private_dir(off, &bundle)?;
    if let Some(map) = &map {
        idmap::let_through(&bundle, map)?;
    }
    selinux::share_pod_files(off, node, pod, spec)?;
    let target = target.map(|target| pin_target(&bundle, spec, target)).transpose()?;
    let label = selinux::mount_option(node, pod, spec);
    let mounts = bound_sources(off, request, &found.sources, &bundle, map.as_ref(), label.as_deref())?;
    if found.restored.is_none() {
        make_writable(off, node, &writable)?;
    }
    for dir in [&root, &upper, &work] {
        std::fs::create_dir(dir).map_err(SandboxError::io("make directory", dir))?;
    }
    // The upper directory's mode becomes that of the container's `/`.
    open_to_all(&upper)?;
    hold.check()?;
    let mut lowers = hold.layers().to_vec();
    lowers.extend(found.restored.iter().map(|restored| restored.layer.clone()));
    rootfs::mount(
        off,
        &rootfs::Overlay {
            lowers: &lowers,
            upper: &upper,
            work: &work,
            target: &root,
            options: &WRITABLE_LAYER.iter().copied().chain(label.as_deref()).collect::<Vec<_>>(),
            idmap: map.as_ref(),
            within_quota: node.layers.limits().any(),
        },
    )?;
    let config = node.images.config(&hold.image().id).map_err(SandboxError::from)?;
    root_dirs::check(&root, &spec.image.display)?;
    let user = users::resolve(&root, &config.user, &spec.security.run_as)?;
    // An image that came before there was a limit, or from another daemon's store.
    config
        .check_volumes()
        .map_err(|problem| SandboxError::ImageContent { image: spec.image.display.clone(), problem })?;
    make_volumes(&root, config.volumes.iter(), map.as_ref().and_then(IdMap::root))?;
    let leaf = node.cgroups.leaf(pod, &spec.id)?;
    let handler = node.handlers.settings_of(&pod.runtime_handler);
    let all_devices = spec.security.privileged && !handler.privileged_without_host_devices;
    let host_devices = all_devices.then(devices::all_of_host).transpose()?;
    let inputs = Inputs {
        sandbox: pod,
        container: spec,
        judged: &granted.judged,
        image: &ImageProcess {
            entrypoint: config.entrypoint,
            cmd: config.cmd,
            env: config.env,
            working_dir: config.working_dir,
        },
        user: &user,
        host: &node.handlers.facts_for(&pod.runtime_handler),
        config: &node.config.containers,
        namespaces: &pod_namespaces(namespaces, target),
        files: &bound_files(&PodFiles::below(&node.places.pod_dir(&pod.id)), pod),
        mount_sources: &mounts,
        devices: &granted.devices,
        cdi: &granted.cdi,
        host_devices: host_devices.as_deref(),
        block_io: granted.block_io.as_ref(),
        rdt_class: granted.rdt_class.as_deref(),
        mounts: &mountinfo::read().map_err(SandboxError::io("read", Path::new("/proc/self/mountinfo")))?,
        seccomp: granted.seccomp.clone(),
        rootfs: &root,
        cgroup: leaf.oci(),
        handler: &handler,
    };
    let config = bundle.join("config.json");
    let encode = |e| SandboxError::io("encode", &config)(std::io::Error::from(e));
    let mut oci = spec::build(&inputs)?;
    if let Some(from) = &spec.restore {
        restore::rights::check(from, &serde_json::to_value(&oci).map_err(encode)?, &node.images)?;
        if node.handlers.restores_into_old_cgroup(&pod.runtime_handler) {
            restore::lead_into_cgroup(&mut oci, &bundle, leaf.path())?;
        }
    }
    let text = spec::encode(&oci)?;
    write_private(off, &config, &text)?;
    room::check_written(off, &node.config, |id| node.places.bundle(id), &request.siblings, text.len())?;
    // A container that a restart would undo is not answered as made.
    let record = ContainerRecord {
        container: ContainerState::Created,
        user: Some(user.clone()),
        ..request.record.clone()
    };
    node.records.write_container_state(off, &pod.id, &spec.id, &record)?;
    node.layers.begin(&spec.id);
    Ok(Prepared { user })
}

fn pod_namespaces(paths: &NamespacePaths, target_pid: Option<PathBuf>) -> PodNamespaces {
    let path = |text: &Option<String>| text.as_ref().map(PathBuf::from);
    PodNamespaces {
        network: path(&paths.net),
        ipc: path(&paths.ipc),
        uts: path(&paths.uts),
        pid: path(&paths.pid),
        target_pid,
        user: path(&paths.user),
    }
}

fn bound_files(files: &PodFiles, pod: &SandboxSpec) -> spec::PodFiles {
    let shm = if pod.namespaces.ipc == NamespaceMode::Node { "/dev/shm".into() } else { files.shm.clone() };
    spec::PodFiles {
        hostname: Some(files.hostname.clone()),
        hosts: Some(files.hosts.clone()),
        resolv_conf: Some(files.resolv_conf.clone()),
        shm,
    }
}

/// Makes the directories that the image declares as volumes. Their data lives in the container's writable layer and
/// goes with it, as with CRI-O's `image_volumes = "mkdir"`. They belong to the container's root.
fn make_volumes<'a>(
    root: &Path,
    volumes: impl Iterator<Item = &'a String>,
    owner: Option<(u32, u32)>,
) -> Result<(), SandboxError> {
    use podwright_sys::path::{mkdir_all_in_root, open_root};
    for volume in volumes {
        let dir = open_root(root).map_err(SandboxError::io("open", root))?;
        mkdir_all_in_root(std::os::fd::AsFd::as_fd(&dir), Path::new(volume), 0o755.into(), owner)
            .map_err(SandboxError::io("make the image's volume", Path::new(volume)))?;
    }
    Ok(())
}

fn open_to_all(dir: &Path) -> Result<(), SandboxError> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))
        .map_err(SandboxError::io("change the mode of", dir))
}

/// The path to bind for each mount: what of the host's was found, and images, mounted in the bundle.
fn bound_sources(
    off: &OffThread,
    request: &Request,
    sources: &[Source],
    bundle: &Path,
    map: Option<&IdMap>,
    label: Option<&str>,
) -> Result<Vec<PathBuf>, SandboxError> {
    let Request { spec, volumes, .. } = request;
    let bound = |(number, (mount, source)): (usize, (&Mount, &Source))| match (source, &mount.source) {
        (Source::Mapped(mapped), _) => idmap::attach(bundle, number, mapped),
        (Source::Host(path), _) => Ok(path.clone()),
        (Source::NotOfHost, MountSource::Image(volume)) => {
            volumes::source(off, bundle, &mount.container_path, volume, volumes, map, label.as_slice())
        }
        (Source::NotOfHost, MountSource::Host(_)) => {
            Err(spec::SpecError::UnresolvedMount { path: mount.container_path.clone() }.into())
        }
    };
    spec.mounts.iter().zip(sources).enumerate().map(bound).collect()
}

/// Removes everything of a container but its record and log.
pub(in crate::sandbox) async fn remove(node: &Arc<Node>, spec: &ContainerSpec) -> Result<(), SandboxError> {
    let (bundle, writable, trash) =
        (node.places.bundle(&spec.id), node.places.writable(&spec.id), node.places.trash());
    unmount(node, spec.sandbox_id.as_str(), bundle.clone()).await?;
    let behind = blocking(move |off| {
        remove_tree(off, &bundle)?;
        Ok(remove::soon(&writable, &trash)?)
    })
    .await?;
    if let Some(told) = behind
        && let Ok(Ok(done)) = tokio::time::timeout(REMOVAL_WAIT, told).await
    {
        done?;
    }
    node.layers.forget(&spec.id);
    Ok(())
}

/// Unmounts all that a bundle mounted; may be repeated. What is of the host's file systems, whose servers may be asked
/// about it, is gone from sight when this returns, and given back behind it if they do not answer.
pub(in crate::sandbox) async fn unmount(node: &Node, pod: &str, bundle: PathBuf) -> Result<(), SandboxError> {
    let own = move |off: &OffThread| {
        rootfs::unmount(off, &bundle.join("rootfs"))?;
        volumes::unmount(off, &bundle)
    };
    for target in blocking(own).await? {
        let unmounted = target.clone();
        let asked = Asked { pod: pod.to_owned(), places: vec![target.clone()], limit: UNMOUNT_WAIT };
        match node.foreign.release(asked, move |off| rootfs::unmount(off, &unmounted)).await? {
            Some(done) => done?,
            // The kernel takes it away first and gives it back then.
            None if is_mounted(&target)? => return Err(SandboxError::StillMounted(target)),
            None => {
                // Log: A container with a volume of mapped ids ended, and the volume's server does not answer. The mount is
                // gone from sight; the kernel releases it when the server answers.
                // Do: Look at that server.
                tracing::warn!(volume = %target.display(), "a volume's file system does not answer, its unmount goes on");
            }
        }
    }
    Ok(())
}

/// By the kernel's table, which asks no file system.
fn is_mounted(target: &Path) -> Result<bool, SandboxError> {
    let mounts = mountinfo::read().map_err(SandboxError::io("read", Path::new("/proc/self/mountinfo")))?;
    Ok(mounts.iter().any(|mount| mount.mount_point == target))
}
