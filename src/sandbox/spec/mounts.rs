//! Mounts in order: the defaults, the pod's files and the requested ones.

use super::linux::has_cgroup_namespace;
use super::{HostFacts, Inputs, SpecError};
use crate::host::cdi;
use crate::host::cgroups::CgroupMode;
use crate::host::mountinfo::{MountEntry, holding};
use crate::model::{self, ContainerSpec, IdMapping, MountSource, NamespaceMode, Propagation};
use oci_spec::runtime::{Mount, MountBuilder};
use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

/// Mount options that a request may add.
const MOUNT_OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];
/// Fixed options of an image volume: its devices and setuid files have no effect.
const IMAGE_FLAGS: [&str; 2] = ["nodev", "nosuid"];
/// Flags of a host's mount that a container's mount of it has, too.
const HOST_FLAGS: [&str; 4] = ["ro", "nosuid", "nodev", "noexec"];
/// The group of terminals; in a user namespace that does not map it, the group of the process that opens one.
const TTY_GROUP: u32 = 5;
/// Options of the host's cgroup2 superblock that a mount without a cgroup namespace would reset for the whole host.
const CGROUP2_OPTIONS: [&str; 5] =
    ["nsdelegate", "memory_recursiveprot", "memory_localevents", "favordynmods", "memory_hugetlb_accounting"];

/// Checks of the requested mounts before their sources are looked up.
pub(super) fn check(container: &ContainerSpec, host: &HostFacts) -> Result<(), SpecError> {
    paths(container)?;
    for mount in &container.mounts {
        access(host, mount, &mount.container_path)?;
    }
    Ok(())
}

/// Destinations of the mounts, without duplicates.
fn paths(container: &ContainerSpec) -> Result<Vec<PathBuf>, SpecError> {
    let mut asked: Vec<PathBuf> = Vec::new();
    let mut known = HashSet::new();
    for mount in &container.mounts {
        let path = clean(&mount.container_path)?;
        if !known.insert(path.clone()) {
            return Err(SpecError::DuplicateMount { path });
        }
        asked.push(path);
    }
    Ok(asked)
}

/// The mounts, and `rootfsPropagation` where a mount needs it.
pub(super) fn build(inputs: &Inputs<'_>) -> Result<(Vec<Mount>, Option<&'static str>), SpecError> {
    let asked = paths(inputs.container)?;
    let covered = |path: &Path| asked.iter().any(|asked| asked == path);
    let mut mounts = Vec::new();
    for mount in defaults(inputs)? {
        let path = mount.destination();
        // A request with its own /dev provides all of it.
        let of_replaced_dev = covered(Path::new("/dev")) && path.starts_with("/dev");
        if !covered(path) && !of_replaced_dev {
            mounts.push(mount);
        }
    }
    let plain = inputs.host.plain_propagation;
    let mut propagation = None;
    for (index, mount) in inputs.container.mounts.iter().enumerate() {
        let source = inputs
            .mount_sources
            .get(index)
            .ok_or_else(|| SpecError::UnresolvedMount { path: mount.container_path.clone() })?;
        mounts.push(asked_mount(inputs, mount, &asked[index], source)?);
        propagation = match (mount.propagation, propagation) {
            (Propagation::Bidirectional, _) => Some(if plain { "shared" } else { "rshared" }),
            (Propagation::HostToContainer, None) => Some(if plain { "slave" } else { "rslave" }),
            (Propagation::Private | Propagation::HostToContainer, kept) => kept,
        };
    }
    for mount in &inputs.cdi.mounts {
        let path = clean(&mount.container_path)?;
        mounts.retain(|other| other.destination() != &path);
        mounts.push(cdi_mount(mount, &path)?);
    }
    keep_flags(&mut mounts, inputs.mounts);
    // Stable, so a request's order stays among equals.
    mounts.sort_by_key(|mount| mount.destination().components().count());
    Ok((mounts, propagation))
}

