//! A FUSE server that reads requests and never answers: what waits for it cannot be killed. The daemon can, and its
//! successor starts.

use crate::support::*;
use podwright::cri::proto as pb;
use podwright_testkit::Options;
use rustix::mount::{MountFlags, UnmountFlags};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;
use tonic::Code;

/// Far more than the daemon's end and its successor's start take.
const PATIENCE: Duration = Duration::from_secs(60);
/// linux/fuse.h.
const FUSE_INIT: u32 = 26;

/// A mount whose server takes every request and answers only the first, which makes it a file system.
struct Taken {
    at: PathBuf,
    server: Option<std::thread::JoinHandle<()>>,
    requests: mpsc::Receiver<u32>,
}

impl Taken {
    /// None if the kernel has no FUSE.
    fn mount(at: PathBuf) -> Option<Self> {
        let mut device = File::options().read(true).write(true).open("/dev/fuse").ok()?;
        std::fs::create_dir(&at).unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("taken", &at, "fuse", MountFlags::NOSUID, Some(options.as_c_str())).unwrap();
        let (tell, requests) = mpsc::channel();
        let server = std::thread::spawn(move || {
            let mut request = vec![0; 1 << 17];
            // Ends with the mount.
            while let Ok(length @ 16..) = device.read(&mut request) {
                let opcode = u32::from_ne_bytes(request[4..8].try_into().unwrap());
                if opcode == FUSE_INIT {
                    device.write_all(&initialized(&request[8..16])).unwrap();
                }
                assert!(length >= 40);
                let _ = tell.send(opcode);
            }
        });
        Some(Self { at, server: Some(server), requests })
    }

    /// Waits until the server has taken a request that it does not answer.
    fn has_taken_one(&self) {
        while self.requests.recv_timeout(PATIENCE).unwrap() == FUSE_INIT {}
    }

    /// All that hangs returns with an error.
    fn release(&mut self) {
        if let Some(server) = self.server.take() {
            rustix::mount::unmount(&self.at, UnmountFlags::FORCE | UnmountFlags::DETACH).unwrap();
            server.join().unwrap();
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.release();
    }
}

/// The answer to FUSE_INIT: fuse_out_header and fuse_init_out of version 7.23.
fn initialized(unique: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    for word in [16_u32 + 64, 0] {
        answer.extend(word.to_ne_bytes());
    }
    answer.extend(unique);
    // major, minor, max_readahead, flags, max_background with congestion_threshold, max_write.
    for word in [7_u32, 23, 4096, 0, 0, 4096] {
        answer.extend(word.to_ne_bytes());
    }
    answer.resize(16 + 64, 0);
    answer
}

fn mounting(source: PathBuf) -> pb::ContainerConfig {
    let mount = pb::Mount {
        host_path: source.to_string_lossy().into_owned(),
        container_path: "/volume".to_owned(),
        ..Default::default()
    };
    pb::ContainerConfig { mounts: vec![mount], ..container("main", &[]) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_cannot_be_killed_keeps_no_daemon_from_ending_or_starting() {
    let extra_config = "[containers]\nhost_path_seconds = 1\n".to_owned();
    let mut node = Node::new(Options { extra_config, ..Default::default() }).await;
    let Some(mut taken) = Taken::mount(node.scratch.root().join("taken")) else {
        eprintln!("not tested: no /dev/fuse");
        return node.finish().await;
    };
    node.pull(BUSYBOX).await.unwrap();
    let config = node.pod("hangs");
    let pod = node.run(&config).await.unwrap();
    let volume = taken.at.join("volume");
    let silent = node.create(&pod, &config, mounting(volume)).await.unwrap_err();
    assert_eq!(silent.code(), Code::DeadlineExceeded, "{silent:?}");
    taken.has_taken_one();
    let (ended, is_ended) = mpsc::channel::<()>();
    // So that a daemon that cannot end fails this test instead of stopping it.
    let watch = std::thread::spawn(move || {
        let in_time = is_ended.recv_timeout(PATIENCE).is_ok();
        if !in_time {
            taken.release();
        }
        (taken, in_time)
    });
    // Killed it leaves all to the kernel; asked to end it must, too.
    node.daemon.kill().unwrap();
    node.daemon.launch().unwrap();
    node.daemon.restart().unwrap();
    ended.send(()).unwrap();
    let (mut taken, in_time) = watch.join().unwrap();
    assert!(in_time, "the daemon's end, or its successor, waited for the server");
    let (_, id) = node.running("healthy", &[]).await;
    assert_eq!(node.output(&id, &["echo", "alive"]).await, "alive");
    taken.release();
    node.finish().await;
}
