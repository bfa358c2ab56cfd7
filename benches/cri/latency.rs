//! Times of a pod's life, as a client sees them: one pod at a time, then some side by side.

use crate::note;
use crate::share::{self, Share};
use crate::side::Side;
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Between two runtimes' turns: the kernel takes a removed network namespace down in the background, for some ten
/// milliseconds, and that must not count against the other.
const SETTLE: Duration = Duration::from_millis(150);

/// The timed operations, in the order of the report.
pub(crate) const OPERATIONS: [&str; 9] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "Create + Start",
    "Pod with one container up",
    "ExecSync `true`",
    "StopContainer + RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
];
/// The two last, for the report's sum.
pub(crate) const DOWN: &str = "Container and pod stopped and removed";

/// Times in seconds by operation.
#[derive(Debug, Default, Clone)]
pub(crate) struct Times(pub(crate) BTreeMap<&'static str, Vec<f64>>);

impl Times {
    fn add(&mut self, operation: &'static str, time: Duration) {
        self.0.entry(operation).or_default().push(time.as_secs_f64());
    }

    fn merge(&mut self, other: Self) {
        for (operation, times) in other.0 {
            self.0.entry(operation).or_default().extend(times);
        }
    }
}

/// A running pod with one container.
struct Up {
    pod: String,
    container: String,
    /// From the first call to the last answer.
    took: Duration,
}

async fn up(side: &mut Side, name: &str, times: &mut Times) -> Result<Up> {
    let config = side.pod(name)?;
    let begun = Instant::now();
    let pod = side.run_pod(&config).await.context("RunPodSandbox")?;
    let ran = begun.elapsed();
    let container = side.create(&pod, &config).await.context("CreateContainer")?;
    let created = begun.elapsed();
    side.start(&container).await.context("StartContainer")?;
    let took = begun.elapsed();
    times.add("RunPodSandbox", ran);
    times.add("CreateContainer", created.saturating_sub(ran));
    times.add("StartContainer", took.saturating_sub(created));
    times.add("Create + Start", took.saturating_sub(ran));
    times.add("Pod with one container up", took);
    Ok(Up { pod, container, took })
}

async fn exec(side: &mut Side, up: &Up, times: &mut Times) -> Result<()> {
    let begun = Instant::now();
    side.exec(&up.container).await.context("ExecSync")?;
    times.add("ExecSync `true`", begun.elapsed());
    Ok(())
}

async fn down(side: &mut Side, up: &Up, times: &mut Times) -> Result<()> {
    let begun = Instant::now();
    side.stop(&up.container).await.context("StopContainer")?;
    side.remove(&up.container).await.context("RemoveContainer")?;
    let removed = begun.elapsed();
    side.stop_pod(&up.pod).await.context("StopPodSandbox")?;
    let stopped = begun.elapsed();
    side.remove_pod(&up.pod).await.context("RemovePodSandbox")?;
    let took = begun.elapsed();
    times.add("StopContainer + RemoveContainer", removed);
    times.add("StopPodSandbox", stopped.saturating_sub(removed));
    times.add("RemovePodSandbox", took.saturating_sub(stopped));
    times.add(DOWN, took);
    Ok(())
}

/// Whole lives of single pods, alternating between the sides.
pub(crate) async fn one_at_a_time(
    sides: &mut [Side],
    rounds: usize,
    runtime: &Path,
) -> Result<(Vec<Times>, Option<Share>)> {
    let mut all = vec![Times::default(); sides.len()];
    let mut share = None;
    // The first round warms caches and is not counted.
    for round in 0..=rounds {
        for turn in 0..sides.len() {
            let at = if round % 2 == 0 { turn } else { sides.len() - 1 - turn };
            let side = &mut sides[at];
            let mut times = Times::default();
            let before = share::steps(side.metrics)?;
            let result = async {
                let up = up(side, &format!("alone-{round}"), &mut times).await?;
                let after = share::steps(side.metrics)?;
                let baseline = match (&side.dir, side.metrics) {
                    (Some(dir), Some(_)) => Some(share::runtime_alone(dir, &up.container, runtime)?),
                    _ => None,
                };
                // As a probe finds the machine: without work of the start in progress.
                tokio::time::sleep(SETTLE).await;
                exec(side, &up, &mut times).await?;
                let exec_done = share::steps(side.metrics)?;
                down(side, &up, &mut times).await?;
                let down_done = share::steps(side.metrics)?;
                anyhow::Ok((up.took, after, baseline, exec_done.zip(down_done)))
            };
            let (took, after, baseline, down) = result.await.with_context(|| side.name.clone())?;
            if round > 0 {
                all[at].merge(times);
                if let (Some(before), Some(after), Some(baseline)) = (before, after, baseline) {
                    let share = share.get_or_insert_with(Share::default);
                    share.add(took, &before, &after, baseline);
                    if let Some((before, after)) = down {
                        share.add_steps(share::difference(&before, &after));
                    }
                }
            }
            tokio::time::sleep(SETTLE).await;
        }
        if round % 10 == 0 {
            note(format_args!("one at a time: round {round} of {rounds}"));
        }
    }
    Ok((all, share))
}

/// The same with `parallel` pods at once. Each stage ends for all before the next begins.
pub(crate) async fn side_by_side(sides: &mut [Side], rounds: usize, parallel: usize) -> Result<Vec<Times>> {
    let mut all = vec![Times::default(); sides.len()];
    for round in 0..rounds {
        for turn in 0..sides.len() {
            let at = if round % 2 == 0 { turn } else { sides.len() - 1 - turn };
            let side = &sides[at];
            let mut ups = JoinSet::new();
            for i in 0..parallel {
                let mut side = side.clone();
                ups.spawn(async move {
                    let mut times = Times::default();
                    let up = up(&mut side, &format!("together-{round}-{i}"), &mut times).await?;
                    anyhow::Ok((up, times))
                });
            }
            let pods = finish(ups, &mut all[at]).await.with_context(|| side.name.clone())?;
            tokio::time::sleep(SETTLE).await;
            let mut execs = JoinSet::new();
            for up in pods {
                let mut side = side.clone();
                execs.spawn(async move {
                    let mut times = Times::default();
                    exec(&mut side, &up, &mut times).await?;
                    anyhow::Ok((up, times))
                });
            }
            let pods = finish(execs, &mut all[at]).await.with_context(|| side.name.clone())?;
            let mut downs = JoinSet::new();
            for up in pods {
                let mut side = side.clone();
                downs.spawn(async move {
                    let mut times = Times::default();
                    down(&mut side, &up, &mut times).await?;
                    anyhow::Ok((up, times))
                });
            }
            finish(downs, &mut all[at]).await.with_context(|| side.name.clone())?;
            tokio::time::sleep(SETTLE).await;
        }
        note(format_args!("{parallel} side by side: round {} of {rounds}", round + 1));
    }
    Ok(all)
}

async fn finish(mut tasks: JoinSet<Result<(Up, Times)>>, times: &mut Times) -> Result<Vec<Up>> {
    let mut ups = Vec::new();
    while let Some(done) = tasks.join_next().await {
        let (up, time) = done??;
        times.merge(time);
        ups.push(up);
    }
    Ok(ups)
}

/// For the memory measurement: a pod, up, untimed.
pub(crate) async fn keep_up(side: &mut Side, name: &str) -> Result<(String, String)> {
    let up = up(side, name, &mut Times::default()).await?;
    Ok((up.pod, up.container))
}

/// For the memory measurement.
pub(crate) async fn take_down(side: &mut Side, pod: String, container: String) -> Result<()> {
    down(side, &Up { pod, container, took: Duration::ZERO }, &mut Times::default()).await
}
