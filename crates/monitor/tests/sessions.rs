//! Execs with streams and attached clients, with the real runc: what clients receive, and that nothing they do, or fail
//! to do, hurts a process or leaves anything behind.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use podwright_monitor_proto::{ErrorKind, ExecStatus, ExecStdio, Reply, Request, Run, SessionEnd, Target};
use podwright_sys::fdpass::{self, MAX_FDS};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::json;
use support::{Client, Pod, Session, until};

const ALL: ExecStdio = ExecStdio { stdin: true, stdout: true, stderr: true };
const OUTPUT: ExecStdio = ExecStdio { stdin: false, stdout: true, stderr: true };
const IN_OUT: ExecStdio = ExecStdio { stdin: true, stdout: true, stderr: false };

fn exited(exit_code: i32) -> SessionEnd {
    SessionEnd::Exited { exit_code, signal: None }
}

fn execs(client: &mut Client) -> Vec<ExecStatus> {
    match client.call(Request::List) {
        Reply::List { execs, .. } => execs,
        other => panic!("{other:?}"),
    }
}

/// A container with a stdin that runs `script`.
fn interactive(pod: &mut Pod, script: &str, adjust: impl FnOnce(&mut Run)) {
    pod.bundle("c1", &["sh", "-c", script], |config| {
        config["process"]["terminal"] = json!(false);
    });
    let mut request = pod.run_request("c1");
    request.stdin = true;
    adjust(&mut request);
    pod.run_with(request);
}

#[test]
fn streams_are_apart_and_the_end_is_told_on_the_leash() {
    let mut pod = Pod::launch("session", |_| {});
    pod.run("c1", &["sleep", "1000"]);
    let files = pod.open_files();
    let mut session = pod.session("e1", "c1", &["sh", "-c", "cat; echo oops >&2; exit 9"], ALL);
    session.stdin.as_mut().unwrap().write_all(b"hello").unwrap();
    // Half-close.
    session.stdin = None;
    assert_eq!(Session::rest(&mut session.stdout), "hello");
    assert_eq!(Session::rest(&mut session.stderr), "oops\n");
    assert_eq!(session.end(), exited(9));

    let session = pod.session("e2", "c1", &["sleep", "1000"], OUTPUT);
    let kill = Request::Signal { target: Target::Exec("e2".into()), signal: 9, group: true };
    assert_eq!(pod.client.call(kill), Reply::Done);
    assert_eq!(session.end(), SessionEnd::Exited { exit_code: 137, signal: Some(9) });

    // Unrequested streams are null devices; output written at the very end is not lost.
    let one = ExecStdio { stderr: true, ..ExecStdio::default() };
    let mut session =
        pod.session("e3", "c1", &["sh", "-c", "cat; echo x; head -c 200000 /dev/zero >&2"], one);
    assert_eq!(session.end(), exited(0));
    assert_eq!(Session::rest(&mut session.stderr).len(), 200_000);

    let mut missing = pod.exec_request("e4", "c1", &["/no/such"], false);
    missing.stdio = ALL;
    let reply = pod.client.call(Request::Session(Box::new(missing)));
    assert!(
        matches!(&reply, Reply::Error { kind: ErrorKind::Runtime { .. }, message } if message.contains("/no/such")),
        "{reply:?}"
    );
    drop(session);
    assert_eq!(pod.open_files(), files);
    pod.shutdown();
}

#[test]
fn a_process_survives_its_client_and_is_reaped() {
    let mut pod = Pod::launch("survive", |_| {});
    pod.run("c1", &["sleep", "1000"]);
    let (files, children) = (pod.open_files(), pod.children());
    // Far more than its pipes hold, then an end that shows that no SIGPIPE came.
    let script =
        "read line; head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2; touch /tmp/$line; exit 3";
    let mut session = pod.session("e1", "c1", &["sh", "-c", script], ALL);
    session.stdin.as_mut().unwrap().write_all(b"done\n").unwrap();
    until("its pipe is full", || {
        rustix::io::ioctl_fionread(session.stdout.as_ref().unwrap()).unwrap() > 200_000
    });
    drop(session);
    let dir = pod.dir.clone();
    pod.client.reconnect(&dir);
    until("its end", || execs(&mut pod.client).is_empty());
    assert!(pod.path("c1/rootfs/tmp/done").exists());
    // The lost connection is gone, and the new one exists.
    assert_eq!((pod.open_files(), pod.children()), (files, children));
    pod.shutdown();
}

