//! The pod's namespaces: created by a short-lived helper process that moves into them, held by descriptors and a bind
//! mount, taken down at the end. The monitor itself stays in the host's namespaces, where OCI runtimes must run. A user
//! namespace comes first: what is created inside it belongs to it.

use podwright_sys::pidfd::SIGKILL;
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use podwright_monitor_proto::{IdMappings, IdRange, Launch, NamespacePaths, ProcessId};
use podwright_sys::namespace::{self, Namespace, path_of};
use podwright_sys::{pidfd, proc, process, userns};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::podinit::{self, Candidate};

/// Longest message of the helper; a path and an error text fit.
const REPORT_BYTES: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub(crate) enum NamespaceError {
    #[error("start namespace helper: {0}")]
    Helper(io::Error),
    #[error("make user namespace with uids {uids} and gids {gids}: {source}")]
    User { uids: String, gids: String, source: io::Error },
    /// The helper's message names the step.
    #[error("{0}")]
    Inside(String),
    #[error("open {kind} namespace: {source}")]
    Open { kind: &'static str, source: io::Error },
    #[error("pin network namespace at {path:?}: {source}")]
    Pin { path: PathBuf, source: io::Error },
    #[error("find pod init {pid}: {source}")]
    Init { pid: u32, source: io::Error },
}

/// The pod's namespaces; dropping it does not take them down.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    pub(crate) paths: NamespacePaths,
    pub(crate) init: Option<ProcessId>,
    /// Keep the user, ipc, uts and pid namespaces alive, and are what `paths` points to.
    held: Vec<OwnedFd>,
    /// Directories of the cgroup that the init is in.
    init_cgroups: Vec<String>,
}

impl Namespaces {
    /// Creates the requested namespaces; on error nothing is left.
    pub(crate) fn make(request: &Launch) -> Result<Self, NamespaceError> {
        let mut made = Self { init_cgroups: request.init_cgroups.clone(), ..Self::default() };
        match made.fill(request) {
            Ok(()) => Ok(made),
            Err(error) => {
                made.take_down();
                Err(error)
            }
        }
    }

    fn fill(&mut self, request: &Launch) -> Result<(), NamespaceError> {
        let kinds = kinds(request);
        let user = request.namespaces.user.as_ref().map(make_user).transpose()?;
        if let Some(user) = &user {
            let held = user.try_clone().map_err(|source| NamespaceError::Open { kind: "user", source })?;
            self.paths.user = Some(path_of(&held));
            self.held.push(held);
        }
        if kinds.is_empty() && request.sysctls.is_empty() && request.hostname.is_none() {
            return Ok(());
        }
        let (mut report, report_end) = io::pipe().map_err(NamespaceError::Helper)?;
        let (stay, stay_end) = io::pipe().map_err(NamespaceError::Helper)?;
        let user = user.as_ref().map(OwnedFd::as_fd);
        let helper = process::fork_child(|| {
            // Our copy of the monitor's end: the reporting process must notice when the monitor is gone.
            close_raw(report.as_raw_fd());
            helper(request, &kinds, user, &report_end, &stay, stay_end.as_raw_fd())
        })
        .map_err(NamespaceError::Helper)?;
        drop((report_end, stay));
        let outcome = self.adopt(helper, &mut report, &kinds, request);
        drop(stay_end);
        let _ = process::wait(helper);
        outcome
    }

