//! Every message and record, byte for byte; and those of version 1 that are others: a pod keeps its monitor through an
//! upgrade of the daemon, so what an old monitor says stays readable, and what it needs to hear can be written.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::fmt::Debug;

use podwright_monitor_proto::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

#[track_caller]
fn fixture<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T, json: &str) {
    assert_eq!(serde_json::to_string(value).unwrap(), json);
    assert_eq!(&serde_json::from_str::<T>(json).unwrap(), value);
}

#[track_caller]
fn request(request: Request, json: &str) {
    fixture(&RequestFrame { id: 7, request }, &format!(r#"{{"id":7,"request":{json}}}"#));
}

#[track_caller]
fn reply(reply: Reply, json: &str) {
    fixture(&FromMonitor::Reply { id: 7, reply }, &format!(r#"{{"reply":{{"id":7,"reply":{json}}}}}"#));
}

fn runtime() -> Runtime {
    Runtime { path: "/usr/bin/crun".into(), args: vec!["--root".into(), "/run/p".into()] }
}

fn exit() -> ExitRecord {
    ExitRecord {
        version: 1,
        container_id: "c1".into(),
        pid: 9,
        exit_code: 137,
        signal: Some(9),
        oom_killed: true,
        finished_at_ns: 1_700_000_000_000_000_001,
    }
}

const EXIT: &str = r#"{"version":1,"container_id":"c1","pid":9,"exit_code":137,"signal":9,"oom_killed":true,"finished_at_ns":1700000000000000001}"#;
const RECORD: &str = r#"{"version":1,"protocol":1,"revision":1,"sandbox_id":"s1","process":{"pid":5,"start_time":6},"boot_id":"b","namespaces":{"net":"/run/netns/s1","ipc":"/proc/5/fd/3","uts":null,"pid":"/proc/8/ns/pid"},"init":{"pid":8,"start_time":9}}"#;

fn record() -> MonitorRecord {
    MonitorRecord {
        version: 1,
        protocol: 1,
        revision: 1,
        sandbox_id: "s1".into(),
        process: ProcessId { pid: 5, start_time: 6 },
        boot_id: "b".into(),
        namespaces: NamespacePaths {
            net: Some("/run/netns/s1".into()),
            ipc: Some("/proc/5/fd/3".into()),
            uts: None,
            pid: Some("/proc/8/ns/pid".into()),
            user: None,
        },
        init: Some(ProcessId { pid: 8, start_time: 9 }),
    }
}

fn run() -> Run {
    Run {
        container_id: "c1".into(),
        runtime: runtime(),
        bundle: "/b".into(),
        log_path: Some("/l".into()),
        log_directory: None,
        terminal: false,
        stdin: true,
        stdin_once: true,
        deadline_ms: Some(5),
        cgroup: None,
        restore: None,
        no_new_keyring: false,
    }
}

fn restored() -> Run {
    let restore = Some(Restore { images: "/c/checkpoint".into(), work: "/b".into() });
    Run { log_path: None, stdin: false, stdin_once: false, deadline_ms: None, restore, ..run() }
}

/// What a daemon writes to a monitor of version 1 is what one of version 1 wrote, without the fields that had their
/// defaults there.
#[test]
fn requests_to_version_1() {
    for (run, json) in [
        (
            run(),
            r#"{"container_id":"c1","runtime":{"path":"/usr/bin/crun","args":["--root","/run/p"]},"bundle":"/b","log_path":"/l","terminal":false,"stdin":true,"stdin_once":true,"deadline_ms":5,"start":true}"#,
        ),
        (
            restored(),
            r#"{"container_id":"c1","runtime":{"path":"/usr/bin/crun","args":["--root","/run/p"]},"bundle":"/b","log_path":null,"terminal":false,"stdin":false,"stdin_once":false,"deadline_ms":null,"restore":{"images":"/c/checkpoint","work":"/b"},"start":true}"#,
        ),
    ] {
        let frame = RequestFrame { id: 7, request: v1::Request::run(&run) };
        let expected = format!(r#"{{"id":7,"request":{{"create":{json}}}}}"#);
        assert_eq!(serde_json::to_string(&frame).unwrap(), expected);
    }
}

#[test]
fn the_refusal_of_a_launch_by_version_1_is_known() {
    assert!(v1::refuses_launch("protocol 2 asked, 1 spoken"));
    assert!(!v1::refuses_launch("protocol 3 asked, 2 spoken") && !v1::refuses_launch("no such file"));
}

/// What monitors of version 1 say and those of today do not.
#[test]
fn answers_and_events_of_version_1() {
    let read = |json: &str| serde_json::from_str::<FromMonitor>(json).unwrap();
    assert_eq!(
        read(r#"{"reply":{"id":7,"reply":{"created":{"pid":9,"start_time":10}}}}"#),
        FromMonitor::Reply { id: 7, reply: Reply::Running { pid: 9, start_time: 10 } }
    );
    let status = ContainerStatus { id: "a".into(), state: ContainerState::Starting, log_dropped_bytes: 0 };
    assert_eq!(
        read(
            r#"{"reply":{"id":7,"reply":{"list":{"containers":[{"id":"a","state":"creating","log_dropped_bytes":0}],"execs":[]}}}}"#
        ),
        FromMonitor::Reply { id: 7, reply: Reply::List { containers: vec![status], execs: vec![] } }
    );
    assert_eq!(
        read(r#"{"event":{"exec_exited":{"exec_id":"e1","exit_code":3,"signal":null}}}"#),
        FromMonitor::Event(Event::ExecExited { exec_id: "e1".into() })
    );
}

#[test]
fn requests() {
    request(
        Request::Launch(Box::new(Launch {
            version: 1,
            sandbox_id: "s1".into(),
            dir: "/run/p/s1".into(),
            exit_dir: "/run/p/exits".into(),
            namespaces: NamespaceRequest {
                net: Some("/run/netns/s1".into()),
                ipc: true,
                uts: true,
                pid: false,
                user: None,
            },
            hostname: Some("web".into()),
            sysctls: BTreeMap::from([("net.core.somaxconn".into(), "9".into())]),
            log_max_line: 16384,
            init_cgroups: vec![],
        })),
        r#"{"launch":{"version":1,"sandbox_id":"s1","dir":"/run/p/s1","exit_dir":"/run/p/exits","namespaces":{"net":"/run/netns/s1","ipc":true,"uts":true,"pid":false},"hostname":"web","sysctls":{"net.core.somaxconn":"9"},"log_max_line":16384}}"#,
    );
    request(Request::Hello { version: 1 }, r#"{"hello":{"version":1}}"#);
    request(
        Request::Run(Box::new(run())),
        r#"{"run":{"container_id":"c1","runtime":{"path":"/usr/bin/crun","args":["--root","/run/p"]},"bundle":"/b","log_path":"/l","terminal":false,"stdin":true,"stdin_once":true,"deadline_ms":5}}"#,
    );
    request(
        Request::Run(Box::new(restored())),
        r#"{"run":{"container_id":"c1","runtime":{"path":"/usr/bin/crun","args":["--root","/run/p"]},"bundle":"/b","log_path":null,"terminal":false,"stdin":false,"stdin_once":false,"deadline_ms":null,"restore":{"images":"/c/checkpoint","work":"/b"}}}"#,
    );
    request(
        Request::Session(Box::new(Exec {
            exec_id: "e1".into(),
            container_id: "c1".into(),
            runtime: runtime(),
            process_file: "/b/p.json".into(),
            terminal: false,
            stdio: ExecStdio { stdin: true, stdout: true, stderr: true },
            deadline_ms: Some(5),
            limit_ms: Some(6),
        })),
        r#"{"session":{"exec_id":"e1","container_id":"c1","runtime":{"path":"/usr/bin/crun","args":["--root","/run/p"]},"process_file":"/b/p.json","terminal":false,"stdio":{"stdin":true,"stdout":true,"stderr":true},"deadline_ms":5,"limit_ms":6}}"#,
    );
    request(
        Request::Attach {
            container_id: "c1".into(),
            stdio: ExecStdio { stdin: true, stdout: true, stderr: false },
        },
        r#"{"attach":{"container_id":"c1","stdio":{"stdin":true,"stdout":true,"stderr":false}}}"#,
    );
    request(
        Request::Signal { target: Target::Container("c1".into()), signal: 15, group: false },
        r#"{"signal":{"target":{"container":"c1"},"signal":15,"group":false}}"#,
    );
    request(Request::ReopenLog { container_id: "c1".into() }, r#"{"reopen_log":{"container_id":"c1"}}"#);
    request(Request::List, r#""list""#);
    request(Request::Forget { container_id: "c1".into() }, r#"{"forget":{"container_id":"c1"}}"#);
    request(
        Request::Resize { target: Target::Exec("e1".into()), width: 80, height: 25 },
        r#"{"resize":{"target":{"exec":"e1"},"width":80,"height":25}}"#,
    );
    request(Request::Shutdown { force: true }, r#"{"shutdown":{"force":true}}"#);
}

#[test]
fn replies() {
    reply(
        Reply::Hello { version: 1, record: Box::new(record()) },
        &format!(r#"{{"hello":{{"version":1,"record":{RECORD}}}}}"#),
    );
    reply(Reply::Launched(Box::new(record())), &format!(r#"{{"launched":{RECORD}}}"#));
    reply(Reply::Running { pid: 9, start_time: 10 }, r#"{"running":{"pid":9,"start_time":10}}"#);
    let session = |terminal, stdin, stdout, stderr| Reply::SessionStarted {
        pid: 9,
        terminal,
        stdio: ExecStdio { stdin, stdout, stderr },
    };
    reply(
        session(false, true, true, true),
        r#"{"session_started":{"pid":9,"terminal":false,"stdio":{"stdin":true,"stdout":true,"stderr":true}}}"#,
    );
    reply(
        Reply::Attached { stdio: ExecStdio { stdin: false, stdout: true, stderr: false } },
        r#"{"attached":{"stdio":{"stdin":false,"stdout":true,"stderr":false}}}"#,
    );
    assert_eq!(session(false, true, true, true).descriptors(), 4);
    assert_eq!(session(true, false, false, false).descriptors(), 2);
    let status = |id: &str, state| ContainerStatus { id: id.into(), state, log_dropped_bytes: 0 };
    reply(
        Reply::List {
            containers: vec![
                status("a", ContainerState::Starting),
                status("b", ContainerState::Running { pid: 9, start_time: 10 }),
                status("c1", ContainerState::Exited(exit())),
            ],
            execs: vec![ExecStatus { id: "e1".into(), container_id: "b".into(), pid: 11 }],
        },
        &format!(
            r#"{{"list":{{"containers":[{{"id":"a","state":"starting","log_dropped_bytes":0}},{{"id":"b","state":{{"running":{{"pid":9,"start_time":10}}}},"log_dropped_bytes":0}},{{"id":"c1","state":{{"exited":{EXIT}}},"log_dropped_bytes":0}}],"execs":[{{"id":"e1","container_id":"b","pid":11}}]}}}}"#
        ),
    );
    reply(Reply::Done, r#""done""#);
    reply(Reply::AlreadyExited, r#""already_exited""#);
    reply(
        Reply::Error { kind: ErrorKind::Runtime { exit_code: 1 }, message: "no such file".into() },
        r#"{"error":{"kind":{"runtime":{"exit_code":1}},"message":"no such file"}}"#,
    );
    for (kind, json) in [
        (ErrorKind::Invalid, "invalid"),
        (ErrorKind::NotFound, "not_found"),
        (ErrorKind::AlreadyExists, "already_exists"),
        (ErrorKind::NotRunning, "not_running"),
        (ErrorKind::StillRunning, "still_running"),
        (ErrorKind::TooMany, "too_many"),
        (ErrorKind::Deadline, "deadline"),
        (ErrorKind::Namespace, "namespace"),
        (ErrorKind::Io, "io"),
    ] {
        fixture(&kind, &format!("\"{json}\""));
    }
}

#[test]
fn events_and_records() {
    fixture(
        &FromMonitor::Event(Event::ContainerExited { container_id: "c1".into(), exit: exit() }),
        &format!(r#"{{"event":{{"container_exited":{{"container_id":"c1","exit":{EXIT}}}}}}}"#),
    );
    fixture(&exit(), EXIT);
    fixture(&record(), RECORD);
    for (end, json) in [
        (SessionEnd::Exited { exit_code: 3, signal: None }, r#"{"exited":{"exit_code":3,"signal":null}}"#),
        (SessionEnd::TimedOut, r#""timed_out""#),
        (SessionEnd::ContainerEnded, r#""container_ended""#),
        (SessionEnd::TooSlow, r#""too_slow""#),
    ] {
        fixture(&end, json);
    }
}

#[test]
fn a_newer_writer_may_add_fields_and_an_older_one_may_omit_optional_ones() {
    let newer =
        r#"{"id":1,"request":{"run":{"container_id":"c","runtime":{"path":"/r"},"bundle":"/b","later":1}}}"#;
    let frame: RequestFrame = serde_json::from_str(newer).unwrap();
    assert!(matches!(frame.request, Request::Run(run) if run.deadline_ms.is_none()));
}

#[test]
fn a_monitor_from_before_revisions_has_revision_0() {
    let old = RECORD.replace(r#""revision":1,"#, "");
    assert_ne!(old, RECORD);
    assert_eq!(serde_json::from_str::<MonitorRecord>(&old).unwrap().revision, 0);
}
