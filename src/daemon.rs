//! Builds the daemon from its configuration and runs it: lock, mechanisms, recovery, socket, signals. The only module
//! that knows them all.

use crate::admin;
use crate::check;
use crate::config::{Config, SelinuxMode};
use crate::cri::{self, Image, Runtime};
use crate::host::cgroups::{Cgroups, Driver};
use crate::host::foreign::Foreign;
use crate::host::kernel;
use crate::host::lock::{self, LockError};
use crate::host::monitor;
use crate::host::network::Network;
use crate::host::oci::{Runtimes, Surroundings};
use crate::host::offload::in_place;
use crate::host::security::HostSecurity;
use crate::host::security::apparmor::{AppArmor, DEFAULT_PROFILE};
use crate::host::security::selinux::Selinux;
use crate::images::{self, Images};
use crate::metrics::{self, PullCollector, Registry, Rpcs};
use crate::model::{Clock, SandboxId};
use crate::sandbox::spec::HostFacts;
use crate::sandbox::{
    self, Announcer, Execs, Handlers, Manager, Node, Places, PodCgroups, PodMetrics, Records, UserNamespaces,
    WritableLayers,
};
use crate::streaming::{self, StreamingMetrics};
use anyhow::Context as _;
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Allocations from this size on go to the kernel and back to it when freed, instead of growing the heap for ever.
pub const LARGE_ALLOCATION: i32 = 64 << 10;
/// Threads for blocking work: one per pod of a large node (the kubelet's default is 110) that may wait to write a
/// record while a disk is frozen, and some spare. A waiting thread costs about 20 KiB.
pub const MAX_BLOCKING_THREADS: usize = 256;
/// Idle threads end soon, so that an idle daemon stays small.
pub const BLOCKING_THREAD_KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Time for streaming clients to receive their last message when the daemon ends.
const STREAMS_END: Duration = Duration::from_secs(2);
/// Time for a running trial to clean up: ten times its usual duration.
const TRIAL_END: Duration = Duration::from_secs(1);
/// More workers than this would not answer a kubelet any faster.
const MAX_WORKERS: usize = 4;

/// Worker threads: one per processor, within bounds.
#[must_use]
pub fn worker_threads() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, MAX_WORKERS))
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start; the message says what to do.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let _locks = lock(&config)?;
    cri::check_free(&config)?;
    let registry = Registry::new();
    let rpcs = Rpcs::register(&registry)?;
    let node = build(&config, &registry).await?;
    let announcer = Announcer::register(&registry)?;
    let stream_metrics = StreamingMetrics::register(&registry)?;
    if !config.metrics.address.is_empty() {
        tokio::spawn(metrics::serve(&config.metrics.address, registry).await?);
    }
    let pods = sandbox::recover(node.clone(), announcer).await.context("read the records of earlier pods")?;
    let valid: Vec<_> = pods.pods().iter().map(|pod| pod.spec.id.clone()).collect();
    tokio::spawn(look_after_networks(pods.clone(), valid));
    let quiet = Duration::from_secs(config.containers.exec_drain_seconds);
    let streams = streaming::Server::start(&config.streaming, quiet, pods.clone(), stream_metrics).await?;
    let listener = cri::listen(&config)?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    // By the time of a kubelet's first question.
    let tried = pods.node().clone();
    let trial = tokio::spawn(async move { tried.user_namespaces.have("").await });
    cri::watch(&config.grpc.socket);
    // Log: The socket is open: `pods` taken over, `ms` since the start.
    tracing::info!(
        socket = %config.grpc.socket.display(),
        streaming = %streams.address(),
        pods = pods.pods().len(),
        ms = begun.elapsed().as_millis(),
        "ready"
    );
    if !images::workers_have_landlock() {
        // Log: Two mechanisms of the kernel keep the processes that read downloaded data from files, and one is missing
        // (Linux before 5.13, or not in `lsm=`). The other holds.
        // Do: Nothing, or add `landlock` to the kernel's `lsm=`.
        tracing::warn!("the kernel has no Landlock: only a list of system calls keeps workers from files");
    }
    // After the socket is open: nothing waits for it.
    let looked_at = config.clone();
    drop(tokio::task::spawn_blocking(move || check::log(&looked_at)));
    let end = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // Log: SIGTERM or SIGINT.
        tracing::info!("ending; pods go on");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    };
    let about = admin::About {
        pods: pods.clone(),
        sessions: streams.sessions(),
        streaming: streams.address(),
        begun,
    };
    let runtime = Runtime::new(pods, streams.urls());
    let beside = admin::routes(node.images.clone(), about, config.grpc.max_message_bytes);
    let services = (runtime, Image::new(&node));
    let served = cri::serve(&config, listener, services, rpcs, beside, end).await;
    streams.end(STREAMS_END).await;
    // It runs containers for tens of milliseconds; a hanging runtime is killed with this process.
    let _ = tokio::time::timeout(TRIAL_END, trial).await;
    Ok(served?)
}