#[test]
fn a_client_that_leaves_while_the_runtime_starts_leaves_nothing() {
    let mut pod = Pod::launch("hasty", |_| {});
    pod.run("c1", &["sleep", "1000"]);
    let (files, children) = (pod.open_files(), pod.children());
    let mut request =
        pod.exec_request("e1", "c1", &["sh", "-c", "yes | head -c 1000000; touch /tmp/done"], false);
    request.stdio = ALL;
    pod.client.send(Request::Session(Box::new(request)));
    let dir = pod.dir.clone();
    pod.client.reconnect(&dir);
    until("its work", || pod.path("c1/rootfs/tmp/done").exists());
    until("its end", || execs(&mut pod.client).is_empty());
    until("all is as before", || (pod.open_files(), pod.children()) == (files, children.clone()));
    pod.shutdown();
}

#[test]
fn a_terminal_has_its_size_at_the_start_and_is_hung_up_when_the_client_leaves() {
    let mut pod = Pod::launch("hangup", |_| {});
    pod.run("c1", &["sleep", "1000"]);
    let (files, children) = (pod.open_files(), pod.children());
    let script = "stty size; trap 'touch /tmp/hup; exit 1' HUP; echo ready; while :; do sleep 0.01; done";
    let request = pod.exec_request("e1", "c1", &["sh", "-c", script], true);
    let file = std::path::Path::new(&request.process_file);
    let mut process: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    process["consoleSize"] = json!({"height": 31, "width": 97});
    std::fs::write(file, process.to_string()).unwrap();
    let mut session = pod.client.begin(Request::Session(Box::new(request)));
    let text = Session::read_until(&mut session.terminal, "ready");
    assert!(text.starts_with("31 97\r\n"), "{text:?}");
    drop(session);
    until("its end", || execs(&mut pod.client).is_empty());
    assert!(pod.path("c1/rootfs/tmp/hup").exists());
    assert_eq!((pod.open_files(), pod.children()), (files, children));
    pod.shutdown();
}

#[test]
fn a_hundred_sessions_leave_nothing() {
    let mut pod = Pod::launch("hundred", |_| {});
    pod.run("c1", &["sleep", "1000"]);
    let (files, children) = (pod.open_files(), pod.children());
    for round in 0..100 {
        let id = format!("e{round}");
        match round % 4 {
            0 => {
                let mut session = pod.session(&id, "c1", &["echo", "hello"], ALL);
                assert_eq!(Session::rest(&mut session.stdout), "hello\n");
                assert_eq!(session.end(), exited(0));
            }
            1 => {
                let request = pod.exec_request(&id, "c1", &["echo", "hello"], true);
                let mut session = pod.client.begin(Request::Session(Box::new(request)));
                assert_eq!(Session::rest(&mut session.terminal), "hello\r\n");
            }
            2 => drop(pod.session(&id, "c1", &["sh", "-c", "cat; echo hello"], ALL)),
            _ => drop(pod.attach("c1", ALL)),
        }
    }
    until("the last one's end", || execs(&mut pod.client).is_empty());
    assert_eq!((pod.open_files(), pod.children()), (files, children));
    pod.shutdown();
}

#[test]
fn sessions_of_a_pod_are_bounded() {
    let mut pod = Pod::launch("bounded", |_| {});
    pod.run("c1", &["sleep", "1000"]);
    let files = pod.open_files();
    let one = ExecStdio { stdout: true, ..ExecStdio::default() };
    let sessions: Vec<Session> = (0..200).map(|_| pod.attach("c1", one)).collect();
    let attach = Request::Attach { container_id: "c1".into(), stdio: one };
    assert!(matches!(pod.client.call(attach), Reply::Error { kind: ErrorKind::TooMany, .. }));
    // Attached clients take no probe's place, of which there are not more than can be served.
    let probes: Vec<Session> =
        (0..40).map(|number| pod.session(&format!("p{number}"), "c1", &["sleep", "1000"], one)).collect();
    let request = pod.exec_request("e1", "c1", &["true"], false);
    let reply = pod.client.call(Request::Session(Box::new(request)));
    assert!(matches!(reply, Reply::Error { kind: ErrorKind::TooMany, .. }));
    for number in 0..40 {
        let target = Target::Exec(format!("p{number}"));
        pod.client.call(Request::Signal { target, signal: 9, group: true });
    }
    assert!(probes.iter().all(|probe| matches!(probe.end(), SessionEnd::Exited { exit_code: 137, .. })));
    drop((sessions, probes));
    drop(pod.attach("c1", ALL));
    until("all files are closed", || {
        execs(&mut pod.client);
        pod.open_files() == files
    });
    pod.shutdown();
}