    fn adopt(
        &mut self,
        helper: u32,
        report: &mut PipeReader,
        kinds: &[Namespace],
        request: &Launch,
    ) -> Result<(), NamespaceError> {
        let mut text = String::new();
        report.take(REPORT_BYTES).read_to_string(&mut text).map_err(NamespaceError::Helper)?;
        let report = Report::parse(&text);
        // Stored before an error is reported, so that it is taken down.
        self.init = report.init.map(|pid| ProcessId { pid, start_time: 0 });
        report.check(kinds.contains(&Namespace::Pid))?;
        if let Some(pid) = report.init {
            let start_time = proc::start_time(pid).map_err(|source| NamespaceError::Init { pid, source })?;
            self.init = Some(ProcessId { pid, start_time });
            // It is not reaped before we are done. Its pid alone could be another process's if it was killed.
            let open = |source| NamespaceError::Open { kind: "pid", source };
            let fd = std::fs::File::open(format!("/proc/{pid}/ns/pid")).map_err(open)?.into();
            self.paths.pid = Some(path_of(&fd));
            self.held.push(fd);
        }
        for kind in kinds {
            let kind = *kind;
            if kind == Namespace::Pid {
                continue;
            }
            let source = format!("/proc/{helper}/ns/{}", kind.name());
            let fd = openat(CWD, source, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|source| NamespaceError::Open { kind: kind.name(), source: source.into() })?;
            if let (Namespace::Net, Some(path)) = (kind, &request.namespaces.net) {
                pin(&fd, Path::new(path))
                    .map_err(|source| NamespaceError::Pin { path: path.into(), source })?;
                self.paths.net = Some(path.clone());
                continue;
            }
            let path = path_of(&fd);
            match kind {
                Namespace::Ipc => self.paths.ipc = Some(path),
                Namespace::Uts => self.paths.uts = Some(path),
                Namespace::Net | Namespace::Pid => {}
            }
            self.held.push(fd);
        }
        Ok(())
    }

    /// Ends the pod's init, unpins the network namespace, releases the others. Continues after an error and may be
    /// called again; returns the errors.
    pub(crate) fn take_down(&mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        if let Some(init) = self.init.take() {
            // The init is our unreaped child, or its start time shows that the pid is another's now.
            if init.start_time == 0 || proc::start_time(init.pid).is_ok_and(|start| start == init.start_time)
            {
                let killed = pidfd::open(init.pid).and_then(|fd| pidfd::send_signal(fd.as_fd(), SIGKILL));
                match killed {
                    Ok(()) => drop(process::wait(init.pid)),
                    Err(error) => wrong.push(format!("kill pod init {}: {error}", init.pid)),
                }
            }
        }
        // The daemon removes them too, but only we know their paths if the pod's record is lost.
        for dir in self.init_cgroups.drain(..) {
            match std::fs::remove_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    wrong.push(format!("remove {dir}: {error}"))
                }
                _ => {}
            }
        }
        if let Some(path) = self.paths.net.take() {
            if let Err(error) = unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                wrong.push(format!("unmount {path}: {error}"));
            }
            if let Err(error) = std::fs::remove_file(&path) {
                wrong.push(format!("remove {path}: {error}"));
            }
        }
        self.held.clear();
        wrong
    }
}

/// Reports of the helper and of the pod's init beside it: one line each, in any order.
#[derive(Debug, Default)]
struct Report<'a> {
    /// The helper has done all that it was to do.
    done: bool,
    init: Option<u32>,
    /// The init is fully confined.
    ready: bool,
    /// Anything else is an error.
    error: Option<&'a str>,
}

/// The helper's last line.
const DONE: &str = "done";

impl<'a> Report<'a> {
    fn parse(text: &'a str) -> Self {
        let mut report = Self::default();
        for line in text.lines() {
            match line {
                DONE => report.done = true,
                podinit::READY => report.ready = true,
                line => match line.strip_prefix(podinit::INIT).and_then(|pid| pid.parse().ok()) {
                    Some(pid) => report.init = Some(pid),
                    None => report.error = Some(line),
                },
            }
        }
        report
    }

    fn check(&self, wants_init: bool) -> Result<(), NamespaceError> {
        let error = match self.error {
            Some(error) => error,
            None if !self.done => "namespace helper died",
            None if wants_init && !(self.ready && self.init.is_some()) => "the pod's process 1 died",
            None => return Ok(()),
        };
        Err(NamespaceError::Inside(error.to_owned()))
    }
}

