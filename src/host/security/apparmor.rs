//! AppArmor: the kernel's profiles, and podwright's own default, loaded when a container first needs it.
//!
//! Owns the text of the default profile and the run of `apparmor_parser`. Never decides which profile a container gets,
//! and never replaces a loaded profile: an operator's own of that name stays.

use crate::host::command::{Command, CommandError, Output};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::Mutex;

/// Name of podwright's default profile.
pub const DEFAULT_PROFILE: &str = "podwright-default";
/// The kernel's list of loaded profiles, `name (mode)` a line.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
/// Whether the kernel enforces AppArmor at all.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// Our own label, `name (mode)` or `unconfined`.
const OWN_LABEL: &str = "/proc/self/attr/current";
/// Path of the packaged parser, if PATH does not contain its directory.
const PARSER_DIRS: [&str; 2] = ["/usr/sbin", "/sbin"];
/// Limit of the parser. Our profile compiles in tens of milliseconds; slow machines and emulators take seconds.
const PARSER_LIMIT: Duration = Duration::from_secs(60);

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AppArmorError {
    /// The kernel has no AppArmor, or does not list its profiles.
    #[error("AppArmor profile {profile:?} is requested, but the host has no AppArmor")]
    Absent {
        /// The profile.
        profile: String,
    },
    /// The list of profiles cannot be read.
    #[error("read the loaded AppArmor profiles from {}: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        cause: std::io::Error,
    },
    /// A profile of the node that is not loaded.
    #[error("AppArmor profile {profile:?} is not loaded on this node: load it with apparmor_parser -r")]
    NotLoaded {
        /// The profile.
        profile: String,
    },
    /// The default must be loaded, and no parser is available.
    #[error(
        "load AppArmor profile {DEFAULT_PROFILE:?}: apparmor_parser is not there: install the package apparmor"
    )]
    NoParser,
    /// The parser refused the default.
    #[error("load AppArmor profile {DEFAULT_PROFILE:?}: {0}")]
    Parser(#[source] CommandError),
    /// The parser was content, and the kernel does not have it all the same.
    #[error("AppArmor profile {DEFAULT_PROFILE:?} is not there after {} loaded it", parser.display())]
    Vanished {
        /// The parser.
        parser: PathBuf,
    },
}

/// AppArmor of this host.
#[derive(Debug)]
pub struct AppArmor {
    profiles: Option<PathBuf>,
    parser: Option<PathBuf>,
    /// Two containers that need the default at once load it once.
    loading: Mutex<()>,
}

impl AppArmor {
    /// The host's AppArmor.
    #[must_use]
    pub fn detect() -> Self {
        let enabled = std::fs::read_to_string(ENABLED).is_ok_and(|text| text.trim() == "Y");
        // In a container of another runtime the module may be enabled and its files be out of reach.
        let readable = std::fs::File::open(LOADED).is_ok();
        Self::at((enabled && readable).then(|| LOADED.into()), find_parser())
    }

    fn at(profiles: Option<PathBuf>, parser: Option<PathBuf>) -> Self {
        Self { profiles, parser, loading: Mutex::new(()) }
    }

    /// Whether containers can be confined.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.profiles.is_some()
    }

    /// Whether `profile` could be the default: it is loaded, or ours and there is a parser.
    #[must_use]
    pub fn could_use(&self, profile: &str) -> bool {
        self.is_loaded(profile).unwrap_or(false) || (profile == DEFAULT_PROFILE && self.parser.is_some())
    }

    /// Ensures that the kernel has `profile`. Loads podwright's own if necessary.
    ///
    /// # Errors
    /// If it is not loaded, and cannot be.
    pub async fn ensure(&self, profile: &str) -> Result<(), AppArmorError> {
        if self.is_loaded(profile)? {
            return Ok(());
        }
        if profile != DEFAULT_PROFILE {
            return Err(AppArmorError::NotLoaded { profile: profile.to_owned() });
        }
        let _loading = self.loading.lock().await;
        if self.is_loaded(profile)? {
            return Ok(());
        }
        let parser = self.parser.as_deref().ok_or(AppArmorError::NoParser)?;
        // Not into the cache of the system's own profiles: this one has no file there.
        let run = Command::new(parser, PARSER_LIMIT).args(["--add", "--skip-cache", "--quiet"]);
        let run = run.stdin(default_profile(own_label().as_deref()).into_bytes()).run().await;
        // If it is loaded between the check above and the parser's run, the parser fails, but not the container.
        if self.is_loaded(profile)? {
            // Log: The first container needed it.
            tracing::info!(profile, "loaded the AppArmor profile");
            return Ok(());
        }
        run.and_then(Output::success).map_err(AppArmorError::Parser)?;
        Err(AppArmorError::Vanished { parser: parser.to_owned() })
    }

    fn is_loaded(&self, profile: &str) -> Result<bool, AppArmorError> {
        let Some(path) = &self.profiles else {
            return Err(AppArmorError::Absent { profile: profile.to_owned() });
        };
        let text = std::fs::read_to_string(path)
            .map_err(|cause| AppArmorError::Read { path: path.clone(), cause })?;
        Ok(text.lines().any(|line| name_of(line) == Some(profile)))
    }
}

