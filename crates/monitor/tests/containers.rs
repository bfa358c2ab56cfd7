//! The real binary with the real runc: containers from create to exit, with the daemon present and absent.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use podwright_monitor_proto::*;
use serde_json::json;
use support::{Client, Pod, Session, log_lines, until};

/// A client that attaches to this and leaves ends the input of a container with `stdin_once`.
const STDIN: ExecStdio = ExecStdio { stdin: true, stdout: false, stderr: false };

fn container(id: &str) -> Target {
    Target::Container(id.into())
}

#[test]
fn a_container_runs_logs_and_leaves_its_exit_code() {
    let mut pod = Pod::launch("basic", |launch| {
        launch.namespaces.ipc = true;
        launch.namespaces.uts = true;
        launch.hostname = Some("web-0".into());
    });
    let files = pod.open_files();
    pod.run("c1", &["sh", "-c", "hostname; echo err >&2; exit 3"]);
    let exit = pod.client.exit_of("c1");
    assert_eq!((exit.exit_code, exit.signal, exit.oom_killed), (3, None, false));
    let mut log = pod.log("c1");
    log.sort();
    assert_eq!(log, ["stderr F err", "stdout F web-0"]);
    assert_eq!(pod.log_path("c1").metadata().unwrap().permissions().mode() & 0o7777, 0o640);
    let on_disk = std::fs::read(pod.path("exits/c1.json")).unwrap();
    assert_eq!(serde_json::from_slice::<ExitRecord>(&on_disk).unwrap(), exit);
    assert_eq!(pod.open_files(), files);
    assert_eq!(
        pod.client.call(Request::Signal { target: container("c1"), signal: 9, group: false }),
        Reply::AlreadyExited
    );
    let reopened = pod.client.call(Request::ReopenLog { container_id: "c1".into() });
    assert!(matches!(reopened, Reply::Error { kind: ErrorKind::NotRunning, .. }), "{reopened:?}");
    assert_eq!(pod.client.call(Request::Forget { container_id: "c1".into() }), Reply::Done);
    assert!(!pod.path("exits/c1.json").exists());
    assert_eq!(pod.client.call(Request::List), Reply::List { containers: vec![], execs: vec![] });
    assert_eq!(pod.client.call(Request::Shutdown { force: false }), Reply::Done);
}

#[test]
fn a_process_that_exits_at_once_is_not_missed() {
    let mut pod = Pod::launch("fast", |_| {});
    for round in 0..5 {
        let id = format!("c{round}");
        pod.run(&id, &["true"]);
        assert_eq!(pod.client.exit_of(&id).exit_code, 0);
        let request = pod.exec_request("e", &id, &["true"], false);
        let reply = pod.client.call(Request::Session(Box::new(request)));
        assert!(matches!(reply, Reply::Error { kind: ErrorKind::NotRunning, .. }));
    }
    pod.shutdown();
}

#[test]
fn a_daemon_that_dies_misses_nothing() {
    let mut pod = Pod::launch("restart", |_| {});
    let pid =
        pod.run("c1", &["sh", "-c", "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; exit 7"]);
    // The only connection closes while the container writes.
    let dir = pod.dir.clone();
    let (gone, _) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut pod.client, Client::new(gone)));
    until("exit record", || pod.path("exits/c1.json").exists());
    pod.client = Client::connect(&dir);
    let Reply::List { containers, .. } = pod.client.call(Request::List) else { panic!() };
    let ContainerState::Exited(exit) = &containers[0].state else { panic!("{containers:?}") };
    assert_eq!((exit.pid, exit.exit_code), (pid, 7));
    let expected: Vec<String> = (0..3000).map(|line| format!("stdout F line {line}")).collect();
    assert_eq!(pod.log("c1"), expected);
    pod.shutdown();
}

