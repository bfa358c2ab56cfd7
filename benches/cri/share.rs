//! Our own share of bringing a pod with one container up: what is left without the CNI plugins' own time (told by
//! podwright's step metrics) and the OCI runtime's own (timed here, on the same bundle).

use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Sums in seconds by (operation, step).
pub(crate) type Steps = BTreeMap<(String, String), f64>;

/// Pods measured one at a time, so that a difference of two scrapes is one pod's.
#[derive(Debug, Default)]
pub(crate) struct Share {
    /// The client's time for all three calls.
    pub(crate) total: Vec<f64>,
    pub(crate) plugins: Vec<f64>,
    /// As the daemon sees it: the monitor's request, in which the runtime runs.
    pub(crate) runtime_step: Vec<f64>,
    /// The runtime without us.
    pub(crate) runtime_alone: Vec<f64>,
    /// `total` without `plugins` and `runtime_alone`.
    pub(crate) own: Vec<f64>,
    /// Every step.
    pub(crate) steps: BTreeMap<(String, String), Vec<f64>>,
}

impl Share {
    pub(crate) fn add(&mut self, total: Duration, before: &Steps, after: &Steps, runtime_alone: f64) {
        let total = total.as_secs_f64();
        let of = difference(before, after);
        let step = |operation: &str, step: &str| {
            of.get(&(operation.to_owned(), step.to_owned())).copied().unwrap_or_default()
        };
        let plugins = step("run_pod_sandbox", "plugins");
        self.total.push(total);
        self.plugins.push(plugins);
        self.runtime_step.push(step("start_container", "runtime"));
        self.runtime_alone.push(runtime_alone);
        self.own.push(total - plugins - runtime_alone);
        self.add_steps(of);
    }

    /// Steps that are shown and not reckoned with.
    pub(crate) fn add_steps(&mut self, steps: Steps) {
        for (key, time) in steps {
            self.steps.entry(key).or_default().push(time);
        }
    }
}

/// What happened between two scrapes.
pub(crate) fn difference(before: &Steps, after: &Steps) -> Steps {
    let since = |(key, sum): (&(String, String), &f64)| {
        let time = sum - before.get(key).copied().unwrap_or_default();
        (time > 0.0).then(|| (key.clone(), time))
    };
    after.iter().filter_map(since).collect()
}

/// Scrapes podwright's step times; none without an address.
pub(crate) fn steps(metrics: Option<SocketAddr>) -> Result<Option<Steps>> {
    let Some(address) = metrics else { return Ok(None) };
    let text = podwright_testkit::http::get(address, "/metrics")?;
    let text = String::from_utf8(text).context("metrics are not text")?;
    Ok(Some(text.lines().filter_map(step_sum).collect()))
}

fn step_sum(line: &str) -> Option<((String, String), f64)> {
    let rest = line.strip_prefix("podwright_step_seconds_sum{")?;
    let (labels, value) = rest.split_once("} ")?;
    let label = |name: &str| {
        let (_, rest) = labels.split_once(&format!("{name}=\""))?;
        rest.split_once('"').map(|(value, _)| value.to_owned())
    };
    Some(((label("operation")?, label("step")?), value.parse().ok()?))
}

/// Seconds that the runtime alone takes to run a twin of a running container, as the monitor has it run (`run
/// --detach`): same configuration, namespaces and layers, a fresh writable layer; no daemon, no monitor.
pub(crate) fn runtime_alone(dir: &Path, container: &str, runtime: &Path) -> Result<f64> {
    let bundle = find_bundle(dir, container)
        .with_context(|| format!("no bundle of {container} in {}", dir.display()))?;
    let text = std::fs::read(bundle.join("config.json"))?;
    let mut config: serde_json::Value = serde_json::from_slice(&text)?;
    if let Some(path) = config["linux"]["cgroupsPath"].as_str() {
        config["linux"]["cgroupsPath"] = format!("{path}-twin").into();
    }
    let twin = dir.join("twin");
    for part in ["rootfs", "upper", "work"] {
        std::fs::create_dir_all(twin.join(part))?;
    }
    std::fs::write(twin.join("config.json"), serde_json::to_vec(&config)?)?;
    mount_twin(&bundle.join("rootfs"), &twin)?;
    let state = dir.join("twin-state");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(runtime);
        command.arg("--root").arg(&state).args(arguments).current_dir(&twin);
        let nothing = || Stdio::null();
        let status = command.stdin(nothing()).stdout(nothing()).stderr(Stdio::inherit()).status();
        anyhow::ensure!(status.is_ok_and(|s| s.success()), "{command:?} failed");
        Ok(())
    };
    let begun = Instant::now();
    let made = run(&["--log", "log", "--log-format", "json", "run", "--detach", "--pid-file", "pid", "twin"]);
    let took = begun.elapsed();
    let deleted = run(&["delete", "--force", "twin"]);
    rustix::mount::unmount(twin.join("rootfs"), rustix::mount::UnmountFlags::DETACH)?;
    std::fs::remove_dir_all(&twin)?;
    made.and(deleted)?;
    Ok(took.as_secs_f64())
}

/// Mounts the layers of `root` with a new writable one.
fn mount_twin(root: &Path, twin: &Path) -> Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
    let root = root.display().to_string();
    let line = table.lines().find(|line| line.split(' ').nth(4) == Some(&root));
    let options =
        line.and_then(|line| line.rsplit(' ').next()).with_context(|| format!("{root} is not mounted"))?;
    let lowers: Vec<&str> = options
        .split(',')
        .filter_map(|o| o.strip_prefix("lowerdir=").or_else(|| o.strip_prefix("lowerdir+=")))
        .collect();
    let own = |part: &str| twin.join(part).display().to_string();
    let data = format!("lowerdir={},upperdir={},workdir={}", lowers.join(":"), own("upper"), own("work"));
    let data = std::ffi::CString::new(data)?;
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("overlay", twin.join("rootfs"), "overlay", flags, Some(data.as_c_str()))
        .with_context(|| format!("mount an overlay with {data:?}"))
}

/// The directory of this container with an OCI configuration in it.
fn find_bundle(dir: &Path, container: &str) -> Option<PathBuf> {
    let direct = dir.join("state/containers").join(container);
    direct.join("config.json").exists().then_some(direct)
}