/// Adds the flags of the host's mounts. Some OCI runtimes set the flags of a bind mount again; without these, devices and
/// setuid files that have no effect on the host would have one in a container. In a user namespace the kernel refuses to
/// drop them.
fn keep_flags(mounts: &mut [Mount], of_host: &[MountEntry]) {
    for mount in mounts.iter_mut().filter(|mount| mount.typ().as_deref() == Some("bind")) {
        let Some(host) = mount.source().as_ref().and_then(|source| holding(of_host, source)) else {
            continue;
        };
        let mut options = mount.options().clone().unwrap_or_default();
        for flag in HOST_FLAGS.into_iter().filter(|flag| host.options.iter().any(|option| option == flag)) {
            if flag == "ro" {
                options.retain(|option| option != "rw");
            }
            let is_read_only = flag == "ro" && options.iter().any(|option| option == "rro");
            if !is_read_only && !options.iter().any(|option| option == flag) {
                options.push(flag.to_owned());
            }
        }
        mount.set_options(Some(options));
    }
}

fn clean(path: &Path) -> Result<PathBuf, SpecError> {
    let wrong = || SpecError::MountPath { path: path.to_owned() };
    if !path.is_absolute() {
        return Err(wrong());
    }
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(wrong()),
        }
    }
    // A mount on the root itself would hide the image.
    if clean == Path::new("/") { Err(wrong()) } else { Ok(clean) }
}

fn make(
    destination: impl AsRef<Path>,
    kind: &str,
    source: impl AsRef<Path>,
    options: &[&str],
) -> Result<Mount, SpecError> {
    let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
    Ok(MountBuilder::default()
        .destination(destination.as_ref())
        .typ(kind)
        .source(source.as_ref())
        .options(options)
        .build()?)
}