#[test]
fn all_output_is_in_the_log_when_the_exit_is_told() {
    let mut pod = Pod::launch("burst", |_| {});
    for round in 0..3 {
        let id = format!("c{round}");
        pod.run(&id, &["dd", "if=/proc/self/exe", "bs=1024", "count=1024"]);
        assert_eq!(pod.client.exit_of(&id).exit_code, 0);
        let log = std::fs::read(pod.log_path(&id)).unwrap();
        let mut joined = Vec::new();
        for record in log.split_inclusive(|byte| *byte == b'\n') {
            let rest = &record[31..];
            if let Some(content) = rest.strip_prefix(b"stdout P ") {
                joined.extend_from_slice(&content[..content.len() - 1]);
            } else if let Some(content) = rest.strip_prefix(b"stdout F ") {
                joined.extend_from_slice(content);
            }
        }
        let busybox = std::fs::read("/usr/bin/busybox").unwrap();
        let expected = &busybox[..1024 * 1024];
        // The one CR before an LF is not content.
        let mut stripped = Vec::new();
        for (at, byte) in expected.iter().enumerate() {
            if *byte != b'\r' || expected.get(at + 1) != Some(&b'\n') {
                stripped.push(*byte);
            }
        }
        assert!(joined == stripped, "{} bytes of {}", joined.len(), stripped.len());
    }
    pod.shutdown();
}

#[test]
fn a_child_that_holds_the_output_does_not_hold_the_exit() {
    let mut pod = Pod::launch("holder", |launch| launch.namespaces.pid = true);
    pod.run("c1", &["sh", "-c", "echo here; sleep 1000 & exit 4"]);
    pod.run("c2", &["sleep", "1000"]);
    assert_eq!(pod.client.exit_of("c1").exit_code, 4);
    assert_eq!(pod.log("c1"), ["stdout F here"]);
    pod.shutdown();
}

#[test]
fn a_prompt_is_logged_while_the_container_waits_for_input() {
    let mut pod = Pod::launch("prompt", |_| {});
    pod.bundle("c1", &["sh", "-c", "echo -n 'name? '; cat; echo end"], |_| {});
    let mut request = pod.run_request("c1");
    (request.stdin, request.stdin_once) = (true, true);
    pod.run_with(request);
    until("prompt", || pod.log("c1") == ["stdout P name? "]);
    drop(pod.attach("c1", STDIN));
    assert_eq!(pod.client.exit_of("c1").exit_code, 0);
    assert_eq!(pod.log("c1"), ["stdout P name? ", "stdout F end"]);
    pod.shutdown();
}

#[test]
fn rotation_under_load_loses_and_tears_no_line() {
    let mut pod = Pod::launch("rotate", |_| {});
    pod.run("c1", &["sh", "-c", "i=0; while true; do echo number $i; i=$((i+1)); done"]);
    let path = pod.log_path("c1");
    let rotated = |number: usize| path.with_file_name(format!("old.{number}"));
    for number in 0..200 {
        std::fs::rename(&path, rotated(number)).unwrap();
        assert_eq!(pod.client.call(Request::ReopenLog { container_id: "c1".into() }), Reply::Done);
        assert!(path.exists());
    }
    let size = rotated(199).metadata().unwrap().len();
    until("a line after the last rotation", || path.metadata().unwrap().len() > 0);
    assert_eq!(
        pod.client.call(Request::Signal { target: container("c1"), signal: 9, group: true }),
        Reply::Done
    );
    assert_eq!(pod.client.exit_of("c1").exit_code, 137);
    assert_eq!(rotated(199).metadata().unwrap().len(), size);
    let mut lines = Vec::new();
    for number in 0..200 {
        lines.extend(log_lines(&rotated(number)));
    }
    lines.extend(log_lines(&path));
    for (at, line) in lines.iter().enumerate() {
        assert_eq!(*line, format!("stdout F number {at}"));
    }
    pod.shutdown();
}

