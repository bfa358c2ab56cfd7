//! The daemon's monitor client with the real monitor, without containers: those are in the monitor's own tests.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use podwright::host::monitor::{
    ErrorKind, ExecRequest, LaunchRequest, Listing, Monitor, MonitorError, MonitorEvent, NamespaceRequest,
    RunRequest, Runtime, SessionEnd, SignalOutcome, StdioFlags, Target, adopt, launch,
};

/// Built once, beside this test's own binary.
fn binary() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY
        .get_or_init(|| {
            let status =
                Command::new(env!("CARGO")).args(["build", "-q", "-p", "podwright-monitor"]).status();
            assert!(status.unwrap().success());
            let test = std::env::current_exe().unwrap();
            test.parent().unwrap().parent().unwrap().join("podwright-monitor")
        })
        .clone()
}

fn request(tmp: &Path) -> LaunchRequest {
    LaunchRequest {
        binary: binary(),
        sandbox_id: "s1".into(),
        dir: tmp.into(),
        exit_dir: tmp.into(),
        namespaces: NamespaceRequest { ipc: true, ..NamespaceRequest::default() },
        hostname: None,
        sysctls: BTreeMap::new(),
        log_max_line: None,
        init_cgroups: vec![],
    }
}

fn signal(monitor: &Monitor, signal: &str) {
    let pid = monitor.info().process.pid.to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn launched_adopted_and_shut_down() {
    let tmp = tempfile::tempdir().unwrap();
    let (first, first_events) = launch(request(tmp.path())).await.unwrap();
    let info = first.info().clone();
    assert!(info.namespaces.ipc.is_some() && info.namespaces.net.is_none());
    // The daemon dies; another one comes.
    drop((first, first_events));
    let (monitor, mut events) = adopt(tmp.path(), None).await.unwrap();
    assert_eq!(*monitor.info(), info);
    assert_eq!(monitor.list().await.unwrap(), Listing { containers: vec![], execs: vec![] });
    let missing = monitor.forget("c1".into()).await.unwrap_err();
    assert_eq!(missing.kind(), Some(ErrorKind::NotFound));
    monitor.shutdown(false).await.unwrap();
    assert_eq!(events.recv().await, Some(MonitorEvent::Gone));
    // It takes its record along: only its process proves that it has ended, and that may take a moment longer.
    let ended = async {
        while !matches!(adopt(tmp.path(), Some(info.process)).await, Err(MonitorError::NotRunning { .. })) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap();
    assert!(matches!(adopt(tmp.path(), None).await, Err(MonitorError::Record { .. })));
    assert!(matches!(monitor.list().await, Err(MonitorError::Gone { .. })));
}

#[tokio::test]
async fn a_launch_that_fails_says_why_and_leaves_no_process() {
    let tmp = tempfile::tempdir().unwrap();
    let mut bad = request(tmp.path());
    bad.sysctls.insert("net.core.somaxconn".into(), "1".into());
    let error = launch(bad).await.unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::Namespace));
    assert!(error.to_string().contains("net.core.somaxconn"), "{error}");
    let mut missing = request(tmp.path());
    missing.binary = "/no/such/monitor".into();
    assert!(matches!(launch(missing).await, Err(MonitorError::Spawn { .. })));
    let mut mute = request(tmp.path());
    mute.binary = "/bin/true".into();
    assert!(matches!(launch(mute).await, Err(MonitorError::Gone { .. })));
}

