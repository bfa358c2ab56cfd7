//! podwright's default seccomp profile.
//!
//! An allow list: other calls fail with EPERM. The set equals that of containerd and Docker (Linux names up to 6.13);
//! runtimes skip names that their libseccomp lacks. Some calls depend on a capability of the container, others on the
//! machine.

use super::super::caps::{Cap, CapSet};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompOperator, LinuxSyscall,
};

/// Machines with rules of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeccompArch {
    /// x86-64, which also runs x86 and x32 programs.
    X86_64,
    /// 64-bit ARM, which also runs 32-bit ones.
    Aarch64,
    /// RISC-V.
    Riscv64,
    /// POWER, little endian.
    Ppc64le,
    /// IBM Z; clone(2) has its first two arguments swapped.
    S390x,
}

impl SeccompArch {
    /// The machine that this program is built for, where it has rules.
    #[must_use]
    pub fn native() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            "riscv64" => Some(Self::Riscv64),
            "powerpc64" => Some(Self::Ppc64le),
            "s390x" => Some(Self::S390x),
            _ => None,
        }
    }

    fn filters(self) -> Vec<Arch> {
        match self {
            Self::X86_64 => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
            Self::Aarch64 => vec![Arch::ScmpArchArm, Arch::ScmpArchAarch64],
            Self::Riscv64 => vec![Arch::ScmpArchRiscv64],
            Self::Ppc64le => vec![Arch::ScmpArchPpc64le],
            Self::S390x => vec![Arch::ScmpArchS390, Arch::ScmpArchS390x],
        }
    }

    fn own_calls(self) -> &'static str {
        match self {
            Self::X86_64 => "arch_prctl modify_ldt",
            Self::Aarch64 => {
                "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls"
            }
            Self::Riscv64 => "riscv_flush_icache riscv_hwprobe",
            Self::Ppc64le => "sync_file_range2 swapcontext",
            Self::S390x => "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
        }
    }

    /// The flags argument of clone(2).
    fn clone_flags_argument(self) -> usize {
        match self {
            Self::S390x => 1,
            Self::X86_64 | Self::Aarch64 | Self::Riscv64 | Self::Ppc64le => 0,
        }
    }
}