fn kinds(request: &Launch) -> Vec<Namespace> {
    let wanted = &request.namespaces;
    [
        (wanted.net.is_some(), Namespace::Net),
        (wanted.ipc, Namespace::Ipc),
        (wanted.uts, Namespace::Uts),
        (wanted.pid, Namespace::Pid),
    ]
    .into_iter()
    .filter_map(|(asked, kind)| asked.then_some(kind))
    .collect()
}

fn make_user(mappings: &IdMappings) -> Result<OwnedFd, NamespaceError> {
    let ranges = |ranges: &[IdRange]| -> Vec<userns::IdRange> {
        ranges
            .iter()
            .map(|&IdRange { inside, outside, count }| userns::IdRange { inside, outside, count })
            .collect()
    };
    let text = |ranges: &[IdRange]| {
        let each = ranges.iter().map(|r| format!("{}:{}:{}", r.inside, r.outside, r.count));
        each.collect::<Vec<_>>().join(",")
    };
    let (uids, gids) = (&mappings.uids, &mappings.gids);
    userns::with_mappings(&ranges(uids), &ranges(gids)).map_err(|source| NamespaceError::User {
        uids: text(uids),
        gids: text(gids),
        source,
    })
}

fn pin(namespace: &OwnedFd, path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::from_raw_mode(0o444))?;
    let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    mount_bind(source, path).map_err(|error| {
        let _ = std::fs::remove_file(path);
        io::Error::from(error)
    })
}

/// The helper's life: move, set up, report, wait until the namespaces are held. Exit code unused.
fn helper(
    request: &Launch,
    kinds: &[Namespace],
    user: Option<BorrowedFd<'_>>,
    mut report: &PipeWriter,
    stay: &PipeReader,
    stay_end: i32,
) -> i32 {
    let line = match set_up(request, kinds, user, report) {
        Ok(()) => format!("{DONE}\n"),
        Err(message) => format!("{message}\n"),
    };
    // In one write, like all lines: others report too.
    let told = report.write_all(line.as_bytes());
    // The descriptors are the parent's objects, whose copies here nothing else uses. Both must close now: the report's
    // so that the parent sees its end, the other's so that we see the parent's.
    close_raw(std::os::fd::AsRawFd::as_raw_fd(report));
    close_raw(stay_end);
    let mut end = [0];
    let mut stay = stay;
    if told.is_ok() {
        let _ = stay.read(&mut end);
    }
    0
}

fn close_raw(fd: i32) {
    if let Ok(fd) = u32::try_from(fd) {
        let _ = process::close_one(fd);
    }
}

/// With a pid namespace, the pod's init reports its pid itself.
fn set_up(
    request: &Launch,
    kinds: &[Namespace],
    user: Option<BorrowedFd<'_>>,
    report: &PipeWriter,
) -> Result<(), String> {
    let step = |what: String| move |error: io::Error| format!("{what}: {error}");
    // Steps that need the host's root come first.
    let init = match kinds.contains(&Namespace::Pid) {
        true => {
            for dir in &request.init_cgroups {
                let procs = Path::new(dir).join("cgroup.procs");
                write_setting(&procs, "0")
                    .map_err(step(format!("put the pod's process 1 into cgroup {dir:?}")))?;
            }
            Some(Candidate::start(report).map_err(step("start the pod's process 1".into()))?)
        }
        false => None,
    };
    if let Some(user) = user {
        userns::enter(user).map_err(step("enter user namespace".into()))?;
    }
    for kind in kinds {
        if *kind != Namespace::Pid {
            namespace::unshare(*kind).map_err(step(format!("make {} namespace", kind.name())))?;
        }
    }
    if let Some(name) = &request.hostname {
        if !kinds.contains(&Namespace::Uts) {
            return Err(format!("set host name {name:?}: the pod has no uts namespace of its own"));
        }
        namespace::set_hostname(name).map_err(step(format!("set host name {name:?}")))?;
    }
    if kinds.contains(&Namespace::Net) {
        namespace::loopback_up().map_err(step("bring loopback up".into()))?;
    }
    let mut denied = Vec::new();
    for (key, value) in &request.sysctls {
        let path = sysctl_path(key, kinds).map_err(|reason| format!("sysctl {key:?}: {reason}"))?;
        match write_setting(&path, value) {
            Err(error) if user.is_some() && error.kind() == io::ErrorKind::PermissionDenied => {
                denied.push((key, value, path));
            }
            written => written.map_err(step(format!("write sysctl {key:?}")))?,
        }
    }
    // Settings of an IPC namespace are its user namespace's root's from 6.9 on, and the host's root's before.
    if user.is_some() && (!denied.is_empty() || init.is_some()) {
        userns::become_root().map_err(step("become root of the user namespace".into()))?;
    }
    for (key, value, path) in denied {
        write_setting(&path, value).map_err(step(format!("write sysctl {key:?}")))?;
    }
    if let Some(init) = init {
        init.begin(kinds, user.is_some()).map_err(step("begin the pod's process 1".into()))?;
    }
    Ok(())
}

