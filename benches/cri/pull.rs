//! Pulls of the same images by both sides, each into an empty store: wall time, processor time, peak memory, bytes written
//! to a disk. skopeo and umoci, which have no daemon, do the same beside them. Starts and ends no daemon.

use crate::note;
use crate::pull_images::{self, SHAPES, Shape};
use crate::side::Side;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// Processor time in `/proc/PID/stat`, ticks a second: USER_HZ is 100 on every architecture that Linux calls stable.
const TICKS: f64 = 100.0;
/// How often the end of a deletion behind RemoveImage is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// A layer of 400 MB is deleted within seconds, on any disk.
const DELETED: Duration = Duration::from_secs(120);

/// Stages in the order of a layer's way.
const ORDER: [&str; 6] = ["network", "blob_digest", "decompress", "tar_digest", "unpack", "publish"];

/// One pull, or the median of several.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    wall: f64,
    cpu: f64,
    peak_mib: f64,
    written_mb: f64,
}

/// The samples of one image by one side.
struct Row {
    shape: Shape,
    by: String,
    samples: Vec<Sample>,
}

/// Builds and pushes the images, then measures.
pub(crate) async fn run(
    sides: &mut [Side],
    rounds: usize,
    only: &str,
    registry: SocketAddr,
    work: &Path,
) -> Result<(String, Value)> {
    note("building and pushing the images");
    tokio::task::spawn_blocking(move || pull_images::push_all(registry)).await??;
    let tools = ["skopeo", "umoci"].iter().all(|tool| {
        std::process::Command::new(tool).arg("--version").output().is_ok_and(|out| out.status.success())
    });
    let (mut rows, mut stages) = (Vec::new(), Vec::new());
    for shape in SHAPES.into_iter().filter(|s| s.name.contains(only)) {
        let mut samples = vec![Vec::new(); sides.len()];
        let mut alone = Vec::new();
        let before = stage_seconds(sides)?;
        for round in 0..rounds {
            note(format_args!("{}, round {} of {rounds}", shape.title(), round + 1));
            for (side, samples) in sides.iter_mut().zip(&mut samples) {
                samples.push(
                    one(side, &shape).await.with_context(|| format!("{} by {}", shape.name, side.name))?,
                );
            }
            // Debian's umoci knows no zstd.
            if tools && !shape.zstd {
                alone.push(skopeo_and_umoci(registry, &shape, work)?);
            }
        }
        let passed = before.into_iter().zip(stage_seconds(sides)?);
        stages.push((shape, passed.map(|((stage, a), (_, b))| (stage, (b - a) / rounds as f64)).collect()));
        for (side, samples) in sides.iter().zip(samples) {
            rows.push(Row { shape, by: side.name.clone(), samples });
        }
        if !alone.is_empty() {
            rows.push(Row { shape, by: "skopeo+umoci".to_owned(), samples: alone });
        }
    }
    Ok((markdown(sides, &rows) + &stage_table(&stages), json(&rows)))
}

/// Time of layers in each stage so far, by podwright's own metrics; nothing for a daemon without them.
fn stage_seconds(sides: &[Side]) -> Result<Vec<(String, f64)>> {
    const NAME: &str = "podwright_pull_stage_seconds_total{stage=\"";
    let Some(address) = sides.iter().find_map(|side| side.metrics) else { return Ok(Vec::new()) };
    let text = podwright_testkit::http::get(address, "/metrics")?;
    let text = String::from_utf8(text).context("metrics are not text")?;
    let stages = text.lines().filter_map(|line| line.strip_prefix(NAME)?.split_once("\"} "));
    let mut stages = stages
        .map(|(stage, seconds)| Ok((stage.to_owned(), seconds.parse()?)))
        .collect::<Result<Vec<_>>>()?;
    stages.sort_by_key(|(stage, _): &(String, f64)| ORDER.iter().position(|known| known == stage));
    Ok(stages)
}

fn stage_table(images: &[(Shape, Vec<(String, f64)>)]) -> String {
    let Some((_, first)) = images.first().filter(|(_, stages)| !stages.is_empty()) else {
        return String::new();
    };
    let mut text = String::from(
        "\n### Seconds in each stage of a pull, all layers together; a layer's stages run side by side\n\n",
    );
    let names: Vec<_> = first.iter().map(|(stage, _)| stage.as_str()).collect();
    let _ = writeln!(text, "| image | {} |\n|---|{}", names.join(" | "), "--:|".repeat(names.len()));
    for (shape, stages) in images {
        let seconds: Vec<_> = stages.iter().map(|(_, seconds)| format!("{seconds:.2}")).collect();
        let _ = writeln!(text, "| {} | {} |", shape.title(), seconds.join(" | "));
    }
    text
}

