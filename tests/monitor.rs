//! The daemon's monitor client with the real monitor, without containers: those are in the monitor's own tests.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use podwright::host::monitor::{
    ErrorKind, LaunchRequest, Listing, Monitor, MonitorError, MonitorEvent, NamespaceRequest, Runtime, adopt,
    launch,
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
    let (monitor, mut events) = adopt(tmp.path()).await.unwrap();
    assert_eq!(*monitor.info(), info);
    assert_eq!(monitor.list().await.unwrap(), Listing { containers: vec![], execs: vec![] });
    let missing = monitor.forget("c1".into()).await.unwrap_err();
    assert_eq!(missing.kind(), Some(ErrorKind::NotFound));
    monitor.shutdown(false).await.unwrap();
    assert_eq!(events.recv().await, Some(MonitorEvent::Gone));
    assert!(matches!(adopt(tmp.path()).await, Err(MonitorError::NotRunning { .. })));
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
    assert!(matches!(adopt(tmp.path()).await, Err(MonitorError::NotRunning { .. })));
    while exists(pid) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_monitor_that_is_stopped_is_unresponsive_and_then_serves_again() {
    let tmp = tempfile::tempdir().unwrap();
    let (monitor, _events) = launch(request(tmp.path())).await.unwrap();
    signal(&monitor, "-STOP");
    let (listed, adopted) = tokio::join!(monitor.list(), adopt(tmp.path()));
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
    let create = podwright::host::monitor::CreateRequest {
        container_id: "c1".into(),
        runtime: Runtime { path: "/bin/sh".into(), args: vec!["-c".into(), "sleep 1000".into()] },
        bundle: bundle.to_str().unwrap().into(),
        pid_file: None,
        log_path: None,
        log_max_line: None,
        terminal: false,
        stdin: false,
        stdin_once: false,
        deadline_ms: Some(1000),
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