/// The limit of an exec in a container of which the daemon has died.
#[test]
fn a_limit_is_kept_without_the_client_and_told_to_one_that_stays() {
    let mut pod = Pod::launch("limit", |_| {});
    pod.run("c1", &["sleep", "1000"]);
    let (files, children) = (pod.open_files(), pod.children());
    let limited = |pod: &Pod, id: &str, script: &str, limit| {
        let mut request = pod.exec_request(id, "c1", &["sh", "-c", script], false);
        (request.stdio, request.limit_ms) = (OUTPUT, Some(limit));
        Request::Session(Box::new(request))
    };
    // With what it started in another session.
    let request = limited(&pod, "stays", "setsid sleep 1001 & echo; sleep 1002", 2000);
    let mut session = pod.client.begin(request);
    Session::read_until(&mut session.stdout, "\n");
    assert_eq!(session.end(), SessionEnd::TimedOut);
    // The leftover child is gone, or this would never end.
    assert_eq!(Session::rest(&mut session.stdout), "");
    drop(session);
    let request = limited(&pod, "quick", "exit 3", 600_000);
    assert_eq!(pod.client.begin(request).end(), exited(3));
    // A limit that passes while the runtime works.
    let request = limited(&pod, "late", "sleep 1000", 1);
    assert_eq!(pod.client.begin(request).end(), SessionEnd::TimedOut);
    let request = limited(&pod, "leaves", "sleep 1000", 1500);
    drop(pod.client.begin(request));
    let dir = pod.dir.clone();
    pod.client.reconnect(&dir);
    until("its end", || execs(&mut pod.client).is_empty());
    until("all is as before", || (pod.open_files(), pod.children()) == (files, children.clone()));
    pod.shutdown();
}

#[test]
fn clients_see_what_the_log_gets_and_the_end_after_all_of_it() {
    let mut pod = Pod::launch("attach", |_| {});
    interactive(
        &mut pod,
        "echo before; read line; echo $line; echo oops >&2; read line; head -c 300000 /dev/zero; exit 4",
        |_| {},
    );
    until("first line", || pod.log("c1").len() == 1);
    let mut first = pod.attach("c1", ALL);
    let mut second = pod.attach("c1", OUTPUT);
    assert!(second.stdin.is_none());
    first.stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
    for session in [&mut first, &mut second] {
        assert_eq!(Session::read_until(&mut session.stdout, "\n"), "hello\n");
        assert_eq!(Session::read_until(&mut session.stderr, "\n"), "oops\n");
    }
    // Not stdin_once: another client continues, also one of a restarted daemon.
    drop(first);
    let dir = pod.dir.clone();
    pod.client.reconnect(&dir);
    let mut third = pod.attach("c1", ALL);
    third.stdin.as_mut().unwrap().write_all(b"more\n").unwrap();
    assert_eq!(pod.client.exit_of("c1").exit_code, 4);
    for session in [&mut second, &mut third] {
        assert_eq!(session.end(), SessionEnd::ContainerEnded);
        assert_eq!(Session::rest(&mut session.stdout).len(), 300_000);
        assert_eq!(Session::rest(&mut session.stderr), "");
    }
    let log = pod.log("c1");
    for line in ["stdout F before", "stdout F hello", "stderr F oops"] {
        assert!(log.contains(&line.into()), "{line}");
    }
    let attach = Request::Attach { container_id: "c1".into(), stdio: ALL };
    assert!(matches!(pod.client.call(attach), Reply::Error { kind: ErrorKind::NotRunning, .. }));
    let attach = Request::Attach { container_id: "c2".into(), stdio: ALL };
    assert!(matches!(pod.client.call(attach), Reply::Error { kind: ErrorKind::NotFound, .. }));
    pod.shutdown();
}

#[test]
fn a_client_that_does_not_read_is_dropped_and_holds_up_nobody() {
    let mut pod = Pod::launch("slow", |_| {});
    // Each part fits into the pipe of a reading client, and waits until one has read the last part.
    let script = "while read line && [ $line = go ]; do yes 0123456789 | head -c 495000; done; exit 0";
    interactive(&mut pod, script, |_| {});
    let mut lazy = pod.attach("c1", OUTPUT);
    let mut eager = pod.attach("c1", ALL);
    let mut stdin = eager.stdin.take().unwrap();
    let mut part = vec![0; 495_000];
    for _ in 0..11 {
        stdin.write_all(b"go\n").unwrap();
        std::io::Read::read_exact(eager.stdout.as_mut().unwrap(), &mut part).unwrap();
    }
    assert_eq!(lazy.end(), SessionEnd::TooSlow);
    // The content of its pipe is complete.
    let text = Session::rest(&mut lazy.stdout);
    assert!(text.len() >= 900_000, "{}", text.len());
    assert!("0123456789\n".repeat(495_000).starts_with(&text));
    stdin.write_all(b"end\n").unwrap();
    assert_eq!(pod.client.exit_of("c1").exit_code, 0);
    assert_eq!(eager.end(), SessionEnd::ContainerEnded);
    let log = pod.log("c1");
    assert_eq!(log.len(), 495_000);
    assert!(log.iter().all(|line| line == "stdout F 0123456789"));
    pod.shutdown();
}

