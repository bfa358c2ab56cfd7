//! The real binary without containers: launch, namespaces, connections, shutdown.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use podwright_monitor_proto::*;
use support::{Client, Pod, spawn, until};

fn pin_path(name: &str) -> PathBuf {
    PathBuf::from(format!("/run/netns/podwright-test-{name}-{}", std::process::id()))
}

#[test]
fn without_a_launch_it_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, socket) = spawn(dir.path());
    drop(socket);
    assert!(child.wait().unwrap().success());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn namespaces_are_made_set_up_pinned_and_taken_down() {
    let pin = pin_path("ns");
    let mut pod = Pod::launch("ns", |launch| {
        launch.namespaces = NamespaceRequest {
            net: Some(pin.to_str().unwrap().into()),
            ipc: true,
            uts: true,
            ..Default::default()
        };
        launch.hostname = Some("pod-7".into());
        launch.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "17".into());
        launch.sysctls.insert("kernel/shm_rmid_forced".into(), "1".into());
    });
    let inside = |command: &str| {
        let paths = &pod.record.namespaces;
        let output = Command::new("nsenter")
            .arg(format!("--net={}", paths.net.as_ref().unwrap()))
            .arg(format!("--ipc={}", paths.ipc.as_ref().unwrap()))
            .arg(format!("--uts={}", paths.uts.as_ref().unwrap()))
            .args(["sh", "-c", command])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(inside("hostname"), "pod-7\n");
    assert_eq!(
        inside("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced"),
        "17\n1\n"
    );
    assert!(inside("cat /proc/net/if_inet6; cat /proc/net/fib_trie").contains("127.0.0.1"));
    assert_eq!(
        std::fs::read(pod.dir.join(MONITOR_RECORD)).unwrap(),
        serde_json::to_vec(&pod.record).unwrap()
    );
    assert_eq!(podwright_sys::proc::start_time(pod.pid()).unwrap(), pod.record.process.start_time);
    assert_eq!(std::fs::read_to_string(format!("/proc/{}/comm", pod.pid())).unwrap(), "podwright-mon\n");
    assert!(pod.children().is_empty());
    // The host's own are untouched.
    let own = |kind: &str| std::fs::read_link(format!("/proc/{}/ns/{kind}", pod.pid())).unwrap();
    for kind in ["net", "ipc", "uts", "pid", "mnt"] {
        assert_eq!(own(kind), std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap());
    }
    pod.shutdown();
    assert!(!pin.exists());
}

#[test]
fn a_pods_init_ends_with_a_monitor_that_is_killed() {
    let pod = Pod::launch("leash", |launch| launch.namespaces.pid = true);
    let init = pod.record.init.unwrap();
    let monitor = podwright_sys::pidfd::open(pod.pid()).unwrap();
    podwright_sys::pidfd::send_signal(monitor.as_fd(), 9).unwrap();
    // Whoever reaps it then.
    let lives = || {
        podwright_sys::proc::start_time(init.pid).is_ok_and(|time| time == init.start_time)
            && podwright_sys::proc::state(init.pid).is_ok_and(|state| state != 'Z')
    };
    until("the pod's init is gone", || !lives());
}

/// What a process shows, and what can be got from it.
fn assert_worth_nothing(init: u32, cgroups: &[String]) {
    let file = |name: &str| std::fs::read_to_string(format!("/proc/{init}/{name}")).unwrap();
    let link = |name: &str| std::fs::read_link(format!("/proc/{init}/{name}"));
    assert_eq!(file("cmdline"), "podwright-init\0");
    assert_eq!(file("environ"), "");
    let status = file("status");
    let status: Vec<&str> = status.lines().collect();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000").as_str()), "{set}: {status:#?}");
    }
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "Groups:\t "] {
        assert!(status.contains(&line), "{line}: {status:#?}");
    }
    // One mount, empty, read-only both as a mount and as a file system.
    let mounts = file("mountinfo");
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    let words: Vec<&str> = mounts.split_whitespace().collect();
    assert_eq!((words[4], words[5]), ("/", "ro,nosuid,nodev,noexec,relatime"), "{mounts}");
    assert!(words.iter().any(|word| word.starts_with("ro,size=4k")), "{mounts}");
    let root = PathBuf::from(format!("/proc/{init}/root/"));
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
    let refused = std::fs::write(root.join("x"), "x").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(link("cwd").unwrap(), Path::new("/"));
    assert_eq!(std::fs::read_dir(format!("/proc/{init}/fd")).unwrap().count(), 0);
    // Its program is the monitor's, and cannot be written to.
    let exe = format!("/proc/{init}/exe");
    let refused =
        rustix::fs::openat(rustix::fs::CWD, &exe, rustix::fs::OFlags::WRONLY, rustix::fs::Mode::empty());
    assert!(matches!(refused, Err(rustix::io::Errno::ROFS | rustix::io::Errno::TXTBSY)), "{refused:?}");
    let refused = rustix::fs::chmod(&exe, rustix::fs::Mode::empty()).unwrap_err();
    assert_eq!(refused, rustix::io::Errno::ROFS);
    for kind in ["mnt", "cgroup", "pid"] {
        assert_ne!(
            link(&format!("ns/{kind}")).unwrap(),
            std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap()
        );
    }
    for dir in cgroups {
        let procs = std::fs::read_to_string(Path::new(dir).join("cgroup.procs")).unwrap();
        assert_eq!(procs.trim(), init.to_string(), "{dir}");
    }
}