#[test]
fn a_failed_reopen_changes_nothing() {
    let mut pod = Pod::launch("reopen", |_| {});
    pod.run("c1", &["sh", "-c", "cat; echo more"]);
    let path = pod.log_path("c1");
    until("exit", || pod.path("exits/c1.json").exists());
    std::fs::rename(&path, path.with_extension("old")).unwrap();
    let reply = pod.client.call(Request::ReopenLog { container_id: "c1".into() });
    assert!(matches!(reply, Reply::Error { kind: ErrorKind::NotRunning, .. }));
    assert!(!path.exists());
    pod.shutdown();
}

#[test]
fn a_missing_command_is_told_and_nothing_is_left() {
    let mut pod = Pod::launch("missing", |_| {});
    let files = pod.open_files();
    pod.bundle("c1", &["/no/such/command"], |_| {});
    let request = pod.run_request("c1");
    match pod.client.call(Request::Run(Box::new(request.clone()))) {
        Reply::Error { kind: ErrorKind::Runtime { exit_code: 1 }, message } => {
            assert!(message.contains("/no/such/command") && message.contains("no such file"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert!(!pod.log_path("c1").exists());
    let mut missing = request;
    missing.runtime.path = "/no/such/runtime".into();
    let reply = pod.client.call(Request::Run(Box::new(missing)));
    assert!(
        matches!(&reply, Reply::Error { kind: ErrorKind::Io, message } if message.contains("/no/such/runtime"))
    );
    assert_eq!(pod.client.call(Request::List), Reply::List { containers: vec![], execs: vec![] });
    until("no zombie", || pod.children().is_empty());
    assert_eq!(pod.open_files(), files);
    pod.shutdown();
}

#[test]
fn a_runtime_that_hangs_is_killed_with_its_helpers_while_others_are_served() {
    let mut pod = Pod::launch("deadline", |_| {});
    let files = pod.open_files();
    let script = pod.path("runtime.sh");
    std::fs::write(&script, "#!/bin/sh\necho words >&2\nsleep 1000 &\nsleep 1000\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    pod.bundle("c1", &["true"], |_| {});
    let mut request = pod.run_request("c1");
    request.runtime = Runtime { path: script.to_str().unwrap().into(), args: vec![] };
    request.deadline_ms = Some(1500);
    let id = pod.client.send(Request::Run(Box::new(request)));
    pod.run("c2", &["true"]);
    assert_eq!(pod.client.exit_of("c2").exit_code, 0);
    assert!(matches!(pod.client.wait(id), Reply::Error { kind: ErrorKind::Deadline, .. }));
    until("nothing left", || pod.children().is_empty());
    assert_eq!(pod.open_files(), files);
    pod.shutdown();
}

#[test]
fn a_runtime_without_a_log_is_quoted_from_stderr() {
    let mut pod = Pod::launch("words", |_| {});
    let script = pod.path("runtime.sh");
    std::fs::write(&script, "#!/bin/sh\necho 'bad config' >&2\nexit 5\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    pod.bundle("c1", &["true"], |_| {});
    let mut request = pod.run_request("c1");
    request.runtime = Runtime { path: script.to_str().unwrap().into(), args: vec![] };
    let reply = pod.client.call(Request::Run(Box::new(request)));
    let expected = Reply::Error { kind: ErrorKind::Runtime { exit_code: 5 }, message: "bad config".into() };
    assert_eq!(reply, expected);
    pod.shutdown();
}

#[test]
fn execs_end_at_once_late_and_by_signals_and_leave_nothing() {
    let mut pod = Pod::launch("exec", |_| {});
    pod.run("c1", &["sleep", "1000"]);
    let files = pod.open_files();
    let nothing = ExecStdio::default();
    let exited = |exit_code| SessionEnd::Exited { exit_code, signal: None };
    let killed = SessionEnd::Exited { exit_code: 137, signal: Some(9) };
    for round in 0..10 {
        let session = pod.session(&format!("fast{round}"), "c1", &["true"], nothing);
        assert_eq!(session.end(), exited(0));
    }

    let session = pod.session("killed", "c1", &["sleep", "1000"], nothing);
    let kill = Request::Signal { target: Target::Exec("killed".into()), signal: 9, group: false };
    assert_eq!(pod.client.call(kill.clone()), Reply::Done);
    assert_eq!(session.end(), killed);
    assert_eq!(pod.client.call(kill), Reply::AlreadyExited);

    // The signal overtakes the runtime: the exec must not outlive it.
    let request = pod.exec_request("early", "c1", &["sleep", "1000"], false);
    let started = pod.client.send(Request::Session(Box::new(request)));
    let kill = Request::Signal { target: Target::Exec("early".into()), signal: 9, group: true };
    assert_eq!(pod.client.call(kill), Reply::Done);
    let early = pod.client.begun(started);
    assert_eq!(early.end(), killed);
    drop((session, early));
    // The leash reports before it is closed.
    assert!(matches!(pod.client.call(Request::List), Reply::List { .. }));
    assert_eq!(pod.open_files(), files);
    pod.shutdown();
}

#[test]
fn killing_an_exec_reaches_what_it_started_in_other_sessions() {
    let mut pod = Pod::launch("offspring", |_| {});
    let init = pod.run("c1", &["sleep", "1000"]);
    let script = "setsid sh -c 'setsid sleep 1001 & echo; sleep 1002' & sleep 1003";
    let stdio = ExecStdio { stdin: false, stdout: true, stderr: false };
    let mut session = pod.session("e1", "c1", &["sh", "-c", script], stdio);
    Session::read_until(&mut session.stdout, "\n");
    let Reply::List { execs, .. } = pod.client.call(Request::List) else { panic!() };
    assert!(!podwright_sys::proc::children(execs[0].pid).unwrap().is_empty());
    let kill = Request::Signal { target: Target::Exec("e1".into()), signal: 9, group: true };
    assert_eq!(pod.client.call(kill), Reply::Done);
    assert_eq!(session.end(), SessionEnd::Exited { exit_code: 137, signal: Some(9) });
    // They are init's now, which does not reap.
    let dead = |pid: &u32| podwright_sys::proc::state(*pid).is_ok_and(|state| state == 'Z');
    until("their end", || podwright_sys::proc::children(init).unwrap().iter().all(dead));
    pod.shutdown();
}

#[test]
fn terminals() {
    let mut pod = Pod::launch("tty", |_| {});
    pod.bundle(
        "c1",
        &["sh", "-c", "echo one; while [ \"$(stty size)\" != '25 80' ]; do :; done; echo two"],
        |config| {
            config["process"]["terminal"] = json!(true);
        },
    );
    let mut request = pod.run_request("c1");
    request.terminal = true;
    pod.run_with(request);
    let resize = Request::Resize { target: container("c1"), width: 80, height: 25 };
    assert_eq!(pod.client.call(resize), Reply::Done);
    assert_eq!(pod.client.exit_of("c1").exit_code, 0);
    // Busybox complains on its terminal while there is no size.
    let log = pod.log("c1");
    assert_eq!(
        (log.first().unwrap().as_str(), log.last().unwrap().as_str()),
        ("stdout F one", "stdout F two")
    );
    assert!(!std::fs::read_to_string(pod.log_path("c1")).unwrap().contains('\r'));

    pod.run("c2", &["sleep", "1000"]);
    let files = pod.open_files();
    let request = pod.exec_request("e1", "c2", &["sh", "-c", "echo hi; exit 2"], true);
    let mut session = pod.client.begin(Request::Session(Box::new(request)));
    assert_eq!(Session::rest(&mut session.terminal), "hi\r\n");
    assert_eq!(session.end(), SessionEnd::Exited { exit_code: 2, signal: None });
    drop(session);
    assert!(matches!(pod.client.call(Request::List), Reply::List { .. }));
    assert_eq!(pod.open_files(), files);
    assert!(
        !std::fs::read_dir(&pod.dir)
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_string_lossy().starts_with("console") })
    );
    pod.shutdown();
}

#[test]
fn memory_shortage_is_recorded() {
    let mut pod = Pod::launch("oom", |_| {});
    pod.bundle("c1", &["sh", "-c", "tail /dev/zero"], |config| {
        config["linux"]["resources"] = json!({"memory": {"limit": 8 << 20}});
        config["mounts"].as_array_mut().unwrap().truncate(1);
        config["linux"]["devices"] = json!([]);
    });
    let pid = pod.run_with(pod.run_request("c1"));
    let exit = pod.client.exit_of("c1");
    assert_eq!((exit.pid, exit.oom_killed), (pid, true), "{exit:?}");
    assert_eq!(exit.exit_code, 137);
    pod.shutdown();
}

#[test]
fn a_pod_with_one_pid_namespace_has_a_reaping_init_and_no_zombie() {
    let mut pod = Pod::launch("sharedpid", |launch| launch.namespaces.pid = true);
    let init = pod.record.init.unwrap();
    assert_eq!(std::fs::read_to_string(format!("/proc/{}/comm", init.pid)).unwrap(), "podwright-init\n");
    // Held by a descriptor: the pid may be reused one day.
    let path = pod.record.namespaces.pid.clone().unwrap();
    assert!(path.starts_with(&format!("/proc/./{}/fd/", pod.pid())), "{path}");
    let inode = |path: &str| std::fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&path), inode(&format!("/proc/{}/ns/pid", init.pid)));
    assert_eq!(std::fs::read_dir(format!("/proc/{}/fd", init.pid)).unwrap().count(), 0);
    pod.run("c1", &["sleep", "1000"]);
    pod.run("c2", &["sh", "-c", "sleep 0.01 & sh -c 'sleep 0.01 & sleep 0.01 &'; ps; kill -15 1; exit 0"]);
    assert_eq!(pod.client.exit_of("c2").exit_code, 0);
    let log = pod.log("c2").join("\n");
    assert!(log.contains("sleep 1000") && log.contains("podwright"), "{log}");
    assert!(
        std::path::Path::new(&format!("/proc/{}", init.pid)).exists(),
        "a container ended its pod's init"
    );
    until("orphans reaped by init", || {
        let children = format!("/proc/{0}/task/{0}/children", init.pid);
        std::fs::read_to_string(children).unwrap().is_empty()
    });
    pod.shutdown();
    assert!(!std::path::Path::new(&format!("/proc/{}", init.pid)).exists());
}

#[test]
fn orphans_in_the_hosts_pid_namespace_are_reaped() {
    let mut pod = Pod::launch("orphans", |_| {});
    pod.bundle(
        "c1",
        &["sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sh -c 'true & true &' & done; wait; cat"],
        |config| {
            let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "pid");
        },
    );
    let mut request = pod.run_request("c1");
    (request.stdin, request.stdin_once) = (true, true);
    let pid = pod.run_with(request);
    until("only the container is left", || pod.children() == [pid]);
    drop(pod.attach("c1", STDIN));
    assert_eq!(pod.client.exit_of("c1").exit_code, 0);
    pod.shutdown();
}

#[test]
fn output_without_a_log_is_drained() {
    let mut pod = Pod::launch("discard", |_| {});
    pod.bundle("c1", &["dd", "if=/proc/self/exe", "bs=1024", "count=1024"], |_| {});
    let mut request = pod.run_request("c1");
    request.log_path = None;
    pod.run_with(request);
    assert_eq!(pod.client.exit_of("c1").exit_code, 0);
    pod.shutdown();
}

#[test]
fn many_requests_at_once_on_one_connection() {
    let mut pod = Pod::launch("many", |_| {});
    let ids: Vec<String> = (0..4).map(|number| format!("c{number}")).collect();
    let created: Vec<RequestId> = ids
        .iter()
        .map(|id| {
            pod.bundle(id, &["sleep", "1000"], |_| {});
            let request = pod.run_request(id);
            pod.client.send(Request::Run(Box::new(request)))
        })
        .collect();
    for request in created {
        assert!(matches!(pod.client.wait(request), Reply::Running { .. }));
    }
    let files = pod.open_files();
    let execs: Vec<RequestId> = (0..24)
        .map(|number| {
            let id = format!("e{number}");
            let command = format!("exit {number}");
            let request =
                pod.exec_request(&id, &ids[number % ids.len()], &["sh", "-c", &command], number % 3 == 0);
            pod.client.send(Request::Session(Box::new(request)))
        })
        .collect();
    // Descriptors come in the order of the answers, which is not that of the requests.
    let sessions: Vec<Session> = execs.into_iter().map(|request| pod.client.begun(request)).collect();
    for (number, session) in sessions.iter().enumerate() {
        let exit_code = i32::try_from(number).unwrap();
        assert_eq!(session.end(), SessionEnd::Exited { exit_code, signal: None });
    }
    drop(sessions);
    assert!(matches!(pod.client.call(Request::List), Reply::List { .. }));
    assert_eq!(pod.open_files(), files);
    assert_eq!(pod.children().len(), ids.len());
    pod.shutdown();
}

#[test]
fn the_monitor_gives_up_capabilities_that_its_children_have() {
    let mut pod = Pod::launch("rights", |_| {});
    let all = |pid: &str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        [set("CapEff:"), set("CapPrm:"), set("CapBnd:")]
    };
    let (own, monitor) = (all("self"), all(&pod.pid().to_string()));
    let bit = |number: u32| 1_u64 << number;
    // CAP_CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, KILL, SYS_PTRACE, SYS_RESOURCE, MKNOD; then SYS_ADMIN.
    let used = [0, 1, 2, 3, 5, 19, 24, 27].map(bit).iter().sum::<u64>() & own[1];
    assert_eq!(monitor, [used, used | (bit(21) & own[1]), own[2]]);
    // What it starts has them all, and can give them to a container.
    pod.bundle("c1", &["cat", "/proc/self/status"], |config| {
        let sets = ["effective", "permitted", "bounding"];
        let wanted = json!(["CAP_NET_ADMIN", "CAP_SYS_MODULE", "CAP_SYS_TIME"]);
        for set in sets {
            config["process"]["capabilities"][set] = wanted.clone();
        }
    });
    pod.run_with(pod.run_request("c1"));
    assert_eq!(pod.client.exit_of("c1").exit_code, 0);
    let has = format!("CapEff:\t{:016x}", bit(12) | bit(16) | bit(25));
    assert!(pod.log("c1").iter().any(|line| line.contains(&has)), "{:?}", pod.log("c1"));
    pod.shutdown();
}

/// Whether a process sleeps; one that could go on does not, however busy the machine is.
fn sleeps(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
}

#[test]
fn a_container_that_floods_takes_a_bounded_part_of_a_cpu() {
    let mut pod = Pod::launch("flood", |_| {});
    // Many small writes cost the most for their size.
    let writer = pod.run("c1", &["sh", "-c", "while :; do echo x; done"]);
    pod.run("c2", &["sh", "-c", "sleep 1; echo heard; exec sleep 1000"]);
    until("the flood", || pod.log("c1").len() > 1000);
    // The writer only ever sleeps at a full pipe, and whoever reads without a bound does not sleep then.
    let mut paused = 0;
    until("the monitor lets the pipe be full", || {
        paused += u32::from(sleeps(writer) && sleeps(pod.pid()) && sleeps(writer));
        paused > 100
    });
    until("the other container's line", || pod.log("c2") == ["stdout F heard"]);
    pod.shutdown();
}
