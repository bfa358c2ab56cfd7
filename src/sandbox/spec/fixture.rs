//! A typical request, modified by each test.

use super::*;
use crate::host::{cdi, mountinfo};
use crate::model::{
    ContainerId, ContainerSecurity, ImageId, ImageRequest, Mount, MountSource, NamespaceMode, Namespaces,
    PodName, Propagation, Resources, SandboxId, SandboxSecurity, Timestamp,
};
use serde_json::Value;
use std::collections::BTreeMap;

pub(in crate::sandbox) struct Fixture {
    pub(in crate::sandbox) sandbox: SandboxSpec,
    pub(in crate::sandbox) container: ContainerSpec,
    pub(super) image: ImageProcess,
    pub(super) user: User,
    pub(super) host: HostFacts,
    pub(super) config: Containers,
    pub(super) namespaces: PodNamespaces,
    pub(super) files: PodFiles,
    pub(super) sources: Vec<PathBuf>,
    pub(super) devices: Vec<ResolvedDevice>,
    pub(super) cdi: cdi::Edits,
    pub(super) host_devices: Vec<ResolvedDevice>,
    pub(super) mounts: Vec<MountEntry>,
    pub(super) seccomp: Seccomp,
    pub(super) rootfs: PathBuf,
    pub(super) cgroup: PathBuf,
    pub(super) handler: Handler,
    pub(super) block_io: Option<LinuxBlockIo>,
    pub(super) rdt_class: Option<String>,
}

pub(in crate::sandbox) fn fixture() -> Fixture {
    let sandbox_id = SandboxId::parse(&"a".repeat(64)).unwrap();
    let id = ContainerId::parse(&"b".repeat(64)).unwrap();
    Fixture {
        sandbox: SandboxSpec {
            id: sandbox_id.clone(),
            name: PodName {
                name: "pod".into(),
                namespace: "default".into(),
                uid: "uid-1".into(),
                attempt: 0,
            },
            created_at: Timestamp(1),
            hostname: "host-a".into(),
            log_directory: None,
            dns: None,
            port_mappings: Vec::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            runtime_handler: String::new(),
            cgroup_parent: "/kubepods/pod1".into(),
            namespaces: Namespaces::default(),
            sysctls: BTreeMap::new(),
            security: SandboxSecurity::default(),
            selinux_level: None,
            overhead: None,
            resources: None,
        },
        container: ContainerSpec {
            id: id.clone(),
            sandbox_id,
            name: "app".into(),
            attempt: 0,
            created_at: Timestamp(2),
            image: ImageRequest {
                requested: "sha256:1".into(),
                user_specified: String::new(),
                id: ImageId::from_digest("sha256:1"),
                reference: "sha256:1".into(),
                display: "docker.io/library/busybox:1".into(),
            },
            command: vec!["sh".into(), "-c".into()],
            args: vec!["id".into()],
            working_dir: String::new(),
            envs: vec![("A".into(), "cri".into())],
            mounts: Vec::new(),
            devices: Vec::new(),
            cdi_devices: Vec::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            log_path: None,
            stdin: false,
            stdin_once: false,
            tty: false,
            resources: Resources::default(),
            security: ContainerSecurity {
                namespaces: Namespaces { pid: NamespaceMode::Container, ..Namespaces::default() },
                ..ContainerSecurity::default()
            },
            stop_signal: None,
            restore: None,
        },
        image: ImageProcess {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["cmd".into()],
            env: vec!["A=image".into(), "B=image".into(), "broken".into()],
            working_dir: "/srv".into(),
        },
        user: User { uid: 0, gid: 0, additional_gids: vec![0], home: "/".into(), username: None },
        host: HostFacts {
            bounding: CapSet::ALL,
            oom_score_adj_floor: -1000,
            cgroups: CgroupMode::V2,
            swap: true,
            hugetlb: true,
            page_sizes: vec!["2MB".into(), "1GB".into()],
            controllers: ["cpu", "cpuset", "memory", "pids", "hugetlb"].map(str::to_owned).to_vec(),
            recursive_read_only: true,
            plain_propagation: false,
            apparmor: false,
            apparmor_default: None,
            selinux: None,
        },
        config: Containers::default(),
        namespaces: PodNamespaces {
            network: Some("/ns/net".into()),
            ipc: Some("/ns/ipc".into()),
            uts: Some("/ns/uts".into()),
            ..PodNamespaces::default()
        },
        files: PodFiles {
            hostname: Some("/pod/hostname".into()),
            hosts: Some("/pod/hosts".into()),
            resolv_conf: Some("/pod/resolv.conf".into()),
            shm: "/pod/shm".into(),
        },
        sources: Vec::new(),
        devices: Vec::new(),
        cdi: cdi::Edits::default(),
        host_devices: Vec::new(),
        mounts: mountinfo::parse(
            "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
             2 1 8:2 / /shared rw shared:1 - ext4 /dev/sdb rw\n\
             3 1 8:3 / /slave rw master:1 - ext4 /dev/sdc rw\n\
             4 1 0:4 / /sys/fs/cgroup rw shared:3 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n",
        ),
        seccomp: Seccomp::Unconfined,
        rootfs: "/bundle/rootfs".into(),
        cgroup: format!("/kubepods/pod1/{id}").into(),
        handler: Handler::default(),
        block_io: None,
        rdt_class: None,
    }
}

impl Fixture {
    pub(super) fn spec(&self) -> Result<Spec, SpecError> {
        let (container, config) = (&self.container, &self.config);
        let limits = linux_resources(&container.resources, config.pids_limit, &self.host)?;
        let judged = judge(&self.sandbox, container, limits, &self.host, config)?;
        build(&Inputs {
            sandbox: &self.sandbox,
            container,
            judged: &judged,
            image: &self.image,
            user: &self.user,
            host: &self.host,
            config,
            namespaces: &self.namespaces,
            files: &self.files,
            mount_sources: &self.sources,
            devices: &self.devices,
            cdi: &self.cdi,
            host_devices: self.container.security.privileged.then_some(&self.host_devices[..]),
            block_io: self.block_io.as_ref(),
            rdt_class: self.rdt_class.as_deref(),
            mounts: &self.mounts,
            seccomp: self.seccomp.clone(),
            rootfs: &self.rootfs,
            cgroup: &self.cgroup,
            handler: &self.handler,
        })
    }

    pub(super) fn json(&self) -> Value {
        serde_json::to_value(self.spec().unwrap()).unwrap()
    }

    pub(super) fn error(&self) -> String {
        self.spec().unwrap_err().to_string()
    }

    pub(super) fn mount(&mut self, host: &str, container: &str) -> &mut Mount {
        self.sources.push(host.into());
        self.container.mounts.push(Mount {
            container_path: container.into(),
            source: MountSource::Host(host.into()),
            readonly: false,
            recursive_read_only: false,
            selinux_relabel: false,
            propagation: Propagation::Private,
            uid_mappings: Vec::new(),
            gid_mappings: Vec::new(),
            options: Vec::new(),
        });
        self.container.mounts.last_mut().unwrap()
    }

    /// The options of the one mount at `path`, joined; None: no mount.
    pub(super) fn options(&self, path: &str) -> Option<String> {
        let spec = self.spec().unwrap();
        let mounts: Vec<_> =
            spec.mounts().iter().flatten().filter(|m| m.destination() == Path::new(path)).collect();
        assert!(mounts.len() <= 1, "{path} is mounted twice");
        mounts.first().map(|m| m.options().as_ref().unwrap().join(","))
    }
}