/// (why any container may, the calls)
const ALWAYS: &[(&str, &str)] = &[
    (
        "open, create and close files and descriptors: permissions decide",
        "open openat openat2 creat close close_range dup dup2 dup3 fcntl fcntl64 flock ioctl",
    ),
    (
        "read and write through descriptors",
        "read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek _llseek readahead \
         sendfile sendfile64 splice tee vmsplice copy_file_range fadvise64 fadvise64_64 fallocate ftruncate \
         ftruncate64 truncate truncate64 fsync fdatasync sync syncfs sync_file_range",
    ),
    (
        "look at files and directories",
        "access faccessat faccessat2 stat stat64 lstat lstat64 fstat fstat64 fstatat64 newfstatat statx statfs \
         statfs64 fstatfs fstatfs64 getdents getdents64 readlink readlinkat getcwd name_to_handle_at cachestat \
         statmount listmount",
    ),
    (
        "change the tree: the file system's permissions and capabilities decide",
        "chdir fchdir mkdir mkdirat mknod mknodat rmdir link linkat symlink symlinkat unlink unlinkat rename \
         renameat renameat2 chmod fchmod fchmodat fchmodat2 chown chown32 fchown fchown32 fchownat lchown \
         lchown32 umask utime utimes utimensat utimensat_time64 futimesat",
    ),
    (
        "extended attributes: the security.* and trusted.* ones are guarded by capabilities",
        "getxattr lgetxattr fgetxattr getxattrat listxattr llistxattr flistxattr listxattrat setxattr lsetxattr \
         fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat",
    ),
    (
        "watch files of one's own",
        "inotify_init inotify_init1 inotify_add_watch inotify_rm_watch fanotify_mark",
    ),
    (
        "wait for readiness",
        "select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64 epoll_create epoll_create1 epoll_ctl \
         epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd signalfd4",
    ),
    (
        "asynchronous reads and writes; io_uring is left out for its record of kernel holes",
        "io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64",
    ),
    ("pipes", "pipe pipe2"),
    (
        "sockets; socket(2) itself has a rule of its own below",
        "accept accept4 bind connect listen getsockname getpeername getsockopt setsockopt socketpair shutdown \
         recv recvfrom recvmsg recvmmsg recvmmsg_time64 send sendto sendmsg sendmmsg socketcall",
    ),
    (
        "memory of one's own",
        "brk mmap mmap2 munmap mremap mprotect madvise mincore msync mlock mlock2 mlockall munlock munlockall \
         membarrier memfd_create memfd_secret mseal pkey_alloc pkey_free pkey_mprotect remap_file_pages \
         map_shadow_stack process_mrelease",
    ),
    (
        "System V and POSIX queues, semaphores and memory: the ipc namespace confines them",
        "ipc msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt \
         shmget mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
         mq_timedsend_time64 mq_unlink",
    ),
    (
        "start, end and await processes; clone and clone3 have rules of their own below",
        "execve execveat exit exit_group fork vfork wait4 waitid waitpid pause restart_syscall rseq \
         set_robust_list get_robust_list set_tid_address set_thread_area get_thread_area",
    ),
    (
        "signals: the pid namespace and the ids confine them",
        "kill tkill tgkill pidfd_open pidfd_send_signal rt_sigaction rt_sigpending rt_sigprocmask \
         rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo \
         sigaltstack sigprocmask sigreturn uretprobe",
    ),
    ("futexes", "futex futex_time64 futex_waitv futex_wait futex_wake futex_requeue"),
    (
        "who am I, and becoming another where capabilities allow",
        "getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getresuid getresuid32 getresgid \
         getresgid32 getgroups getgroups32 setuid setuid32 setgid setgid32 setreuid setreuid32 setregid \
         setregid32 setresuid setresuid32 setresgid setresgid32 setfsuid setfsuid32 setfsgid setfsgid32 \
         setgroups setgroups32 capget capset prctl getpid getppid gettid getpgid getpgrp setpgid getsid setsid",
    ),
    (
        "limits and scheduling of one's own",
        "getrlimit setrlimit ugetrlimit prlimit64 getrusage getpriority setpriority ioprio_get ioprio_set getcpu \
         sched_getaffinity sched_setaffinity sched_getattr sched_setattr sched_getparam sched_setparam \
         sched_getscheduler sched_setscheduler sched_get_priority_max sched_get_priority_min \
         sched_rr_get_interval sched_rr_get_interval_time64 sched_yield",
    ),
    (
        "clocks and timers: setting the clock needs CAP_SYS_TIME, which adjtimex checks",
        "time times gettimeofday clock_gettime clock_gettime64 clock_getres clock_getres_time64 clock_nanosleep \
         clock_nanosleep_time64 nanosleep alarm adjtimex clock_adjtime clock_adjtime64 getitimer setitimer \
         timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime \
         timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64",
    ),
    ("facts of the machine", "uname sysinfo getrandom"),
    (
        "confine oneself further",
        "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self lsm_get_self_attr \
         lsm_set_self_attr lsm_list_modules",
    ),
    (
        "trace processes of the same user: safe since Linux 4.8, which traces before seccomp looks",
        "ptrace process_vm_readv process_vm_writev",
    ),
];