/// A cgroup in each hierarchy, removed with the value.
struct Cgroups(Vec<String>);

impl Cgroups {
    fn make(name: &str) -> Self {
        let root = PathBuf::from("/sys/fs/cgroup");
        let roots: Vec<PathBuf> = match root.join("cgroup.procs").exists() {
            true => vec![root],
            false => ["memory", "pids", "unified"].map(|name| root.join(name)).into(),
        };
        let name = format!("podwright-test-{name}-{}", std::process::id());
        let dirs = roots.iter().filter(|root| root.is_dir()).map(|root| {
            let dir = root.join(&name);
            std::fs::create_dir(&dir).unwrap();
            dir.to_str().unwrap().to_owned()
        });
        Self(dirs.collect())
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for dir in &self.0 {
            let _ = std::fs::remove_dir(dir);
        }
    }
}

#[test]
fn process_1_of_a_pod_has_nothing_that_is_worth_having() {
    let range = |outside| vec![IdRange { inside: 0, outside, count: 65_536 }];
    for user in [None, Some(IdMappings { uids: range(400_000), gids: range(500_000) })] {
        let cgroups = Cgroups::make(if user.is_some() { "mapped" } else { "plain" });
        let mut pod = Pod::launch("nothing", |launch| {
            launch.namespaces = NamespaceRequest { pid: true, ipc: true, user, ..Default::default() };
            launch.init_cgroups.clone_from(&cgroups.0);
        });
        let init = pod.record.init.unwrap().pid;
        assert_worth_nothing(init, &cgroups.0);
        assert_eq!(podwright_sys::proc::parent(init).unwrap(), pod.pid());
        pod.shutdown();
        // The monitor leaves no cgroup of its init behind.
        for dir in &cgroups.0 {
            assert!(!Path::new(dir).exists(), "{dir}");
        }
    }
}

#[test]
fn a_cgroup_that_is_not_there_is_named_and_no_init_is_left() {
    let outcome = Pod::try_launch("nocgroup", |launch| {
        launch.namespaces.pid = true;
        launch.init_cgroups = vec!["/sys/fs/cgroup/no/such".into()];
    });
    let Err((kind, message)) = outcome else { panic!("launched") };
    assert_eq!(kind, ErrorKind::Namespace);
    assert!(message.contains("/sys/fs/cgroup/no/such"), "{message}");
}

#[test]
fn a_user_namespace_owns_the_others() {
    let pin = pin_path("user");
    let range = |outside| vec![IdRange { inside: 0, outside, count: 65_536 }];
    let mut pod = Pod::launch("user", |launch| {
        launch.namespaces = NamespaceRequest {
            net: Some(pin.to_str().unwrap().into()),
            ipc: true,
            uts: true,
            pid: true,
            user: Some(IdMappings { uids: range(400_000), gids: range(500_000) }),
        };
        launch.hostname = Some("pod-8".into());
        launch.sysctls.insert("net.ipv4.ping_group_range".into(), "0 65535".into());
        launch.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    });
    let paths = pod.record.namespaces.clone();
    let command = "cat /proc/self/uid_map /proc/self/gid_map; hostname pod-9 && hostname; \
        ip link set lo down && echo owned; cat /proc/sys/net/ipv4/ping_group_range /proc/sys/kernel/shm_rmid_forced";
    let output = Command::new("nsenter")
        .arg(format!("--user={}", paths.user.as_ref().unwrap()))
        .arg(format!("--net={}", paths.net.as_ref().unwrap()))
        .arg(format!("--ipc={}", paths.ipc.as_ref().unwrap()))
        .arg(format!("--uts={}", paths.uts.as_ref().unwrap()))
        .args(["-S", "0", "-G", "0", "sh", "-c", command])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    let expected = ["0", "400000", "65536", "0", "500000", "65536", "pod-9", "owned", "0", "65535", "1"];
    assert_eq!(words, expected, "{}", String::from_utf8_lossy(&output.stderr));
    // It belongs to no host user inside, its own process 1 included.
    let init = pod.record.init.unwrap().pid;
    let status = std::fs::read_to_string(format!("/proc/{init}/status")).unwrap();
    assert!(status.contains("Uid:\t400000\t400000") && status.contains("Gid:\t500000\t500000"), "{status}");
    let user = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    assert_eq!(user(pod.pid()), user(std::process::id()));
    assert_ne!(user(init), user(pod.pid()));
    pod.shutdown();
    assert!(!pin.exists());
}

