//! File systems that never answer: a FUSE mount that nobody serves, as a volume whose server is gone.

use crate::support::*;
use podwright::cri::proto as pb;
use podwright_testkit::Options;
use rustix::mount::{MountFlags, UnmountFlags};
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::{Code, Status};

/// Far more than anything here takes; what waits for a hung thread waits for ever.
const PATIENCE: Duration = Duration::from_secs(90);

/// A mount on which every look hangs, until it is dropped.
struct Hung {
    device: Option<File>,
    at: PathBuf,
}

impl Hung {
    /// None where the kernel has no FUSE.
    fn mount(at: PathBuf) -> Option<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse").ok()?;
        std::fs::create_dir(&at).unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("hung", &at, "fuse", MountFlags::NOSUID, Some(options.as_c_str())).unwrap();
        Some(Self { device: Some(device), at })
    }

    fn path(&self) -> PathBuf {
        self.at.join("volume")
    }

    /// All that hangs comes back with an error, and the path is an ordinary one.
    fn release(&mut self) {
        if self.device.take().is_some() {
            rustix::mount::unmount(&self.at, UnmountFlags::DETACH).unwrap();
        }
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        self.release();
    }
}

fn mounting(name: &str, source: &Path) -> pb::ContainerConfig {
    let mount = pb::Mount {
        host_path: source.to_string_lossy().into_owned(),
        container_path: "/volume".to_owned(),
        ..Default::default()
    };
    pb::ContainerConfig { mounts: vec![mount], ..container(name, &[]) }
}

fn says_so(status: &Status, path: &Path) {
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Unavailable), "{status:?}");
    assert!(status.message().contains(path.to_str().unwrap()), "{status:?}");
}

async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what} waits for what hangs"))
}