/// After a start, in the background: releases what vanished pods hold, then checks the networks of the others.
async fn look_after_networks(pods: Manager, valid: Vec<SandboxId>) {
    pods.node().network.collect(&valid).await;
    pods.check_networks().await;
}

/// What keeps a second daemon away; the kernel frees it however this one ends.
#[derive(Debug)]
pub(crate) struct Locks {
    _held: [File; 2],
}

/// Keeps a second daemon from the same root and from the same state, and this one from the state of another root. To be
/// called before anything is touched.
pub(crate) fn lock(config: &Config) -> anyhow::Result<Locks> {
    let take = |dir: &Path, most| {
        make_private_dir(dir)?;
        keep_private(dir, most)?;
        match lock::take(&dir.join("lock")) {
            Err(LockError::Held { process, .. }) => anyhow::bail!(
                "another podwright serves from {}{}: stop it, or set `root` and `state` to directories of their own",
                dir.display(),
                process.map(|process| format!(" (process {process})")).unwrap_or_default()
            ),
            taken => Ok(taken?),
        }
    };
    let held = [take(&config.root, 0o700)?, take(&config.state, 0o711)?];
    belong_together(config)?;
    Ok(Locks { _held: held })
}

/// Removes access for others to a directory that existed before, such as the root of a separate disk.
fn keep_private(path: &Path, most: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::metadata(path).with_context(|| format!("look at {}", path.display()))?;
    let own = rustix::process::geteuid().as_raw();
    anyhow::ensure!(
        found.uid() == own,
        "{} belongs to user {}, who can replace everything in it: its owner must be user {own}",
        path.display(),
        found.uid()
    );
    let mode = found.mode() & 0o7777;
    if mode & !most == 0 {
        return Ok(());
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & most))
        .with_context(|| format!("change the mode of {}", path.display()))?;
    // Log: At start: `root` or `state` had a mode that admitted other users. Records contain environments of containers.
    tracing::info!(path = %path.display(), was = format!("{mode:o}"), "a directory admitted other users");
    Ok(())
}

/// Whether `state` is that of this `root`. A root that is not mounted, or another one, knows nothing of the pods that run
/// from `state`, and they would be ended as nobody's.
fn belong_together(config: &Config) -> anyhow::Result<()> {
    let (id, noted) = (config.root.join("id"), config.state.join("root"));
    let read = |path: &Path| match std::fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    };
    let write = |path: &Path, text: &str| {
        let new = path.with_extension("new");
        let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, path));
        written.with_context(|| format!("write {}", path.display()))
    };
    let (of_root, of_state) = (read(&id)?, read(&noted)?);
    if of_state.is_some() && of_state == of_root {
        return Ok(());
    }
    let pods = std::fs::read_dir(config.state.join("pods")).map_or(0, Iterator::count);
    anyhow::ensure!(
        of_state.is_none() || pods == 0,
        "the {pods} pods in {state} were made with another root than {root}, which knows nothing of them: mount the right \
         one, or set `state` to a directory of its own; to end these pods, remove {noted}",
        state = config.state.display(),
        root = config.root.display(),
        noted = noted.display()
    );
    let of_root = match of_root {
        Some(id) => id,
        None => {
            let fresh = SandboxId::random().context("make an id for the root")?.to_string();
            write(&id, &fresh)?;
            fresh
        }
    };
    write(&noted, &of_root)
}

fn make_private_dir(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("make directory {}", path.display()))
}

/// Root of a pod's user namespace is nobody on the host and must reach the bundles of its containers: it may pass
/// through the directories above, but not list them.
fn make_way(state: &Path) -> anyhow::Result<()> {
    for private in ["pods", "runtime"] {
        make_private_dir(&state.join(private))?;
    }
    for way in [state.to_owned(), state.join("containers")] {
        make_private_dir(&way)?;
        let mode =
            std::fs::metadata(&way).with_context(|| format!("look at {}", way.display()))?.permissions();
        let mode = std::fs::Permissions::from_mode(mode.mode() | 0o011);
        std::fs::set_permissions(&way, mode)
            .with_context(|| format!("change the mode of {}", way.display()))?;
    }
    Ok(())
}