/// (the capability that must be in the container's bounding set, the calls that it makes useful)
const WITH_CAPABILITY: &[(Cap, &str)] = &[
    (Cap::DAC_READ_SEARCH, "open_by_handle_at"),
    (
        Cap::SYS_ADMIN,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr \
         move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount \
         umount2 unshare",
    ),
    (Cap::SYS_BOOT, "reboot"),
    (Cap::SYS_CHROOT, "chroot"),
    (Cap::SYS_MODULE, "init_module finit_module delete_module"),
    (Cap::SYS_PACCT, "acct"),
    (Cap::SYS_PTRACE, "kcmp pidfd_getfd process_madvise"),
    (Cap::SYS_RAWIO, "iopl ioperm"),
    (Cap::SYS_TIME, "settimeofday stime clock_settime clock_settime64"),
    (Cap::SYS_TTY_CONFIG, "vhangup"),
    (Cap::SYS_NICE, "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (Cap::SYSLOG, "syslog"),
    (Cap::BPF, "bpf"),
    (Cap::PERFMON, "perf_event_open"),
];

/// Values of personality(2): PER_LINUX and PER_LINUX32, each with and without UNAME26, and "return the present one".
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// AF_ALG (include/linux/socket.h): the kernel's crypto interface, with a record of holes.
const AF_ALG: u64 = 38;
/// AF_VSOCK: reaches past the network namespace to the hypervisor.
const AF_VSOCK: u64 = 40;

/// CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET} (include/uapi/linux/sched.h).
const CLONE_NEW_ANY: u64 =
    0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000;

/// ENOSYS: libc then falls back from clone3, whose flags a filter cannot see, to clone.
const ENOSYS: u32 = 38;

/// The default profile of a container whose bounding set is `capabilities`.
#[must_use]
pub fn default_profile(capabilities: CapSet, arch: Option<SeccompArch>) -> LinuxSeccomp {
    let mut names: Vec<&str> = ALWAYS.iter().flat_map(|(_, calls)| calls.split_whitespace()).collect();
    if let Some(arch) = arch {
        names.extend(arch.own_calls().split_whitespace());
    }
    for (cap, calls) in WITH_CAPABILITY {
        if capabilities.contains(*cap) {
            names.extend(calls.split_whitespace());
        }
    }
    names.sort_unstable();
    names.dedup();

    let mut rules = vec![rule(&names, LinuxSeccompAction::ScmpActAllow, None)];
    for value in PERSONALITIES {
        rules.push(allow_if("personality", 0, LinuxSeccompOperator::ScmpCmpEq, value, None));
    }
    // Rules on one call are alternatives, so "neither AF_ALG nor AF_VSOCK" takes three ranges.
    rules.push(allow_if("socket", 0, LinuxSeccompOperator::ScmpCmpLt, AF_ALG, None));
    rules.push(allow_if("socket", 0, LinuxSeccompOperator::ScmpCmpEq, AF_ALG + 1, None));
    rules.push(allow_if("socket", 0, LinuxSeccompOperator::ScmpCmpGt, AF_VSOCK, None));
    if !capabilities.contains(Cap::SYS_ADMIN) {
        let index = arch.map_or(0, SeccompArch::clone_flags_argument);
        let masked = LinuxSeccompOperator::ScmpCmpMaskedEq;
        rules.push(allow_if("clone", index, masked, CLONE_NEW_ANY, Some(0)));
        rules.push(rule(&["clone3"], LinuxSeccompAction::ScmpActErrno, Some(ENOSYS)));
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_architectures(arch.map(SeccompArch::filters))
        .set_syscalls(Some(rules));
    profile
}

fn rule(names: &[&str], action: LinuxSeccompAction, errno: Option<u32>) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.iter().map(|name| (*name).to_owned()).collect())
        .set_action(action)
        .set_errno_ret(errno);
    rule
}