#[test]
fn a_mapping_that_the_kernel_refuses_is_told_and_nothing_is_left() {
    let pin = pin_path("user-bad");
    let outcome = Pod::try_launch("user-bad", |launch| {
        let twice = vec![IdRange { inside: 0, outside: 400_000, count: 9 }; 2];
        launch.namespaces.net = Some(pin.to_str().unwrap().into());
        launch.namespaces.user = Some(IdMappings { uids: twice.clone(), gids: twice });
    });
    let Err(error) = outcome else { panic!("launched") };
    assert!(format!("{error:?}").contains("0:400000:9,0:400000:9"), "{error:?}");
    assert!(!pin.exists());
}

#[test]
fn a_step_that_fails_is_named_and_all_is_undone() {
    let pin = pin_path("undo");
    let ask = |launch: &mut Launch| {
        launch.namespaces.net = Some(pin.to_str().unwrap().into());
        launch.namespaces.pid = true;
    };
    let failed = |adjust: &dyn Fn(&mut Launch)| {
        let outcome = Pod::try_launch("undo", |launch| {
            ask(launch);
            adjust(launch);
        });
        outcome.err().expect("the launch should fail")
    };
    let (kind, message) =
        failed(&|launch| drop(launch.sysctls.insert("net.core.nonsense".into(), "1".into())));
    assert_eq!(kind, ErrorKind::Namespace);
    assert!(message.contains("net.core.nonsense"), "{message}");
    let (_, message) =
        failed(&|launch| drop(launch.sysctls.insert("kernel.core_pattern".into(), "x".into())));
    assert!(message.contains("kernel.core_pattern"), "{message}");
    let (_, message) = failed(&|launch| launch.hostname = Some("x".into()));
    assert!(message.contains("host name"), "{message}");
    assert!(!pin.exists());
    std::fs::create_dir_all(pin.parent().unwrap()).unwrap();
    std::fs::write(&pin, "").unwrap();
    let (_, message) = failed(&|_| {});
    assert!(message.contains("pin network namespace"), "{message}");
    assert!(pin.exists(), "what others made is not ours to remove");
    std::fs::remove_file(&pin).unwrap();
    let (kind, _) = failed(&|launch| launch.version = 99);
    assert_eq!(kind, ErrorKind::Invalid);
    let (kind, _) = failed(&|launch| launch.sandbox_id = "../x".into());
    assert_eq!(kind, ErrorKind::Invalid);
}

