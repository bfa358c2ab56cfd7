//! What a kubelet waits for status and list calls on a node with many pods, while all is well and while there is
//! trouble: a CNI plugin that hangs in ADD and a container that SIGKILL does not end.
//!
//! The plugin is the caller's: it hangs for a pod named [`HANGS`]. The container is frozen in its cgroup (v1), where no
//! signal reaches it.

use crate::note;
use crate::report::percentile;
use crate::side::Side;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The pod whose network is never made.
const HANGS: &str = "hangs";
/// Number of pods started in parallel.
const TOGETHER: usize = 8;
/// Between two rounds: a kubelet relists once a second, and this is the client of several.
const PAUSE: Duration = Duration::from_millis(20);
/// How long both troubles have lasted when the measurement begins: a stop has sent SIGKILL more than once.
const SETTLE: Duration = Duration::from_secs(2);

/// Seconds by call.
type Times = BTreeMap<&'static str, Vec<f64>>;

/// Measures one runtime; returns the table and the numbers.
pub(crate) async fn run(side: &mut Side, pods: usize, rounds: usize) -> Result<(String, Value)> {
    side.pull().await.context("pull")?;
    note(format_args!("{pods} pods come up"));
    let up = bring_up(side, pods).await?;
    let well = measure(side, &up, rounds).await?;
    note("trouble begins");
    let (_, victim) = up.first().context("no pod")?;
    let frozen = Frozen::freeze(victim)?;
    let hanging = tokio::spawn({
        let (mut side, config) = (side.clone(), side.pod(HANGS)?);
        async move { side.run_pod(&config).await }
    });
    let stopping = tokio::spawn({
        let (mut side, victim) = (side.clone(), victim.clone());
        async move { side.kill(&victim).await }
    });
    tokio::time::sleep(SETTLE).await;
    let trouble = measure(side, &up, rounds).await;
    let both_last = !hanging.is_finished() && !stopping.is_finished();
    drop(frozen);
    hanging.abort();
    stopping.await.context("stop the thawed container")??;
    note("all pods go down");
    let down = take_down(side).await;
    let trouble = trouble?;
    down?;
    anyhow::ensure!(both_last, "the trouble ended before the measurement did: measure fewer rounds");
    Ok((table(side, pods, &well, &trouble), json!({ "pods": pods, "well": well, "trouble": trouble })))
}

/// Pods with one container each, and these.
async fn bring_up(side: &Side, pods: usize) -> Result<Vec<(String, String)>> {
    let turns = std::sync::Arc::new(tokio::sync::Semaphore::new(TOGETHER));
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..pods {
        let (mut side, turns) = (side.clone(), turns.clone());
        tasks.spawn(async move {
            let _turn = turns.acquire_owned().await?;
            let config = side.pod(&format!("many-{i}"))?;
            let pod = side.run_pod(&config).await.context("RunPodSandbox")?;
            let container = side.create(&pod, &config).await.context("CreateContainer")?;
            side.start(&container).await.context("StartContainer")?;
            anyhow::Ok((pod, container))
        });
    }
    let mut up = Vec::new();
    while let Some(task) = tasks.join_next().await {
        up.push(task??);
    }
    Ok(up)
}

async fn take_down(side: &mut Side) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    let turns = std::sync::Arc::new(tokio::sync::Semaphore::new(TOGETHER));
    for pod in side.pods().await? {
        let (mut side, turns) = (side.clone(), turns.clone());
        tasks.spawn(async move {
            let _turn = turns.acquire_owned().await?;
            side.stop_pod(&pod).await.context("StopPodSandbox")?;
            side.remove_pod(&pod).await.context("RemovePodSandbox")
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    Ok(())
}

/// Sequential calls, as from one kubelet; their subject rotates.
async fn measure(side: &mut Side, up: &[(String, String)], rounds: usize) -> Result<Times> {
    let mut times = Times::new();
    for round in 0..rounds {
        let (pod, container) = &up[round % up.len()];
        let mut note = |call: &'static str, begun: Instant| {
            times.entry(call).or_default().push(begun.elapsed().as_secs_f64());
        };
        let begun = Instant::now();
        side.pods().await.context("ListPodSandbox")?;
        note("ListPodSandbox", begun);
        let begun = Instant::now();
        side.containers().await.context("ListContainers")?;
        note("ListContainers", begun);
        let begun = Instant::now();
        side.pod_status(pod).await.context("PodSandboxStatus")?;
        note("PodSandboxStatus", begun);
        let begun = Instant::now();
        side.container_status(container).await.context("ContainerStatus")?;
        note("ContainerStatus", begun);
        let begun = Instant::now();
        side.status().await.context("Status")?;
        note("Status", begun);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(times)
}

/// A frozen container; it thaws when this is dropped.
struct Frozen {
    state: PathBuf,
}

impl Frozen {
    fn freeze(container: &str) -> Result<Self> {
        let root = Path::new("/sys/fs/cgroup/freezer");
        let dir = find(root, container).with_context(|| {
            format!("no cgroup {container} below {}: this needs cgroup v1", root.display())
        })?;
        let frozen = Self { state: dir.join("freezer.state") };
        std::fs::write(&frozen.state, "FROZEN").with_context(|| format!("freeze {}", dir.display()))?;
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(&self.state, "THAWED") {
            note(format_args!("thaw {}: {error}", self.state.display()));
        }
    }
}

fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    for entry in std::fs::read_dir(dir).ok()?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name() == name {
                return Some(entry.path());
            }
            if let Some(found) = find(&entry.path(), name) {
                return Some(found);
            }
        }
    }
    None
}

fn table(side: &Side, pods: usize, well: &Times, trouble: &Times) -> String {
    let mut text = format!(
        "### {} with {pods} pods, milliseconds ({} calls of each kind)\n\n\
         | call | well p50 | well p99 | trouble p50 | trouble p99 | trouble slowest |\n|---|--:|--:|--:|--:|--:|\n",
        side.name,
        well.values().next().map_or(0, Vec::len),
    );
    for (call, before) in well {
        let before = before.as_slice();
        let after = trouble.get(call).map(Vec::as_slice).unwrap_or_default();
        let [a, b, c, d, e] = [(before, 50), (before, 99), (after, 50), (after, 99), (after, 100)]
            .map(|(of, hundredth)| percentile(of, hundredth) * 1e3);
        // A table that does not fit into memory is not missed.
        let _ = writeln!(text, "| {call} | {a:.2} | {b:.2} | {c:.2} | {d:.2} | {e:.2} |");
    }
    text.push('\n');
    text
}