fn allow_if(
    name: &str,
    index: usize,
    operator: LinuxSeccompOperator,
    value: u64,
    value_two: Option<u64>,
) -> LinuxSyscall {
    let mut argument = LinuxSeccompArgBuilder::default().index(index).value(value).op(operator);
    if let Some(value_two) = value_two {
        argument = argument.value_two(value_two);
    }
    // Every field of this builder has a default, so it cannot fail (the tests check each field).
    let argument = argument.build().unwrap_or_default();
    let mut rule = rule(&[name], LinuxSeccompAction::ScmpActAllow, None);
    rule.set_args(Some(vec![argument]));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plainly_allowed(profile: &LinuxSeccomp) -> Vec<String> {
        profile.syscalls().as_ref().unwrap()[0].names().clone()
    }

    fn rules<'a>(profile: &'a LinuxSeccomp, name: &str) -> Vec<&'a LinuxSyscall> {
        let name = name.to_owned();
        profile.syscalls().iter().flatten().filter(|rule| rule.names().contains(&name)).collect()
    }

    #[test]
    fn no_call_is_listed_twice_and_none_is_both_plain_and_conditional() {
        let mut seen = std::collections::BTreeSet::new();
        for (why, calls) in ALWAYS {
            for call in calls.split_whitespace() {
                assert!(seen.insert(call), "{call} again in {why:?}");
            }
        }
        for (_, calls) in WITH_CAPABILITY {
            for call in calls.split_whitespace() {
                assert!(!seen.contains(call), "{call}");
            }
        }
    }

    #[test]
    fn dangerous_calls_are_denied_without_their_capability() {
        let none = plainly_allowed(&default_profile(CapSet::EMPTY, Some(SeccompArch::X86_64)));
        for call in [
            "mount",
            "umount2",
            "unshare",
            "setns",
            "bpf",
            "kexec_load",
            "kexec_file_load",
            "keyctl",
            "add_key",
            "request_key",
            "userfaultfd",
            "io_uring_setup",
            "open_by_handle_at",
            "reboot",
            "swapon",
            "init_module",
            "clone",
            "clone3",
            "socket",
            "personality",
            "perf_event_open",
            "pivot_root",
            "move_pages",
            "nfsservctl",
        ] {
            assert!(!none.contains(&call.to_owned()), "{call}");
        }
        assert!(none.contains(&"arch_prctl".to_owned()));
    }

    #[test]
    fn capabilities_open_their_calls_and_no_others() {
        for (cap, calls) in WITH_CAPABILITY {
            let with = plainly_allowed(&default_profile(CapSet::EMPTY.with(*cap), None));
            for call in calls.split_whitespace() {
                assert!(with.contains(&call.to_owned()), "{call} with {}", cap.name());
            }
        }
        let admin = default_profile(CapSet::EMPTY.with(Cap::SYS_ADMIN), None);
        assert_eq!(rules(&admin, "clone").len(), 1);
        assert!(rules(&admin, "clone3")[0].args().is_none());
        assert!(rules(&admin, "reboot").is_empty());
    }

    #[test]
    fn new_namespaces_need_sys_admin() {
        let profile = default_profile(CapSet::EMPTY, Some(SeccompArch::X86_64));
        let clone = rules(&profile, "clone");
        let argument = clone[0].args().as_ref().unwrap()[0];
        assert_eq!((argument.index(), argument.value(), argument.value_two()), (0, 0x7e02_0000, Some(0)));
        assert_eq!(rules(&profile, "clone3")[0].errno_ret(), Some(38));
        let s390 = default_profile(CapSet::EMPTY, Some(SeccompArch::S390x));
        assert_eq!(rules(&s390, "clone")[0].args().as_ref().unwrap()[0].index(), 1);
    }

    #[test]
    fn sockets_of_the_kernel_crypto_and_the_hypervisor_match_no_rule() {
        let profile = default_profile(CapSet::ALL, None);
        let allowed = |family: u64| {
            rules(&profile, "socket").iter().any(|rule| {
                let argument = rule.args().as_ref().unwrap()[0];
                match argument.op() {
                    LinuxSeccompOperator::ScmpCmpLt => family < argument.value(),
                    LinuxSeccompOperator::ScmpCmpEq => family == argument.value(),
                    LinuxSeccompOperator::ScmpCmpGt => family > argument.value(),
                    other => panic!("{other:?}"),
                }
            })
        };
        let denied: Vec<u64> = (0..50).filter(|family| !allowed(*family)).collect();
        assert_eq!(denied, [AF_ALG, AF_VSOCK]);
    }
}
