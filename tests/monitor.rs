//! The daemon's monitor client with the real monitor, without containers: those are in the monitor's own tests.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use podwright::host::monitor::{
    CreateRequest, ErrorKind, ExecRequest, ExecStdio, LaunchRequest, Listing, Monitor, MonitorError,
    MonitorEvent, NamespaceRequest, Runtime, SessionEnd, SignalOutcome, StdioFlags, Target, adopt, launch,
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
    let create = CreateRequest {
        start: false,
        container_id: "c1".into(),
        runtime: Runtime { path: "/bin/sh".into(), args: vec!["-c".into(), "sleep 1000".into()] },
        bundle: bundle.to_str().unwrap().into(),
        pid_file: None,
        log_path: None,
        log_directory: None,
        log_max_line: None,
        terminal: false,
        stdin: false,
        stdin_once: false,
        deadline_ms: Some(1000),
        cgroup: None,
        restore: None,
        no_new_keyring: false,
    };
    let slow = monitor.create(create);
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
    let create = CreateRequest {
        start: false,
        container_id: "c1".into(),
        runtime: runtime.clone(),
        bundle: path("bundle"),
        pid_file: None,
        log_path: Some(path("0.log")),
        log_directory: None,
        log_max_line: None,
        terminal: false,
        stdin: true,
        stdin_once: false,
        deadline_ms: None,
        cgroup: None,
        restore: None,
        no_new_keyring: false,
    };
    monitor.create(create).await.unwrap();
    runc(&["start", "c1"]);
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
        }
    };
    let read = |source: std::fs::File| {
        tokio::task::spawn_blocking(move || {
            let (mut source, mut text) = (source, Vec::new());
            // A terminal ends with EIO.
            let _ = std::io::Read::read_to_end(&mut source, &mut text);
            String::from_utf8(text).unwrap()
        })
    };
    let ended =
        |exec_id: &str| MonitorEvent::ExecExited { exec_id: exec_id.into(), exit_code: 3, signal: None };

    let (reader, writer) = std::io::pipe().unwrap();
    let stdio = ExecStdio { stdout: Some(writer.into()), ..ExecStdio::default() };
    assert!(monitor.exec(exec("e1", false), stdio).await.unwrap().terminal.is_none());
    let reader: std::os::fd::OwnedFd = reader.into();
    assert_eq!(read(reader.into()).await.unwrap(), "done\n");
    assert_eq!(events.recv().await, Some(ended("e1")));

    let terminal = monitor.exec(exec("e2", true), ExecStdio::default()).await.unwrap().terminal.unwrap();
    assert_eq!(read(terminal.into()).await.unwrap(), "done\r\n");
    assert_eq!(events.recv().await, Some(ended("e2")));

    let wanted = StdioFlags { stdin: true, stdout: true, stderr: true };
    let mut session = monitor.session(exec("e3", false), wanted).await.unwrap();
    assert!(session.stdin.take().is_some() && session.stderr.is_some() && session.terminal.is_none());
    assert_eq!(read_all(session.stdout.take().unwrap()).await, "done\n");
    assert_eq!(session.leash.ended().await, Some(SessionEnd::Exited { exit_code: 3, signal: None }));
    assert_eq!(events.recv().await, Some(ended("e3")));
    let mut session = monitor.session(exec("e4", true), wanted).await.unwrap();
    assert!(session.stdin.is_none() && session.stdout.is_none() && session.stderr.is_none());
    assert_eq!(read_all(session.terminal.take().unwrap()).await, "done\r\n");
    assert_eq!(session.leash.ended().await, Some(SessionEnd::Exited { exit_code: 3, signal: None }));
    assert_eq!(events.recv().await, Some(ended("e4")));

    // An attach ends with the container; here with its input.
    let mut session = monitor.attach("c1".into(), wanted).await.unwrap();
    assert!(session.stdin.is_some());
    monitor.close_stdin("c1".into()).await.unwrap();
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