fn defaults(inputs: &Inputs<'_>) -> Result<Vec<Mount>, SpecError> {
    let privileged = inputs.container.security.privileged;
    let access = if privileged { "rw" } else { "ro" };
    let kept = ["nosuid", "noexec", "nodev"];
    let mut terminals = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    let user = inputs.sandbox.namespaces.user.as_ref();
    if user.is_none_or(|user| IdMapping::on_host(&user.gids, TTY_GROUP).is_some()) {
        terminals.push("gid=5");
    }
    let mut mounts = vec![
        make("/proc", "proc", "proc", &kept)?,
        make("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        make("/dev/pts", "devpts", "devpts", &terminals)?,
        make("/dev/mqueue", "mqueue", "mqueue", &kept)?,
        sysfs(inputs, access)?,
    ];
    let mut cgroup = vec!["nosuid", "noexec", "nodev", "relatime", access];
    if inputs.host.cgroups == CgroupMode::V2 && !has_cgroup_namespace(inputs) {
        cgroup.extend(host_cgroup_options(inputs.mounts));
    }
    mounts.push(make("/sys/fs/cgroup", "cgroup", "cgroup", &cgroup)?);
    mounts.push(make(
        "/dev/shm",
        "bind",
        &inputs.files.shm,
        &["rbind", "rprivate", "rw", "nosuid", "nodev", "noexec"],
    )?);
    let files = inputs.files;
    // On a read-only root the pod's files are read-only too.
    let access = if inputs.container.security.readonly_rootfs { "ro" } else { "rw" };
    for (path, source) in [
        ("/etc/hostname", &files.hostname),
        ("/etc/hosts", &files.hosts),
        ("/etc/resolv.conf", &files.resolv_conf),
    ] {
        if let Some(source) = source {
            // Their file system has these flags, too, but not every OCI runtime keeps what a bind mount does not name.
            let options = ["rbind", "rprivate", access, "nosuid", "nodev", "noexec"];
            mounts.push(make(path, "bind", source, &options)?);
        }
    }
    Ok(mounts)
}

/// A new sysfs needs the network namespace to belong to the user namespace; a pod with its own user namespace on the
/// host's network binds the host's.
fn sysfs(inputs: &Inputs<'_>, access: &str) -> Result<Mount, SpecError> {
    let asked = &inputs.sandbox.namespaces;
    if asked.user.is_some() && asked.network == NamespaceMode::Node {
        if !inputs.host.recursive_read_only {
            return Err(SpecError::RecursiveReadOnly {
                path: "/sys".into(),
                reason: "a pod with a user namespace on the host's network needs it, and the kernel or the OCI runtime \
                         has no recursive read-only mounts",
            });
        }
        let options = ["rbind", "rprivate", "nosuid", "noexec", "nodev", "rro"];
        return make("/sys", "bind", "/sys", &options);
    }
    make("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access])
}

fn host_cgroup_options(mounts: &[MountEntry]) -> impl Iterator<Item = &'static str> + '_ {
    let host = mounts.iter().find(|m| m.fstype == "cgroup2" && m.mount_point == Path::new("/sys/fs/cgroup"));
    CGROUP2_OPTIONS
        .into_iter()
        .filter(move |name| host.is_some_and(|host| host.super_options.iter().any(|option| option == name)))
}

fn asked_mount(
    inputs: &Inputs<'_>,
    mount: &model::Mount,
    path: &Path,
    source: &Path,
) -> Result<Mount, SpecError> {
    let mut options = vec!["rbind", propagation(inputs, mount, path, source)?];
    options.extend(access(inputs.host, mount, path)?);
    if let MountSource::Image(_) = mount.source {
        // OCI runtimes set the flags of a bind mount again. Programs of an image may run: Kubernetes gave up `noexec`
        // (kubernetes#135775), and a request may still add it.
        options
            .extend(IMAGE_FLAGS.into_iter().filter(|flag| !mount.options.iter().any(|asked| asked == flag)));
    }
    // Mappings of the mount are the source's already: OCI runtimes differ in what they make of them.
    make(path, "bind", source, &options)
}

/// A mount of a CDI device, as its specification says; the operator is responsible for a driver's files.
fn cdi_mount(mount: &cdi::Mount, path: &Path) -> Result<Mount, SpecError> {
    let mut options: Vec<&str> = mount.options.iter().map(String::as_str).collect();
    let kind = mount.kind.as_deref().filter(|kind| !kind.is_empty()).unwrap_or("bind");
    if kind == "bind" && !options.iter().any(|option| matches!(*option, "bind" | "rbind")) {
        options.push("rbind");
    }
    make(path, kind, &mount.host_path, &options)
}

/// What may be done through a mount.
fn access(host: &HostFacts, mount: &model::Mount, path: &Path) -> Result<Vec<&'static str>, SpecError> {
    let mut options = Vec::new();
    if mount.recursive_read_only {
        let refuse = |reason| SpecError::RecursiveReadOnly { path: path.to_owned(), reason };
        if !mount.readonly {
            return Err(refuse("recursive_read_only needs readonly"));
        }
        if mount.propagation != Propagation::Private {
            return Err(refuse("recursive_read_only needs private propagation"));
        }
        if !host.recursive_read_only {
            return Err(refuse("the kernel or the OCI runtime has no recursive read-only mounts"));
        }
        options.push("rro");
    } else {
        options.push(if mount.readonly { "ro" } else { "rw" });
    }
    for option in &mount.options {
        let known = MOUNT_OPTIONS.iter().find(|known| *known == option);
        options.push(known.ok_or_else(|| SpecError::MountOption {
            path: path.to_owned(),
            option: option.chars().take(80).collect(),
        })?);
    }
    Ok(options)
}

fn propagation(
    inputs: &Inputs<'_>,
    mount: &model::Mount,
    path: &Path,
    source: &Path,
) -> Result<&'static str, SpecError> {
    let host = holding(inputs.mounts, source);
    let shared = host.is_some_and(|host| host.shared.is_some());
    let slave = host.is_some_and(|host| host.master.is_some());
    let refuse =
        |needed| SpecError::Propagation { path: path.to_owned(), source_path: source.to_owned(), needed };
    match mount.propagation {
        Propagation::Private => Ok("rprivate"),
        // Mounts inside a user namespace never reach the host.
        Propagation::Bidirectional if inputs.sandbox.namespaces.user.is_some() => {
            Err(SpecError::MappedBidirectional { path: path.to_owned() })
        }
        Propagation::HostToContainer if shared || slave => Ok("rslave"),
        Propagation::HostToContainer => Err(refuse("shared or slave")),
        Propagation::Bidirectional if shared => Ok("rshared"),
        Propagation::Bidirectional => Err(refuse("shared")),
    }
}