/// A pod and a container with a volume of its own, from run to removal.
async fn life_of_a_pod(node: &mut Node, name: &str) {
    let config = node.pod(name);
    let pod = node.run(&config).await.unwrap();
    let volume = node.scratch.root().join("local");
    let id = node.create(&pod, &config, mounting("main", &volume)).await.unwrap();
    node.start(&id).await.unwrap();
    assert_eq!(node.output(&id, &["echo", "alive"]).await, "alive");
    node.stop(&id, 0).await.unwrap();
    node.remove(&id).await.unwrap();
    node.stop_pod(&pod).await.unwrap();
    node.remove_pod(&pod).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_that_hang_stop_nobody_else_and_are_answered_for() {
    let extra_config = "[containers]\nhost_path_seconds = 3\n".to_owned();
    let mut node = Node::new(Options { extra_config, ..Default::default() }).await;
    let Some(mut hung) = Hung::mount(node.scratch.root().join("hung")) else {
        eprintln!("not tested: no /dev/fuse");
        return node.finish().await;
    };
    let path = hung.path();
    let mut creates = Vec::new();
    for number in 0..6 {
        let config = node.pod(&format!("hangs-{number}"));
        if number == 0 {
            node.pull(BUSYBOX).await.unwrap();
        }
        let pod = node.run(&config).await.unwrap();
        // More than the daemon has threads for blocking work.
        for name in 0..12 {
            let (mut runtime, config, pod) = (node.runtime.clone(), config.clone(), pod.clone());
            let request = pb::CreateContainerRequest {
                pod_sandbox_id: pod,
                config: Some(mounting(&format!("c{name}"), &path)),
                sandbox_config: Some(config),
            };
            creates.push(tokio::spawn(async move { runtime.create_container(request).await }));
        }
    }
    in_time("another pod", life_of_a_pod(&mut node, "healthy")).await;
    in_time("a pull", node.pull(BUSYBOX)).await.unwrap();
    for create in creates {
        says_so(&in_time("a create", create).await.unwrap().unwrap_err(), &path);
    }
    // The undo needed nothing of it: no container is left, not even half of one.
    assert!(node.list_containers().await.is_empty());
    assert_eq!(std::fs::read_dir(node.scratch.root().join("state/containers")).unwrap().count(), 0);
    // Now it is known, also for pods that were not there before, and for all of that file system.
    let config = node.pod("late");
    let pod = node.run(&config).await.unwrap();
    for source in [path.clone(), hung.at.join("other")] {
        let refused = node.create(&pod, &config, mounting("main", &source)).await.unwrap_err();
        says_so(&refused, &path);
        assert!(refused.message().contains("hangs since"), "{refused:?}");
    }
    in_time("another pod", life_of_a_pod(&mut node, "healthy-too")).await;
    // Its threads come back, and it is an ordinary directory now.
    hung.release();
    let made = async {
        loop {
            match node.create(&pod, &config, mounting("main", &path)).await {
                Ok(id) => break id,
                Err(refused) => says_so(&refused, &path),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let id = in_time("a create after that", made).await;
    node.start(&id).await.unwrap();
    node.finish().await;
}

/// Each on a local file system by its name, and each another one: no memory of names helps.
#[tokio::test(flavor = "multi_thread")]
async fn links_to_what_hangs_take_no_thread_of_what_is_local() {
    let extra_config = "[containers]\nhost_path_seconds = 8\n".to_owned();
    let mut node = Node::new(Options { extra_config, ..Default::default() }).await;
    let Some(mut hung) = Hung::mount(node.scratch.root().join("hung")) else {
        eprintln!("not tested: no /dev/fuse");
        return node.finish().await;
    };
    node.pull(BUSYBOX).await.unwrap();
    let links = node.scratch.root().join("links");
    std::fs::create_dir(&links).unwrap();
    let link = |name: String| {
        let link = links.join(name);
        std::os::unix::fs::symlink(hung.path(), &link).unwrap();
        link
    };
    // More than there are places for looks at local file systems, in as many pods as it takes.
    let mut creates = Vec::new();
    for number in 0..20 {
        let config = node.pod(&format!("hangs-{number}"));
        let pod = node.run(&config).await.unwrap();
        for name in 0..4 {
            let source = link(format!("{number}-{name}"));
            let (mut runtime, config, pod) = (node.runtime.clone(), config.clone(), pod.clone());
            let request = pb::CreateContainerRequest {
                pod_sandbox_id: pod,
                config: Some(mounting(&format!("c{name}"), &source)),
                sandbox_config: Some(config),
            };
            creates.push(tokio::spawn(async move { runtime.create_container(request).await }));
        }
    }
    for create in creates {
        let refused = in_time("a create", create).await.unwrap().unwrap_err();
        assert!(matches!(refused.code(), Code::DeadlineExceeded | Code::Unavailable), "{refused:?}");
    }
    // It is known by what it is, whatever leads there; and what does not lead there is not delayed.
    let config = node.pod("late");
    let pod = node.run(&config).await.unwrap();
    let refused = node.create(&pod, &config, mounting("main", &link("late".to_owned()))).await.unwrap_err();
    says_so(&refused, &hung.path());
    assert!(refused.message().contains("hangs since"), "{refused:?}");
    in_time("another pod", life_of_a_pod(&mut node, "healthy")).await;
    let threads = std::fs::read_dir(format!("/proc/{}/task", node.daemon.pid().unwrap())).unwrap();
    let names = threads.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    let hanging = names.filter(|name| name.trim() == "host-path").count();
    assert!(hanging <= 16, "{hanging} threads for one file system that hangs");
    hung.release();
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_with_a_hung_look_ends_and_the_next_one_knows_nothing_of_it() {
    let extra_config = "[containers]\nhost_path_seconds = 1\n".to_owned();
    let mut node = Node::new(Options { extra_config, ..Default::default() }).await;
    let Some(mut hung) = Hung::mount(node.scratch.root().join("hung")) else {
        eprintln!("not tested: no /dev/fuse");
        return node.finish().await;
    };
    node.pull(BUSYBOX).await.unwrap();
    let config = node.pod("hangs");
    let pod = node.run(&config).await.unwrap();
    let silent = node.create(&pod, &config, mounting("main", &hung.path())).await.unwrap_err();
    assert_eq!(silent.code(), Code::DeadlineExceeded, "{silent:?}");
    node.daemon.kill().unwrap();
    node.daemon.launch().unwrap();
    let silent = node.create(&pod, &config, mounting("main", &hung.path())).await.unwrap_err();
    assert_eq!(silent.code(), Code::DeadlineExceeded, "{silent:?}");
    in_time("another pod", life_of_a_pod(&mut node, "healthy")).await;
    hung.release();
    node.finish().await;
}