#[test]
fn stdin_once_ends_with_the_first_client_that_has_it() {
    for half_close in [true, false] {
        let mut pod = Pod::launch("once", |_| {});
        interactive(&mut pod, "cat; echo end; sleep 1000", |request| request.stdin_once = true);
        let mut watcher = pod.attach("c1", OUTPUT);
        drop(pod.attach("c1", OUTPUT));
        let mut other = pod.attach("c1", ALL);
        let mut first = pod.attach("c1", IN_OUT);
        first.stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
        if half_close {
            first.stdin = None;
            assert_eq!(Session::read_until(&mut first.stdout, "end\n"), "hello\nend\n");
        } else {
            drop(first);
        }
        assert_eq!(Session::read_until(&mut watcher.stdout, "end\n"), "hello\nend\n");
        // Any other holder finds it closed.
        let refused = other.stdin.as_mut().unwrap().write(b"late").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::BrokenPipe);
        assert!(pod.attach("c1", ALL).stdin.is_none());
        pod.shutdown();
    }
}

#[test]
fn input_that_the_container_does_not_take_waits_and_holds_up_nobody() {
    let mut pod = Pod::launch("stuck", |_| {});
    interactive(&mut pod, "while [ ! -e /tmp/go ]; do sleep 0.01; done; wc -c", |request| {
        request.stdin_once = true;
    });
    let mut session = pod.attach("c1", IN_OUT);
    let mut stdin = session.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&vec![b'x'; 1_000_000]).unwrap());
    // The pod serves others meanwhile.
    pod.run("c2", &["echo", "other"]);
    assert_eq!(pod.client.exit_of("c2").exit_code, 0);
    std::fs::write(pod.path("c1/rootfs/tmp/go"), "").unwrap();
    writer.join().unwrap();
    assert_eq!(Session::rest(&mut session.stdout), "1000000\n");
    assert_eq!(pod.client.exit_of("c1").exit_code, 0);
    pod.shutdown();
}

#[test]
fn a_terminal_is_shared_resized_and_stays_open() {
    let mut pod = Pod::launch("ttyattach", |_| {});
    let script = "while read line; do echo got $line $(stty size); done; echo end";
    pod.bundle("c1", &["sh", "-c", script], |config| {
        config["process"]["terminal"] = json!(true);
    });
    let mut request = pod.run_request("c1");
    (request.terminal, request.stdin, request.stdin_once) = (true, true, true);
    pod.run_with(request);
    let mut first = pod.attach("c1", ALL);
    assert!(first.stderr.is_none());
    first.stdin.as_mut().unwrap().write_all(b"one\n").unwrap();
    Session::read_until(&mut first.stdout, "got one");
    let resize = Request::Resize { target: Target::Container("c1".into()), width: 97, height: 31 };
    assert_eq!(pod.client.call(resize), Reply::Done);
    first.stdin.as_mut().unwrap().write_all(b"two\n").unwrap();
    Session::read_until(&mut first.stdout, "got two 31 97\r\n");
    drop(first);
    let mut second = pod.attach("c1", ALL);
    second.stdin.as_mut().unwrap().write_all(b"three\n\x04").unwrap();
    assert!(Session::rest(&mut second.stdout).ends_with("end\r\n"));
    assert_eq!(second.end(), SessionEnd::ContainerEnded);
    assert_eq!(pod.client.exit_of("c1").exit_code, 0);
    assert!(pod.log("c1").iter().any(|line| line.ends_with("got three 31 97")), "{:?}", pod.log("c1"));
    pod.shutdown();
}

/// Descriptors of root that are sent and not received.
fn in_flight(count: usize) -> (UnixStream, UnixStream) {
    let (left, right) = UnixStream::pair().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    for _ in 0..count.div_ceil(MAX_FDS) {
        assert_eq!(fdpass::send(left.as_fd(), b"x", &[file.as_fd(); MAX_FDS]).unwrap(), 1);
    }
    (left, right)
}

#[test]
fn descriptors_that_others_have_under_way_do_not_end_sessions() {
    let mut pod = Pod::launch("inflight", |_| {});
    pod.run("c1", &["sleep", "1000"]);
    // Far more than the monitor itself has open, and less than what is under way then.
    let few = Rlimit { current: Some(128), ..getrlimit(Resource::Nofile) };
    let monitor = Pid::from_raw(pod.pid().try_into().unwrap());
    prlimit(monitor, Resource::Nofile, few).unwrap();
    let under_way = in_flight(256);
    let mut session = pod.session("e1", "c1", &["sh", "-c", "cat; echo x"], OUTPUT);
    assert_eq!(Session::rest(&mut session.stdout), "x\n");
    assert_eq!(session.end(), exited(0));
    let attached = pod.attach("c1", OUTPUT);
    drop((attached, under_way));
    pod.shutdown();
}