fn write_setting(path: &Path, value: &str) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// As sysctl(8): the first separator found, `.` or `/`, separates; the other one is part of a name. Only settings of a
/// newly created namespace are allowed; all others are the whole node's.
fn sysctl_path(key: &str, kinds: &[Namespace]) -> Result<PathBuf, &'static str> {
    let dotted = key.find(['.', '/']).is_some_and(|at| key.as_bytes()[at] == b'.');
    let slashed: String = match dotted {
        true => key
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        false => key.to_owned(),
    };
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    let parts: Vec<&str> = slashed.split('/').collect();
    if !parts.iter().all(|part| plain(part)) {
        return Err("malformed");
    }
    let owner = match parts.as_slice() {
        ["net", _, ..] => Namespace::Net,
        ["fs", "mqueue", _] => Namespace::Ipc,
        ["kernel", name] if *name == "sem" || name.starts_with("shm") || name.starts_with("msg") => {
            Namespace::Ipc
        }
        ["kernel", "domainname" | "hostname"] => Namespace::Uts,
        _ => return Err("not a setting of a namespace"),
    };
    if !kinds.contains(&owner) {
        return Err("the pod has no such namespace of its own");
    }
    Ok(Path::new("/proc/sys").join(slashed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names() {
        let all = [Namespace::Net, Namespace::Ipc, Namespace::Uts];
        let path = |key: &str| sysctl_path(key, &all).map(|path| path.to_string_lossy().into_owned());
        assert_eq!(path("net.core.somaxconn").unwrap(), "/proc/sys/net/core/somaxconn");
        assert_eq!(path("net/core/somaxconn").unwrap(), "/proc/sys/net/core/somaxconn");
        assert_eq!(
            path("net.ipv4.conf.eth0/1.forwarding").unwrap(),
            "/proc/sys/net/ipv4/conf/eth0.1/forwarding"
        );
        assert_eq!(
            path("net/ipv4/conf/eth0.1/forwarding").unwrap(),
            "/proc/sys/net/ipv4/conf/eth0.1/forwarding"
        );
        assert_eq!(path("kernel.shm_rmid_forced").unwrap(), "/proc/sys/kernel/shm_rmid_forced");
        assert_eq!(path("fs.mqueue.msg_max").unwrap(), "/proc/sys/fs/mqueue/msg_max");
        for bad in [
            "kernel.core_pattern",
            "net",
            "",
            "net..x",
            "net/../kernel/core_pattern",
            "/net/core/x",
            "vm.swappiness",
        ] {
            assert!(path(bad).is_err(), "{bad}");
        }
        assert!(sysctl_path("net.core.somaxconn", &[Namespace::Ipc]).is_err());
    }
}