#[tokio::test]
async fn a_monitor_that_is_killed_is_noticed_and_reaped() {
    let tmp = tempfile::tempdir().unwrap();
    let (monitor, mut events) = launch(request(tmp.path())).await.unwrap();
    let pid = monitor.info().process.pid;
    signal(&monitor, "-KILL");
    assert_eq!(events.recv().await, Some(MonitorEvent::Gone));
    while !matches!(adopt(tmp.path(), None).await, Err(MonitorError::NotRunning { .. })) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    while exists(pid) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_monitor_that_is_stopped_is_unresponsive_and_then_serves_again() {
    let tmp = tempfile::tempdir().unwrap();
    let (monitor, _events) = launch(request(tmp.path())).await.unwrap();
    signal(&monitor, "-STOP");
    let (listed, adopted) = tokio::join!(monitor.list(), adopt(tmp.path(), None));
    assert!(matches!(listed, Err(MonitorError::Unresponsive { operation: "list", .. })));
    assert!(matches!(adopted, Err(MonitorError::Unresponsive { operation: "hello", .. })));
    signal(&monitor, "-CONT");
    assert!(monitor.list().await.is_ok());
    monitor.shutdown(true).await.unwrap();
}

#[tokio::test]
async fn a_slow_request_does_not_hold_up_another() {
    let tmp = tempfile::tempdir().unwrap();
    let (monitor, _events) = launch(request(tmp.path())).await.unwrap();
    let bundle = tmp.path().join("bundle");
    std::fs::create_dir(&bundle).unwrap();
    let run = RunRequest {
        container_id: "c1".into(),
        runtime: Runtime { path: "/bin/sh".into(), args: vec!["-c".into(), "sleep 1000".into()] },
        bundle: bundle.to_str().unwrap().into(),
        log_path: None,
        log_directory: None,
        terminal: false,
        stdin: false,
        stdin_once: false,
        deadline_ms: Some(1000),
        cgroup: None,
        restore: None,
        no_new_keyring: false,
    };
    let slow = monitor.run(run);
    tokio::pin!(slow);
    tokio::select! {
        biased;
        done = &mut slow => panic!("{done:?}"),
        listed = monitor.list() => drop(listed.unwrap()),
    }
    assert_eq!(slow.await.unwrap_err().kind(), Some(ErrorKind::Deadline));
    monitor.shutdown(false).await.unwrap();
}

fn bundle(dir: &Path, id: &str) {
    std::fs::create_dir_all(dir.join("rootfs/bin")).unwrap();
    std::fs::copy("/usr/bin/busybox", dir.join("rootfs/bin/sh")).unwrap();
    let config = serde_json::json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"args": ["sh", "-c", "echo up; read line; exit 5"], "cwd": "/", "env": ["PATH=/bin"],
            "user": {"uid": 0, "gid": 0}},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]}
        ],
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}],
            "cgroupsPath": format!("/podwright-test/client-{}-{id}", std::process::id())}
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

/// Reads a client's end, which does not block, to its end.
async fn read_all(fd: std::os::fd::OwnedFd) -> String {
    let mut text = Vec::new();
    let mut source = tokio::net::unix::pipe::Receiver::from_owned_fd_unchecked(fd).unwrap();
    // A terminal ends with EIO.
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut source, &mut text).await;
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_container_and_its_execs() {
    let tmp = tempfile::tempdir().unwrap();
    let path = |name: &str| tmp.path().join(name).to_str().unwrap().to_owned();
    let (monitor, mut events) = launch(request(tmp.path())).await.unwrap();
    bundle(&tmp.path().join("bundle"), "c1");
    let runtime = Runtime { path: "/usr/sbin/runc".into(), args: vec!["--root".into(), path("runc")] };
    let runc = |verb: &[&str]| {
        assert!(Command::new("runc").args(["--root", &path("runc")]).args(verb).status().unwrap().success());
    };
    let run = RunRequest {
        container_id: "c1".into(),
        runtime: runtime.clone(),
        bundle: path("bundle"),
        log_path: Some(path("0.log")),
        log_directory: None,
        terminal: false,
        stdin: true,
        stdin_once: true,
        deadline_ms: None,
        cgroup: None,
        restore: None,
        no_new_keyring: false,
    };
    monitor.run(run).await.unwrap();
    let exec = |exec_id: &str, terminal: bool| {
        let file = path(&format!("{exec_id}.json"));
        let process = serde_json::json!({"args": ["sh", "-c", "echo done; exit 3"], "cwd": "/",
            "env": ["PATH=/bin"], "terminal": terminal, "user": {"uid": 0, "gid": 0}});
        std::fs::write(&file, process.to_string()).unwrap();
        ExecRequest {
            exec_id: exec_id.into(),
            container_id: "c1".into(),
            runtime: runtime.clone(),
            process_file: file,
            terminal,
            deadline: None,
            limit: None,
        }
    };
    let wanted = StdioFlags { stdin: true, stdout: true, stderr: true };
    let mut session = monitor.session(exec("e3", false), wanted).await.unwrap();
    assert!(session.stdin.take().is_some() && session.stderr.is_some() && session.terminal.is_none());
    assert_eq!(read_all(session.stdout.take().unwrap()).await, "done\n");
    assert_eq!(session.leash.ended().await, Some(SessionEnd::Exited { exit_code: 3, signal: None }));
    let mut session = monitor.session(exec("e4", true), wanted).await.unwrap();
    assert!(session.stdin.is_none() && session.stdout.is_none() && session.stderr.is_none());
    assert_eq!(read_all(session.terminal.take().unwrap()).await, "done\r\n");
    assert_eq!(session.leash.ended().await, Some(SessionEnd::Exited { exit_code: 3, signal: None }));

    // An attach ends with the container; here with its input.
    let mut session = monitor.attach("c1".into(), wanted).await.unwrap();
    assert!(session.stdin.is_some());
    session.stdin = None;
    assert_eq!(read_all(session.stdout.take().unwrap()).await, "");
    assert_eq!(session.leash.ended().await, Some(SessionEnd::ContainerEnded));
    let Some(MonitorEvent::ContainerExited { container_id, exit }) = events.recv().await else { panic!() };
    assert_eq!((container_id.as_str(), exit.exit_code), ("c1", 5));
    let target = Target::Container("c1".into());
    assert_eq!(monitor.signal(target, 15, false).await.unwrap(), SignalOutcome::AlreadyExited);
    assert!(std::fs::read_to_string(path("0.log")).unwrap().ends_with(" stdout F up\n"));
    runc(&["delete", "c1"]);
    monitor.forget("c1".into()).await.unwrap();
    monitor.shutdown(false).await.unwrap();
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        // Goes when the last test's containers are gone.
        let _ = std::fs::remove_dir(hierarchy.path().join("podwright-test"));
    }
}

