//! A monitor, bundles and a client for the tests; dropping takes everything down.

#![allow(dead_code)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podwright_monitor_proto::*;
use podwright_sys::fdpass;
use serde_json::{Value, json};

/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Client {
    socket: UnixStream,
    input: Vec<u8>,
    fds: Vec<OwnedFd>,
    replies: BTreeMap<RequestId, (Reply, Vec<OwnedFd>)>,
    pub(crate) events: Vec<Event>,
    next: RequestId,
}

impl Client {
    pub(crate) fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, input: vec![], fds: vec![], replies: BTreeMap::new(), events: vec![], next: 1 }
    }

    pub(crate) fn connect(dir: &Path) -> Self {
        let mut client = Self::new(UnixStream::connect(dir.join(MONITOR_SOCKET)).unwrap());
        let hello = Request::Hello { version: PROTOCOL_VERSION };
        assert!(matches!(client.call(hello), Reply::Hello { version: PROTOCOL_VERSION, .. }));
        client
    }

    pub(crate) fn send(&mut self, request: Request) -> RequestId {
        let id = self.next;
        self.next += 1;
        let bytes = encode(&RequestFrame { id, request }).unwrap();
        assert_eq!(fdpass::send(self.socket.as_fd(), &bytes, &[]).unwrap(), bytes.len());
        id
    }

    /// `false` at the end of the connection.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 65_536];
        let read = fdpass::receive_waiting(self.socket.as_fd(), &mut buffer, &mut self.fds)
            .expect("the monitor should have answered by now");
        self.input.extend_from_slice(&buffer[..read]);
        while let Some(frame) = take_frame(&mut self.input).unwrap() {
            match serde_json::from_slice(&frame).unwrap() {
                FromMonitor::Reply { id, reply } => {
                    let fds = self.fds.drain(..reply.descriptors()).collect();
                    self.replies.insert(id, (reply, fds));
                }
                FromMonitor::Event(event) => self.events.push(event),
            }
        }
        read > 0
    }

    pub(crate) fn wait(&mut self, id: RequestId) -> Reply {
        self.wait_for(id).0
    }

    fn wait_for(&mut self, id: RequestId) -> (Reply, Vec<OwnedFd>) {
        loop {
            if let Some(reply) = self.replies.remove(&id) {
                return reply;
            }
            assert!(self.read(), "the monitor closed the connection");
        }
    }

    pub(crate) fn call(&mut self, request: Request) -> Reply {
        let id = self.send(request);
        self.wait(id)
    }

    pub(crate) fn exit_of(&mut self, id: &str) -> ExitRecord {
        loop {
            for event in &self.events {
                if let Event::ContainerExited { container_id, exit } = event
                    && container_id == id
                {
                    return exit.clone();
                }
            }
            assert!(self.read(), "the monitor closed the connection");
        }
    }

    pub(crate) fn read_to_end(&mut self) {
        while self.read() {}
    }
}

pub(crate) struct Pod {
    pub(crate) tmp: tempfile::TempDir,
    pub(crate) dir: PathBuf,
    pub(crate) id: String,
    pub(crate) client: Client,
    pub(crate) record: MonitorRecord,
    child: RefCell<Child>,
    /// Whether its pids are those of a PID namespace, which ends with the child.
    within: bool,
}

pub(crate) fn spawn(dir: &Path) -> (Child, UnixStream) {
    let mut command = Command::new(binary());
    command.stderr(Stdio::inherit()).current_dir(dir);
    spawn_by(command)
}

fn binary() -> PathBuf {
    // The release build can be tested instead of the debug one.
    std::env::var_os("PODWRIGHT_MONITOR")
        .map_or(env!("CARGO_BIN_EXE_podwright-monitor").into(), PathBuf::from)
}

fn spawn_by(mut command: Command) -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).spawn().unwrap();
    (child, ours)
}

impl Pod {
    pub(crate) fn launch(name: &str, adjust: impl FnOnce(&mut Launch)) -> Self {
        Self::try_launch(name, adjust).unwrap_or_else(|(_, message)| panic!("{message}"))
    }

    /// Has a command run the monitor in a PID namespace; the command gets the monitor's program and directory.
    pub(crate) fn launch_within(name: &str, command: impl FnOnce(&Path, &Path) -> Command) -> Self {
        let start = |dir: &Path| spawn_by(command(&binary(), dir));
        let mut pod = Self::start(name, |_| {}, start).unwrap_or_else(|(_, message)| panic!("{message}"));
        pod.within = true;
        pod
    }

    pub(crate) fn try_launch(
        name: &str,
        adjust: impl FnOnce(&mut Launch),
    ) -> Result<Self, (ErrorKind, String)> {
        Self::start(name, adjust, spawn)
    }