/// The name in `name (mode)`; a name may have blanks and brackets itself.
fn name_of(line: &str) -> Option<&str> {
    line.rsplit_once(" (").filter(|(_, mode)| mode.ends_with(')')).map(|(name, _)| name)
}

fn find_parser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(PARSER_DIRS.map(PathBuf::from))
        .map(|dir| dir.join("apparmor_parser"))
        .find(|file| file.is_file())
}

/// The profile that confines this daemon, and so its monitors and the OCI runtimes; None: none does.
fn own_label() -> Option<String> {
    let text = std::fs::read_to_string(Path::new(OWN_LABEL)).ok()?;
    let label = text.trim_end_matches(['\n', '\0']);
    // A name that would need quoting is left out: it may then do to containers what "unconfined" may.
    name_of(label).filter(|name| !name.contains(['"', ' ', '\n'])).map(str::to_owned)
}

/// podwright's default profile. It complements capabilities, seccomp and the paths that a kubelet hides, and holds
/// where these are missing: no mounts, no kernel settings outside the container's own namespaces, and no access to
/// processes outside containers. It includes no other file, so that it loads on any distribution.
fn default_profile(daemon: Option<&str>) -> String {
    let daemon = daemon.map(|label| format!("  signal (receive) peer=\"{label}\",\n")).unwrap_or_default();
    format!(
        "profile {DEFAULT_PROFILE} flags=(attach_disconnected,mediate_deleted) {{
  file,
  network,
  unix,
  capability,
  umount,

  # The kubelet's and the runtimes' signals come in; a container's go to containers only.
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
{daemon}  signal (send, receive) peer={DEFAULT_PROFILE},
  ptrace (trace, read, tracedby, readby) peer={DEFAULT_PROFILE},

  # An image brings its own root; a mount made inside could put another file system over /proc or /sys.
  deny mount,
  deny pivot_root,

  # The kernel's crypto interface and the hypervisor's sockets. The default seccomp profile denies both to socket(2); the
  # old socketcall(2) of 32-bit programs, whose arguments no filter can read, meets its limit only here.
  deny network alg,
  deny network vsock,

  # /proc: a process may write what belongs to processes, that is /proc/<number>. Files at the top are the machine's ...
  deny /proc/* w,
  deny /proc/{{kcore,kmem,mem,sysrq-trigger}} rwklx,
  # ... and so are the directories, sys apart.
  deny /proc/[^0-9st]*/** wklx,
  deny /proc/s[^y]*/** wklx,
  deny /proc/sysvipc/** wklx,
  deny /proc/tty/** wklx,

  # /proc/sys: net, and the limits of System V IPC and message queues, belong to namespaces. The rest is the machine's.
  deny /proc/sys/[^fkn]*/** wklx,
  deny /proc/sys/fs/* wklx,
  deny /proc/sys/fs/[^m]*/** wklx,
  deny /proc/sys/kernel/*/** wklx,
  deny /proc/sys/kernel/[^ms]* wklx,
  deny /proc/sys/kernel/m[^s]* wklx,
  deny /proc/sys/kernel/s[^eh]* wklx,
  deny /proc/sys/kernel/se[^m]* wklx,

  # /sys: cgroups, where a container has some of its own, are all that may be written.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  # What tells secrets by being read: firmware tables, the meters of the processor's power, security modules.
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A host whose "parser" appends its input to the list of profiles.
    fn host(dir: &Path, loaded: &str, parser: Option<&str>) -> AppArmor {
        let profiles = dir.join("profiles");
        std::fs::write(&profiles, loaded).unwrap();
        let parser = parser.map(|script| {
            let path = dir.join("apparmor_parser");
            std::fs::write(&path, format!("#!/bin/sh\ncd {}\n{script}\n", dir.display())).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        });
        AppArmor::at(Some(profiles), parser)
    }

    const LOADS: &str = "cat >text; echo \"$*\" >>runs; echo 'podwright-default (enforce)' >>profiles";

    #[tokio::test]
    async fn a_profile_of_the_node_has_to_be_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path(), "web (enforce)\na b (x) (complain)\n", None);
        host.ensure("web").await.unwrap();
        host.ensure("a b (x)").await.unwrap();
        for name in ["we", "web (enforce)", "", "enforce"] {
            assert!(matches!(host.ensure(name).await, Err(AppArmorError::NotLoaded { .. })), "{name:?}");
        }
    }

    #[tokio::test]
    async fn the_default_is_loaded_once_when_it_is_first_needed() {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path(), "web (enforce)\n", Some(LOADS));
        assert!(host.could_use(DEFAULT_PROFILE) && !host.could_use("other"));
        let (one, two) = tokio::join!(host.ensure(DEFAULT_PROFILE), host.ensure(DEFAULT_PROFILE));
        one.unwrap();
        two.unwrap();
        let runs = std::fs::read_to_string(dir.path().join("runs")).unwrap();
        assert_eq!(runs, "--add --skip-cache --quiet\n");
        let text = std::fs::read_to_string(dir.path().join("text")).unwrap();
        assert!(text.starts_with("profile podwright-default ") && text.contains("deny mount,"));
        for family in ["alg", "vsock"] {
            assert!(text.contains(&format!("\n  deny network {family},\n")), "{family}");
        }
    }

    #[tokio::test]
    async fn an_operators_own_default_stays() {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path(), "podwright-default (complain)\n", Some(LOADS));
        host.ensure(DEFAULT_PROFILE).await.unwrap();
        assert!(!dir.path().join("runs").exists());
    }

    #[tokio::test]
    async fn a_default_that_cannot_be_loaded_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let none = host(dir.path(), "", None);
        assert!(!none.could_use(DEFAULT_PROFILE));
        assert!(matches!(none.ensure(DEFAULT_PROFILE).await, Err(AppArmorError::NoParser)));
        let refuses = host(dir.path(), "", Some("echo 'syntax error' >&2; exit 1"));
        let error = refuses.ensure(DEFAULT_PROFILE).await.unwrap_err().to_string();
        assert!(error.contains("podwright-default") && error.contains("syntax error"), "{error}");
        let late = host(
            dir.path(),
            "",
            Some("cat >/dev/null; echo 'podwright-default (enforce)' >>profiles; exit 239"),
        );
        late.ensure(DEFAULT_PROFILE).await.unwrap();
        let lies = host(dir.path(), "", Some("cat >/dev/null"));
        assert!(matches!(lies.ensure(DEFAULT_PROFILE).await, Err(AppArmorError::Vanished { .. })));
        let absent = AppArmor::at(None, None);
        assert!(!absent.is_enabled() && !absent.could_use("web"));
        assert!(matches!(absent.ensure("web").await, Err(AppArmorError::Absent { .. })));
    }

    /// Where the parser is installed, it must accept the text; no kernel is needed for that.
    #[tokio::test]
    async fn the_default_profile_is_one_that_the_parser_takes() {
        let Some(parser) = find_parser() else { return };
        for daemon in [None, Some("/usr/bin/podwright")] {
            let run =
                Command::new(&parser, PARSER_LIMIT).args(["--skip-kernel-load", "--skip-cache", "--quiet"]);
            run.stdin(default_profile(daemon).into_bytes()).run().await.unwrap().success().unwrap();
        }
    }

    #[test]
    fn the_daemons_own_profile_may_send_signals() {
        assert!(
            default_profile(Some("/usr/bin/podwright"))
                .contains("signal (receive) peer=\"/usr/bin/podwright\",\n")
        );
        assert!(!default_profile(None).contains("peer=\"\""));
        assert_eq!(name_of("unconfined"), None);
    }
}