async fn one(side: &mut Side, shape: &Shape) -> Result<Sample> {
    let image = format!("docker.io/{}:latest", shape.repository());
    let pid = side.pid.context("the pull benchmark needs the daemon's pid")?;
    // 5: the peak restarts at the current resident size (proc(5)).
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("reset the peak of resident memory")?;
    let (cpu, written) = (ticks(pid)?, written(pid)?);
    let begun = Instant::now();
    side.pull_image(&image).await?;
    let wall = begun.elapsed().as_secs_f64();
    let sample = Sample {
        wall,
        cpu: (ticks(pid)? - cpu) / TICKS,
        peak_mib: status(pid, "VmHWM:")? / 1024.0,
        written_mb: (self::written(pid)? - written) / 1e6,
    };
    side.remove_image(&image).await?;
    if let Some(dir) = &side.dir {
        deleted(&dir.join("root/images/staging")).await?;
    }
    Ok(sample)
}

/// A background deletion must not overlap the next pull.
async fn deleted(staging: &Path) -> Result<()> {
    let begun = Instant::now();
    while std::fs::read_dir(staging).is_ok_and(|mut entries| entries.next().is_some()) {
        anyhow::ensure!(begun.elapsed() < DELETED, "{} does not become empty", staging.display());
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// User and system time of the process and of its children that have ended.
fn ticks(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let (_, fields) = stat.rsplit_once(") ").with_context(|| format!("{path} has no name"))?;
    // Fields 14 to 17 of proc(5), counted from the state, which is the third.
    fields.split(' ').skip(11).take(4).map(|n| n.parse::<f64>().context("a tick count")).sum()
}

fn status(pid: u32, key: &str) -> Result<f64> {
    number(&format!("/proc/{pid}/status"), key)
}

fn written(pid: u32) -> Result<f64> {
    number(&format!("/proc/{pid}/io"), "write_bytes:")
}

fn number(path: &str, key: &str) -> Result<f64> {
    let text = std::fs::read_to_string(path).with_context(|| path.to_owned())?;
    let line =
        text.lines().find_map(|l| l.strip_prefix(key)).with_context(|| format!("{path} has no {key}"))?;
    line.split_whitespace().next().unwrap_or_default().parse().with_context(|| format!("{path}, {key}"))
}

/// Copies to an OCI layout and unpacks, as a build pipeline without a daemon does.
fn skopeo_and_umoci(registry: SocketAddr, shape: &Shape, work: &Path) -> Result<Sample> {
    let dir = work.join("skopeo");
    std::fs::create_dir_all(&dir)?;
    let (repository, path) = (shape.repository(), dir.display());
    let script = format!(
        "set -e; TIMEFORMAT='%R %U %S'; time {{ \
         skopeo --insecure-policy copy -q --src-tls-verify=false docker://{registry}/{repository}:latest oci:{path}/layout:i \
         && umoci unpack --image {path}/layout:i {path}/bundle; }} >/dev/null 2>{path}/errors"
    );
    let out = std::process::Command::new("bash").args(["-c", &script]).output().context("start bash")?;
    let errors = std::fs::read_to_string(dir.join("errors")).unwrap_or_default();
    anyhow::ensure!(out.status.success(), "skopeo and umoci: {errors}");
    std::fs::remove_dir_all(&dir)?;
    let times = String::from_utf8_lossy(&out.stderr);
    let times: Vec<f64> = times.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let [wall, user, system] = times[..] else { anyhow::bail!("bash told no times: {times:?}") };
    Ok(Sample { wall, cpu: user + system, ..Sample::default() })
}

fn median(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn largest(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    samples.iter().map(of).fold(0.0, f64::max)
}

fn markdown(sides: &[Side], rows: &[Row]) -> String {
    let mut text = String::from("### Pulls into an empty store, median (slowest)\n\n");
    text.push_str(
        "| image | by | wall s | of the first | processor s | of the first | peak MiB | written MB |\n",
    );
    text.push_str("|---|---|--:|--:|--:|--:|--:|--:|\n");
    for row in rows {
        let first = rows
            .iter()
            .find(|r| r.shape.name == row.shape.name && Some(&r.by) == sides.first().map(|s| &s.name));
        let ratio = |of: fn(&Sample) -> f64| {
            let base = first.map_or(f64::NAN, |first| median(&first.samples, of));
            format!("{:.2}", median(&row.samples, of) / base)
        };
        let peak = largest(&row.samples, |s| s.peak_mib);
        let _ = writeln!(
            text,
            "| {} | {} | {:.2} ({:.2}) | {} | {:.2} | {} | {} | {:.0} |",
            row.shape.title(),
            row.by,
            median(&row.samples, |s| s.wall),
            largest(&row.samples, |s| s.wall),
            ratio(|s| s.wall),
            median(&row.samples, |s| s.cpu),
            ratio(|s| s.cpu),
            if peak > 0.0 { format!("{peak:.0}") } else { String::new() },
            median(&row.samples, |s| s.written_mb),
        );
    }
    text
}

fn json(rows: &[Row]) -> Value {
    let row = |row: &Row| {
        let samples: Vec<_> = row
            .samples
            .iter()
            .map(
                |s| json!({"wall": s.wall, "cpu": s.cpu, "peak_mib": s.peak_mib, "written_mb": s.written_mb}),
            )
            .collect();
        json!({"image": row.shape.name, "by": row.by, "samples": samples})
    };
    rows.iter().map(row).collect()
}
