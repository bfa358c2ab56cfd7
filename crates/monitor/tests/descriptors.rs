//! What an OCI runtime receives: nothing of the node's that it could pass to a container.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use podwright_monitor_proto::{ExecStdio, Request, Runtime, SessionEnd};
use support::{Pod, Session};

/// runc, which first reports what it received: device, inode and target of each descriptor.
fn telling(pod: &Pod) -> Runtime {
    let runc = pod.runtime();
    let (path, told) = (pod.path("telling"), pod.path("told"));
    // bash redirects in the child alone; it holds the script open as 255, and the directory while it lists that.
    let script = format!(
        "#!/bin/bash\nfor fd in /proc/$$/fd/*; do\n[ -e $fd ] && [ ${{fd##*/}} != 255 ] || continue\n\
         stat -L -c '%d:%i' $fd >> {0}; readlink $fd >> {0}\ndone\nexec {1} \"$@\"\n",
        told.display(),
        runc.path
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    Runtime { path: path.to_str().unwrap().into(), args: runc.args }
}

/// Reports since the last call.
fn told(pod: &Pod) -> Vec<(String, String)> {
    let path = pod.path("told");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    lines.chunks(2).map(|each| (each[0].to_owned(), each[1].to_owned())).collect()
}

#[test]
fn a_runtime_is_given_no_descriptor_of_the_nodes() {
    let null = std::fs::metadata("/dev/null").unwrap();
    let facts = |path: &Path| {
        let found = std::fs::metadata(path).unwrap();
        (found.uid(), found.gid(), found.mode(), found.ctime(), found.ctime_nsec())
    };
    let before = facts(Path::new("/dev/null"));
    let mut pod = Pod::launch("given", |_| {});
    let runtime = telling(&pod);
    let mut all = Vec::new();

    // A container without stdin.
    pod.bundle("c1", &["sleep", "1000"], |_| {});
    let mut create = pod.run_request("c1");
    create.runtime = runtime.clone();
    pod.run_with(create);
    all.extend(told(&pod));
    // A command without streams, one with a terminal, one whose client requests only its output.
    let mut exec = pod.exec_request("e1", "c1", &["sh", "-c", "cat; echo x; echo y >&2; exit 4"], false);
    exec.runtime = runtime.clone();
    let session = pod.client.begin(Request::Session(Box::new(exec)));
    assert_eq!(session.end(), SessionEnd::Exited { exit_code: 4, signal: None });
    let nothing_given = told(&pod);
    let mut exec = pod.exec_request("e2", "c1", &["true"], true);
    exec.runtime = runtime.clone();
    let session = pod.client.begin(Request::Session(Box::new(exec)));
    assert_eq!(session.end(), SessionEnd::Exited { exit_code: 0, signal: None });
    all.extend(told(&pod));
    let mut exec = pod.exec_request("e3", "c1", &["sh", "-c", "cat; echo z"], false);
    (exec.runtime, exec.stdio) = (runtime, ExecStdio { stdout: true, ..ExecStdio::default() });
    let mut session = pod.client.begin(Request::Session(Box::new(exec)));
    assert_eq!(Session::rest(&mut session.stdout), "z\n");
    all.extend(told(&pod));

    let inodes =
        |given: &[(String, String)]| given.iter().map(|(inode, _)| inode.clone()).collect::<BTreeSet<_>>();
    // Each process has its own: a change to one does not affect the next.
    assert_eq!(nothing_given.len(), 3, "{nothing_given:?}");
    assert!(inodes(&all).is_disjoint(&inodes(&nothing_given)), "{all:?} {nothing_given:?}");
    all.extend(nothing_given);
    assert_eq!(all.len(), 12, "{all:?}");
    for (inode, leads) in &all {
        // A null device of its own has a random name, which is gone.
        let name = leads.strip_prefix('/').and_then(|leads| leads.strip_suffix(" (deleted)"));
        let is_null =
            name.is_some_and(|name| name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit()));
        assert!(leads.starts_with("pipe:") || is_null, "{leads}");
        assert_ne!(*inode, format!("{}:{}", null.dev(), null.ino()), "the node's null device");
    }
    // Of the monitor, where they come from.
    for fd in [0, 1] {
        let found = std::fs::metadata(format!("/proc/{}/fd/{fd}", pod.pid())).unwrap();
        assert_ne!((found.dev(), found.ino()), (null.dev(), null.ino()));
    }
    assert_eq!(facts(Path::new("/dev/null")), before);
    pod.shutdown();
}