#[test]
fn connections_come_and_go_and_bad_ones_are_dropped() {
    let mut pod = Pod::launch("clients", |_| {});
    let mut second = Client::connect(&pod.dir);
    assert_eq!(second.call(Request::List), Reply::List { containers: vec![], execs: vec![] });
    // No hello.
    let mut rude = Client::new(UnixStream::connect(pod.dir.join(MONITOR_SOCKET)).unwrap());
    assert!(matches!(rude.call(Request::List), Reply::Error { kind: ErrorKind::Invalid, .. }));
    rude.read_to_end();
    // A length that no frame may have.
    let mut garbage = UnixStream::connect(pod.dir.join(MONITOR_SOCKET)).unwrap();
    garbage.write_all(&[0xff; 8]).unwrap();
    let mut end = Vec::new();
    let _ = garbage.read_to_end(&mut end);
    assert!(end.is_empty());
    // A request of a later version is answered, by id.
    let mut raw = UnixStream::connect(pod.dir.join(MONITOR_SOCKET)).unwrap();
    raw.write_all(&encode(&serde_json::json!({"id": 42, "request": {"dance": {}}})).unwrap()).unwrap();
    let (mut input, mut buffer) = (Vec::new(), [0; 1024]);
    let reply = loop {
        let read = raw.read(&mut buffer).unwrap();
        input.extend_from_slice(&buffer[..read]);
        if let Some(frame) = take_frame(&mut input).unwrap() {
            break serde_json::from_slice::<FromMonitor>(&frame).unwrap();
        }
    };
    assert!(matches!(
        reply,
        FromMonitor::Reply { id: 42, reply: Reply::Error { kind: ErrorKind::Invalid, .. } }
    ));
    // A client that sends requests for ever and never reads is dropped, and harms no other.
    let mut deaf = Client::connect(&pod.dir);
    let flood = encode(&RequestFrame { id: 1, request: Request::Hello { version: PROTOCOL_VERSION } })
        .unwrap()
        .repeat(1000);
    let mut deaf_socket = UnixStream::connect(pod.dir.join(MONITOR_SOCKET)).unwrap();
    while deaf_socket.write_all(&flood).is_ok() {}
    assert_eq!(deaf.call(Request::List), Reply::List { containers: vec![], execs: vec![] });
    // Too many.
    let crowd: Vec<_> = (0..20).map(|_| UnixStream::connect(pod.dir.join(MONITOR_SOCKET)).unwrap()).collect();
    assert_eq!(second.call(Request::List), Reply::List { containers: vec![], execs: vec![] });
    drop(crowd);
    until("place for another", || {
        let mut socket = UnixStream::connect(pod.dir.join(MONITOR_SOCKET)).unwrap();
        let hello =
            encode(&RequestFrame { id: 1, request: Request::Hello { version: PROTOCOL_VERSION } }).unwrap();
        socket.write_all(&hello).is_ok() && socket.read(&mut [0; 16]).is_ok_and(|read| read > 0)
    });
    let term = Command::new("kill").args(["-TERM", &pod.pid().to_string()]).status().unwrap();
    let hup = Command::new("kill").args(["-HUP", &pod.pid().to_string()]).status().unwrap();
    assert!(term.success() && hup.success());
    assert_eq!(second.call(Request::List), Reply::List { containers: vec![], execs: vec![] });
    pod.shutdown();
}

#[test]
fn a_directory_deeper_than_a_socket_path_may_be() {
    let mut pod = Pod::launch("deep", |launch| {
        let deep = Path::new(&launch.dir).join("x".repeat(100)).join("y".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        launch.dir = deep.to_str().unwrap().into();
    });
    let dir = pod.dir.join("x".repeat(100)).join("y".repeat(100));
    let socket = podwright_sys::socket::connect_in(&dir, MONITOR_SOCKET).unwrap();
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false).unwrap();
    let mut client = Client::new(stream);
    assert!(matches!(client.call(Request::Hello { version: PROTOCOL_VERSION }), Reply::Hello { .. }));
    pod.shutdown();
    assert!(!dir.join(MONITOR_SOCKET).exists());
}

#[test]
fn without_descriptors_it_waits_and_does_not_spin() {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    const SAYS: &str = "cannot accept a connection";
    let mut pod = Pod::launch("deaf", |_| {});
    let pid = Pid::from_raw(i32::try_from(pod.pid()).unwrap()).unwrap();
    let maximum = getrlimit(Resource::Nofile).maximum;
    let before = prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(3), maximum }).unwrap();
    let begun = std::time::Instant::now();
    let late = UnixStream::connect(pod.dir.join(MONITOR_SOCKET)).unwrap();
    let diary = pod.dir.join("monitor.log");
    let said = || std::fs::read_to_string(&diary).unwrap_or_default().matches(SAYS).count();
    until("it says so more than once", || said() > 1);
    let (often, took) = (said(), begun.elapsed());
    // Once a second; one that spins fills its log at once.
    assert!(often <= usize::try_from(took.as_secs()).unwrap() + 2, "{often} times within {took:?}");
    // Who is there already is served meanwhile, and who waits is let in afterwards.
    assert!(matches!(pod.client.call(Request::List), Reply::List { .. }));
    prlimit(Some(pid), Resource::Nofile, before).unwrap();
    let mut late = Client::new(late);
    assert!(matches!(
        late.call(Request::Hello { version: PROTOCOL_VERSION }),
        Reply::Hello { version: PROTOCOL_VERSION, .. }
    ));
    pod.shutdown();
}