    fn start(
        name: &str,
        adjust: impl FnOnce(&mut Launch),
        spawn: impl FnOnce(&Path) -> (Child, UnixStream),
    ) -> Result<Self, (ErrorKind, String)> {
        let tmp = tempfile::tempdir().unwrap();
        let id = format!("{name}-{}", std::process::id());
        let dir = tmp.path().join("monitor");
        for sub in ["monitor", "exits", "runc", "logs"] {
            std::fs::create_dir(tmp.path().join(sub)).unwrap();
        }
        let mut launch = Launch {
            version: PROTOCOL_VERSION,
            sandbox_id: id.clone(),
            dir: dir.to_str().unwrap().into(),
            exit_dir: tmp.path().join("exits").to_str().unwrap().into(),
            namespaces: NamespaceRequest::default(),
            hostname: None,
            sysctls: BTreeMap::new(),
            log_max_line: DEFAULT_LOG_LINE_BYTES,
            init_cgroups: vec![],
        };
        adjust(&mut launch);
        let (mut child, socket) = spawn(&dir);
        let mut client = Client::new(socket);
        match client.call(Request::Launch(Box::new(launch))) {
            Reply::Launched(record) => {
                let record = *record;
                Ok(Self { tmp, dir, id, client, record, child: RefCell::new(child), within: false })
            }
            Reply::Error { kind, message } => {
                assert!(!child.wait().unwrap().success());
                assert!(!dir.join(MONITOR_RECORD).exists());
                Err((kind, message))
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.record.process.pid
    }

    pub(crate) fn path(&self, rest: &str) -> PathBuf {
        self.tmp.path().join(rest)
    }

    pub(crate) fn runtime(&self) -> Runtime {
        let root = self.path("runc");
        Runtime { path: "/usr/sbin/runc".into(), args: vec!["--root".into(), root.to_str().unwrap().into()] }
    }

    /// A bundle with busybox that runs `args`.
    pub(crate) fn bundle(&self, id: &str, args: &[&str], adjust: impl FnOnce(&mut Value)) -> PathBuf {
        let bundle = self.path(id);
        let rootfs = bundle.join("rootfs");
        for dir in ["bin", "proc", "dev", "sys", "tmp"] {
            std::fs::create_dir_all(rootfs.join(dir)).unwrap();
        }
        std::fs::copy("/usr/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        std::fs::set_permissions(rootfs.join("bin/busybox"), std::fs::Permissions::from_mode(0o755)).unwrap();
        for applet in [
            "sh", "sleep", "echo", "true", "cat", "seq", "ps", "kill", "hostname", "stty", "ip", "dd",
            "tail", "yes", "head", "touch", "wc", "setsid",
        ] {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        let mut namespaces = vec![json!({"type": "mount"})];
        let paths = &self.record.namespaces;
        for (kind, path) in [("network", &paths.net), ("ipc", &paths.ipc), ("uts", &paths.uts)] {
            if let Some(path) = path {
                namespaces.push(json!({"type": kind, "path": path}));
            }
        }
        namespaces.push(match &paths.pid {
            Some(path) => json!({"type": "pid", "path": path}),
            None => json!({"type": "pid"}),
        });
        let mut config = json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {"args": args, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["newinstance", "ptmxmode=0666", "mode=0620"]}
            ],
            "linux": {"namespaces": namespaces, "cgroupsPath": format!("/podwright-test/{}-{id}", self.id)}
        });
        adjust(&mut config);
        std::fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        bundle
    }

    pub(crate) fn log_path(&self, id: &str) -> PathBuf {
        self.path(&format!("logs/{id}/0.log"))
    }

    pub(crate) fn run_request(&self, id: &str) -> Run {
        Run {
            container_id: id.into(),
            runtime: self.runtime(),
            bundle: self.path(id).to_str().unwrap().into(),
            log_path: Some(self.log_path(id).to_str().unwrap().into()),
            log_directory: Some(self.path("logs").to_str().unwrap().into()),
            terminal: false,
            stdin: false,
            stdin_once: false,
            deadline_ms: None,
            cgroup: None,
            restore: None,
            no_new_keyring: false,
        }
    }

    /// Runs a container; returns init's pid.
    pub(crate) fn run(&mut self, id: &str, args: &[&str]) -> u32 {
        self.bundle(id, args, |_| {});
        self.run_with(self.run_request(id))
    }

    pub(crate) fn run_with(&mut self, run: Run) -> u32 {
        match self.client.call(Request::Run(Box::new(run))) {
            Reply::Running { pid, .. } => pid,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn exec_request(&self, exec_id: &str, id: &str, args: &[&str], terminal: bool) -> Exec {
        let file = self.path(&format!("{exec_id}.process.json"));
        let process = json!({"args": args, "cwd": "/", "env": ["PATH=/bin"], "terminal": terminal,
            "user": {"uid": 0, "gid": 0}});
        std::fs::write(&file, process.to_string()).unwrap();
        Exec {
            exec_id: exec_id.into(),
            container_id: id.into(),
            runtime: self.runtime(),
            process_file: file.to_str().unwrap().into(),
            terminal,
            stdio: ExecStdio::default(),
            deadline_ms: None,
            limit_ms: None,
        }
    }

    /// `stream tag content` of every record.
    pub(crate) fn log(&self, id: &str) -> Vec<String> {
        log_lines(&self.log_path(id))
    }

    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    pub(crate) fn children(&self) -> Vec<u32> {
        let pid = self.pid();
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }

    pub(crate) fn shutdown(&mut self) {
        assert_eq!(self.client.call(Request::Shutdown { force: true }), Reply::Done);
        self.client.read_to_end();
        assert!(self.child.borrow_mut().wait().unwrap().success());
        assert!(!self.dir.join(MONITOR_SOCKET).exists() && !self.dir.join(MONITOR_RECORD).exists());
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let mut child = self.child.borrow_mut();
        if child.try_wait().unwrap().is_none() {
            // A failed test: what a shutdown would do, by hand.
            let children = if self.within { Vec::new() } else { self.children() };
            for pid in children {
                let _ = podwright_sys::pidfd::open(pid)
                    .and_then(|process| podwright_sys::pidfd::send_signal(process.as_fd(), 9));
            }
            let _ = child.kill();
            let _ = child.wait();
            if let Some(path) = &self.record.namespaces.net {
                let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
                let _ = std::fs::remove_file(path);
            }
        }
        for state in std::fs::read_dir(self.path("runc")).into_iter().flatten().flatten() {
            let _ = Command::new("runc")
                .arg("--root")
                .arg(self.path("runc"))
                .args(["delete", "--force"])
                .arg(state.file_name())
                .output();
        }
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            // Removed when the last test's containers are gone.
            let _ = std::fs::remove_dir(hierarchy.path().join("podwright-test"));
        }
    }
}

/// The client's ends of a session.
pub(crate) struct Session {
    pub(crate) terminal: Option<File>,
    pub(crate) stdin: Option<File>,
    pub(crate) stdout: Option<File>,
    pub(crate) stderr: Option<File>,
    pub(crate) leash: OwnedFd,
}

impl Pod {
    pub(crate) fn session(&mut self, exec_id: &str, id: &str, args: &[&str], stdio: ExecStdio) -> Session {
        let mut request = self.exec_request(exec_id, id, args, false);
        request.stdio = stdio;
        self.client.begin(Request::Session(Box::new(request)))
    }

    pub(crate) fn attach(&mut self, id: &str, stdio: ExecStdio) -> Session {
        self.client.begin(Request::Attach { container_id: id.into(), stdio })
    }
}

impl Client {
    pub(crate) fn begin(&mut self, request: Request) -> Session {
        let id = self.send(request);
        self.begun(id)
    }

    pub(crate) fn begun(&mut self, id: RequestId) -> Session {
        let (terminal, stdio, fds) = match self.wait_for(id) {
            (Reply::SessionStarted { terminal, stdio, .. }, fds) => (terminal, stdio, fds),
            (Reply::Attached { stdio }, fds) => (false, stdio, fds),
            (other, _) => panic!("{other:?}"),
        };
        let mut fds = fds.into_iter();
        let mut next = |there: bool| {
            there.then(|| {
                let file = File::from(fds.next().unwrap());
                // The tests wait.
                rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::empty()).unwrap();
                file
            })
        };
        Session {
            terminal: next(terminal),
            stdin: next(stdio.stdin),
            stdout: next(stdio.stdout),
            stderr: next(stdio.stderr),
            leash: next(true).unwrap().into(),
        }
    }

    /// As a daemon's death.
    pub(crate) fn reconnect(&mut self, dir: &Path) {
        *self = Self::connect(dir);
    }
}

impl Session {
    pub(crate) fn end(&self) -> SessionEnd {
        let mut packet = [0; 256];
        readable(&self.leash);
        let (length, _) =
            rustix::net::recv(&self.leash, &mut packet, rustix::net::RecvFlags::empty()).unwrap();
        serde_json::from_slice(&packet[..length]).unwrap()
    }

    pub(crate) fn rest(file: &mut Option<File>) -> String {
        let mut text = Vec::new();
        // A terminal ends with EIO.
        let _ = std::io::Read::read_to_end(file.as_mut().unwrap(), &mut text);
        String::from_utf8(text).unwrap()
    }

    /// Reads until `wanted` arrived; returns everything that arrived.
    pub(crate) fn read_until(file: &mut Option<File>, wanted: &str) -> String {
        let (mut text, mut buffer) = (String::new(), [0; 4096]);
        while !text.contains(wanted) {
            readable(file.as_ref().unwrap());
            let read = std::io::Read::read(file.as_mut().unwrap(), &mut buffer).unwrap();
            assert!(read > 0, "the end came before {wanted:?}: {text:?}");
            text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
        text
    }
}

fn readable(fd: impl AsFd) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let patience = Timespec { tv_sec: PATIENCE.as_secs().try_into().unwrap(), tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&patience)).unwrap();
    assert_eq!(ready, 1, "nothing came");
}

pub(crate) fn log_lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

/// Waits for something that no event announces.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}