/// A monitor of protocol 1 with this record, which answers what it is sent with these frames as they were recorded, and
/// gives what it was sent.
fn monitor_of_protocol_1(dir: &Path, answers: Vec<Vec<String>>) -> std::thread::JoinHandle<Vec<String>> {
    use podwright_monitor_proto::{encode, take_frame};
    use std::io::{Read as _, Write as _};
    let pid = std::process::id();
    let record = RECORD_1
        .replace("PID", &pid.to_string())
        .replace("START", &podwright_sys::proc::start_time(pid).unwrap().to_string())
        .replace("BOOT", &podwright_sys::proc::boot_id().unwrap());
    std::fs::write(dir.join("monitor.json"), &record).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(dir.join("monitor.sock")).unwrap();
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let (mut input, mut buffer, mut asked) = (Vec::new(), [0; 4096], Vec::new());
        for answers in answers {
            let frame = loop {
                if let Some(frame) = take_frame(&mut input).unwrap() {
                    break frame;
                }
                let read = socket.read(&mut buffer).unwrap();
                assert!(read > 0, "the daemon has given it up");
                input.extend_from_slice(&buffer[..read]);
            };
            asked.push(String::from_utf8(frame).unwrap());
            for answer in answers {
                let answer = answer.replace("RECORD", &record);
                let frame: serde_json::Value = serde_json::from_str(&answer).unwrap();
                if answer.contains("session_started") {
                    let (leash, theirs) = leash();
                    let end = br#"{"exited":{"exit_code":3,"signal":null}}"#;
                    rustix::net::send(&leash, end, rustix::net::SendFlags::empty()).unwrap();
                    use std::os::fd::AsFd as _;
                    let null = std::fs::File::open("/dev/null").unwrap();
                    let fds = [null.as_fd(), theirs.as_fd()];
                    podwright_sys::fdpass::send(socket.as_fd(), &encode(&frame).unwrap(), &fds).unwrap();
                } else {
                    socket.write_all(&encode(&frame).unwrap()).unwrap();
                }
            }
        }
        asked
    })
}

const RECORD_1: &str = r#"{"version":1,"protocol":1,"revision":3,"sandbox_id":"s1","process":{"pid":PID,"start_time":START},"boot_id":"BOOT","namespaces":{"net":null,"ipc":null,"uts":null,"pid":null},"init":null}"#;

