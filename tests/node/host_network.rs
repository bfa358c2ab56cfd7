//! A network namespace that plays the host's: bridges, rules and addresses of a test come and go in it alone. The
//! registry stays outside, so images are pulled before the daemon moves in.

use crate::support::*;
use nix::sched::{CloneFlags, setns, unshare};
use podwright_testkit::{Daemon, Options};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// The namespace. It lives as long as a process is in it or holds this.
#[derive(Debug, Clone)]
pub(crate) struct HostNetwork(Arc<std::fs::File>);

impl HostNetwork {
    fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tool("ip", &["link", "set", "lo", "up"]);
            std::fs::File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(Arc::new(made.join().unwrap()))
    }

    /// By which others find it, while this process runs.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }

    /// Runs `what` on a thread in the namespace.
    pub(crate) fn run<T: Send + 'static>(&self, what: impl FnOnce() -> T + Send + 'static) -> T {
        inside(&self.path(), what)
    }

    /// What a program prints that is run in the namespace.
    pub(crate) fn tool(&self, program: &'static str, args: &[&str]) -> String {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        self.run(move || tool(program, &args))
    }
}

/// Runs `what` on a thread in a network namespace.
pub(crate) fn inside<T: Send + 'static>(netns: &Path, what: impl FnOnce() -> T + Send + 'static) -> T {
    let netns = std::fs::File::open(netns).unwrap();
    let thread = std::thread::spawn(move || {
        setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
        what()
    });
    thread.join().unwrap()
}

/// What a program prints; it must succeed.
pub(crate) fn tool(program: &str, args: &[impl AsRef<std::ffi::OsStr>]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Writes a program.
pub(crate) fn executable(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A node with busybox pulled whose daemon has a host's network of its own.
pub(crate) async fn isolated(options: Options) -> (Node, HostNetwork) {
    let mut node = Node::new(options).await;
    node.pull(BUSYBOX).await.unwrap();
    node.daemon.stop().unwrap();
    let host = HostNetwork::new();
    let program = node.scratch.root().join("podwright-inside");
    let daemon = podwright_testkit::daemon::default_binary();
    executable(
        &program,
        &format!("#!/bin/sh\nexec nsenter --net={} {} \"$@\"\n", host.path().display(), daemon.display()),
    );
    node.daemon = Daemon::start_binary(&node.scratch, &program).unwrap();
    (node, host)
}