async fn build(config: &Config, registry: &Registry) -> anyhow::Result<Arc<Node>> {
    let boot_id = podwright_sys::proc::boot_id().context("read the boot id")?;
    make_way(&config.state)?;
    let images = open_images(config)?;
    registry.register(Box::new(PullCollector::new(images.stats().clone())?))?;
    let cgroups = Cgroups::detect()?;
    let apparmor = AppArmor::detect();
    let selinux = selinux(config.containers.selinux)?;
    let mut facts = facts(&cgroups, &apparmor, &config.containers.apparmor_profile)?;
    facts.selinux = selinux.as_ref().map(|selinux| Arc::new(selinux.contexts().clone()));
    let (driver, default_parent) = cgroup_driver(config)?;
    let around = Surroundings {
        state: &config.state,
        systemd: driver == Driver::Systemd,
        probe_cgroup: &|name| driver.oci_path(&default_parent, name),
        clear_cgroup: &|name| in_place(|off| cgroups.clear_probe(off, &default_parent, name)),
    };
    let runtimes = Runtimes::find(&config.runtime, around).await?;
    let pod_metrics = PodMetrics::register(registry)?;
    let network = Network::start(&config.network)?;
    let calls = pod_metrics.clone();
    network.observe_plugins(move |call| calls.plugin_call(call));
    let layers = Arc::new(WritableLayers::open(config)?);
    layers.start(pod_metrics.clone());
    let user_namespaces =
        UserNamespaces::new(config, runtimes.clone(), cgroups.clone(), (driver, default_parent.clone()));
    Ok(Arc::new(Node {
        places: Places::new(config),
        records: Records::open(&config.root, &boot_id)?,
        network,
        images,
        handlers: Handlers::new(config, runtimes, facts),
        cgroups: PodCgroups { kernel: cgroups, driver, default_parent },
        apparmor,
        selinux,
        monitor_binary: monitor::binary(&config.monitor.binary)?,
        clock: Clock::default(),
        metrics: pod_metrics,
        foreign: Foreign::default(),
        layers,
        execs: Execs::new(config),
        user_namespaces,
        config: config.clone(),
    }))
}

/// The cgroup driver, and the parent of pods that name none.
fn cgroup_driver(config: &Config) -> anyhow::Result<(Driver, String)> {
    let (driver, parent) =
        Driver::settle(&config.cgroups).context("cgroups.default_parent does not fit cgroups.driver")?;
    // Log: At start: the cgroup driver and the default parent.
    tracing::info!(driver = driver.name(), default_parent = parent, "cgroups");
    Ok((driver, parent))
}

/// Opens the image store. Blocking; the caller holds the [`lock`].
pub(crate) fn open_images(config: &Config) -> anyhow::Result<Images> {
    Images::open(&config.root.join("images"), &config.images).context("open the image store")
}

fn facts(cgroups: &Cgroups, apparmor: &AppArmor, profile: &str) -> anyhow::Result<HostFacts> {
    let security = HostSecurity::detect()?;
    if security.oom_score_adj_floor > -1000 {
        // Log: Something that started the daemon limits its capabilities. Expected inside an unprivileged container.
        // Do: Run the daemon by its unit.
        tracing::warn!(
            floor = security.oom_score_adj_floor,
            "no CAP_SYS_RESOURCE: containers get no oom_score_adj below the daemon's own"
        );
    }
    Ok(HostFacts {
        bounding: security.bounding,
        oom_score_adj_floor: security.oom_score_adj_floor,
        cgroups: cgroups.mode(),
        swap: cgroups.accounts_swap(),
        hugetlb: cgroups.has_controller("hugetlb"),
        page_sizes: cgroups.page_sizes().to_vec(),
        controllers: cgroups.controllers(),
        // mount_setattr(2) with AT_RECURSIVE.
        recursive_read_only: kernel::at_least(5, 12),
        plain_propagation: false,
        apparmor: apparmor.is_enabled(),
        apparmor_default: default_profile(apparmor, profile),
        selinux: None,
    })
}

/// SELinux, if containers get labels.
fn selinux(mode: SelinuxMode) -> anyhow::Result<Option<Selinux>> {
    let found = if mode == SelinuxMode::Off { None } else { Selinux::detect() };
    let usable = found.filter(Selinux::knows_containers);
    match &usable {
        // Log: At start: the labels of containers and files, and whether the kernel enforces.
        Some(selinux) => tracing::info!(
            process = %selinux.contexts().process,
            file = %selinux.contexts().file,
            enforcing = selinux.enforcing(),
            "SELinux"
        ),
        None if mode == SelinuxMode::On => anyhow::bail!(
            "containers.selinux is \"on\", but the kernel has no SELinux, it is disabled, or its policy does not know \
             containers: see `podwright check`"
        ),
        // If the policy lacks something, `check` logs it.
        None => {}
    }
    Ok(usable)
}

/// The default AppArmor profile of containers. An operator's profile must be loaded when a container needs it; ours
/// needs a parser, without which a host has no usable AppArmor, as in containerd and CRI-O.
fn default_profile(apparmor: &AppArmor, profile: &str) -> Option<String> {
    if !apparmor.is_enabled() || profile.is_empty() {
        return None;
    }
    if profile == DEFAULT_PROFILE && !apparmor.could_use(profile) {
        // Log: The default profile cannot be loaded. Containers that request it are refused; others run unconfined.
        // Do: Install Debian's `apparmor`, or set `containers.apparmor_profile`.
        tracing::warn!(
            "the kernel has AppArmor, but apparmor_parser is not there: containers run without a default profile"
        );
        return None;
    }
    Some(profile.to_owned())
}
