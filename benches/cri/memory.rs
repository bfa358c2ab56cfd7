//! Proportional set sizes of a daemon and of what it keeps per pod, from `/proc`. Counts no container's own processes.

use crate::side::Side;
use crate::{latency, note};
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Time for allocators and collectors to settle after a burst of pods.
const REST: Duration = Duration::from_secs(3);

/// What one side takes, in KiB.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    pub(crate) idle: u64,
    pub(crate) with_pods: u64,
    pub(crate) pods: usize,
    /// Maps the kind of process to number and sum.
    pub(crate) per_pod: BTreeMap<String, (usize, u64)>,
    /// (Path, bytes on disk)
    pub(crate) binaries: Vec<(String, u64)>,
}

impl Memory {
    /// The whole cost of the pods, the daemon's growth included, per pod.
    #[allow(clippy::cast_precision_loss)] // Sizes in KiB are far below 2^52.
    pub(crate) fn of_one_pod(&self) -> f64 {
        let kept: u64 = self.per_pod.values().map(|(_, sum)| sum).sum();
        (kept as f64 + self.with_pods as f64 - self.idle as f64) / self.pods.max(1) as f64
    }
}

/// Idle daemons, then with pods of one container each.
pub(crate) async fn measure(sides: &mut [Side], pods: usize) -> Result<Vec<Option<Memory>>> {
    let mut measured = Vec::new();
    if pods == 0 {
        return Ok(vec![None; sides.len()]);
    }
    for side in sides {
        let Some(pid) = side.pid else {
            measured.push(None);
            continue;
        };
        note(format_args!("memory of {} with {pods} pods", side.name));
        tokio::time::sleep(REST).await;
        let idle = pss(pid)?;
        let mut up = Vec::new();
        for i in 0..pods {
            let pod = latency::keep_up(side, &format!("memory-{i}")).await;
            up.push(pod.with_context(|| side.name.clone())?);
        }
        tokio::time::sleep(REST).await;
        let with_pods = pss(pid)?;
        let per_pod = kept(pid, side)?;
        for (pod, container) in up {
            latency::take_down(side, pod, container).await.with_context(|| side.name.clone())?;
        }
        let mut binaries = Vec::new();
        for binary in &side.binaries {
            let size =
                std::fs::metadata(binary).with_context(|| format!("look at {}", binary.display()))?.len();
            binaries.push((binary.display().to_string(), size));
        }
        measured.push(Some(Memory { idle, with_pods, pods, per_pod, binaries }));
    }
    Ok(measured)
}

/// A process's Pss in KiB.
pub(crate) fn pss(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .with_context(|| format!("no Pss in {path}"))?;
    line.trim().trim_end_matches(" kB").parse().with_context(|| format!("the Pss in {path}"))
}

/// The side's own processes but the daemon: those that run its programs or `pause` and whose command line, or whose
/// parent's, names its directory.
fn kept(daemon: u32, side: &Side) -> Result<BTreeMap<String, (usize, u64)>> {
    let mut kept: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    let Some(dir) = &side.dir else { return Ok(kept) };
    for entry in std::fs::read_dir("/proc").context("read /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == daemon {
            continue;
        }
        let Ok(exe) = std::fs::read_link(format!("/proc/{pid}/exe")) else { continue };
        let pause = exe == Path::new("/pause");
        if !(pause || side.binaries.contains(&exe)) {
            continue;
        }
        if names(pid, dir) || parent(pid).is_some_and(|parent| names(parent, dir)) {
            let name = exe.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let (count, sum) = kept.entry(name).or_default();
            *count += 1;
            *sum += pss(pid)?;
        }
    }
    Ok(kept)
}

fn names(pid: u32, dir: &Path) -> bool {
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&cmdline).contains(&format!("{}/", dir.display()))
}

fn parent(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}