fn leash() -> (std::os::fd::OwnedFd, std::os::fd::OwnedFd) {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

#[tokio::test]
async fn a_monitor_of_protocol_1_is_served_until_its_pod_ends() {
    let tmp = tempfile::tempdir().unwrap();
    let reply = |id: u64, reply: &str| format!(r#"{{"reply":{{"id":{id},"reply":{reply}}}}}"#);
    let exit = r#"{"version":1,"container_id":"c1","pid":9,"exit_code":7,"signal":null,"oom_killed":false,"finished_at_ns":1}"#;
    let server = monitor_of_protocol_1(
        tmp.path(),
        vec![
            vec![reply(1, r#"{"hello":{"version":1,"record":RECORD}}"#)],
            vec![reply(
                2,
                r#"{"list":{"containers":[{"id":"c0","state":"creating","log_dropped_bytes":0}],"execs":[]}}"#,
            )],
            vec![reply(3, r#"{"created":{"pid":9,"start_time":10}}"#)],
            vec![
                reply(
                    4,
                    r#"{"session_started":{"pid":11,"terminal":false,"stdio":{"stdin":false,"stdout":true,"stderr":false}}}"#,
                ),
                r#"{"event":{"exec_exited":{"exec_id":"e1","exit_code":3,"signal":null}}}"#.into(),
                format!(r#"{{"event":{{"container_exited":{{"container_id":"c1","exit":{exit}}}}}}}"#),
            ],
            vec![reply(5, r#""already_exited""#)],
            vec![reply(6, r#""done""#)],
        ],
    );
    let (monitor, mut events) = adopt(tmp.path(), None).await.unwrap();
    assert_eq!((monitor.info().protocol, monitor.info().revision), (1, 3));
    let listing = monitor.list().await.unwrap();
    assert_eq!(listing.containers[0].state, podwright_monitor_proto::ContainerState::Starting);
    let runtime = Runtime { path: "/runc".into(), args: vec![] };
    let run = RunRequest {
        container_id: "c1".into(),
        runtime: runtime.clone(),
        bundle: "/b".into(),
        log_path: None,
        log_directory: None,
        terminal: false,
        stdin: false,
        stdin_once: false,
        deadline_ms: Some(5),
        cgroup: None,
        restore: None,
        no_new_keyring: false,
    };
    assert_eq!(monitor.run(run).await.unwrap().pid, 9);
    let exec = ExecRequest {
        exec_id: "e1".into(),
        container_id: "c1".into(),
        runtime,
        process_file: "/b/e1".into(),
        terminal: false,
        deadline: None,
        limit: Some(Duration::from_secs(6)),
    };
    let stdout = StdioFlags { stdout: true, ..StdioFlags::default() };
    let session = monitor.session(exec, stdout).await.unwrap();
    assert!(session.stdout.is_some());
    assert_eq!(session.leash.ended().await, Some(SessionEnd::Exited { exit_code: 3, signal: None }));
    // Its report of the exec's end is nobody's.
    let Some(MonitorEvent::ContainerExited { exit, .. }) = events.recv().await else { panic!() };
    assert_eq!(exit.exit_code, 7);
    let gone = monitor.signal(Target::Exec("e1".into()), 9, true).await.unwrap();
    assert_eq!(gone, SignalOutcome::AlreadyExited);
    monitor.shutdown(false).await.unwrap();
    let asked = server.join().unwrap();
    let part = |asked: &str, part: &str| assert!(asked.contains(part), "{asked}");
    part(&asked[2], r#""request":{"create":{"container_id":"c1""#);
    part(&asked[2], r#""start":true"#);
    part(&asked[3], r#""request":{"session":{"exec_id":"e1""#);
}

#[tokio::test]
async fn a_monitor_of_a_later_protocol_is_left_alone() {
    let tmp = tempfile::tempdir().unwrap();
    let later = r#"{"reply":{"id":1,"reply":{"hello":{"version":3,"record":RECORD}}}}"#;
    let server = monitor_of_protocol_1(tmp.path(), vec![vec![later.into()]]);
    let error = adopt(tmp.path(), None).await.unwrap_err();
    assert!(matches!(error, MonitorError::Version { theirs: 3, .. }), "{error}");
    server.join().unwrap();
}

#[tokio::test]
async fn a_monitor_program_of_protocol_1_is_refused_with_what_to_do() {
    use std::os::unix::fs::PermissionsExt as _;
    let tmp = tempfile::tempdir().unwrap();
    let refusal = serde_json::json!({"reply": {"id": 1, "reply":
        {"error": {"kind": "invalid", "message": "protocol 2 asked, 1 spoken"}}}});
    std::fs::write(tmp.path().join("refusal"), podwright_monitor_proto::encode(&refusal).unwrap()).unwrap();
    // It answers on the connection that is its standard input.
    let program = tmp.path().join("monitor");
    let script = format!("#!/bin/sh\ncat {} >&0\n", tmp.path().join("refusal").display());
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let error = launch(LaunchRequest { binary: program, ..request(tmp.path()) }).await.unwrap_err();
    assert!(matches!(error, MonitorError::Outdated { what: "protocol 2", .. }), "{error}");
}
