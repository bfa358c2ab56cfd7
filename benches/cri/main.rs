//! Measures one or two CRI runtimes over their sockets: latency of a pod's and a container's life, our own share of it,
//! memory. Interleaves the two, so that drift of the machine hits both. Starts and ends no daemon: that is
//! `tests/bench/run.sh`.

mod latency;
mod memory;
mod pull;
mod pull_images;
mod report;
mod share;
mod side;
mod trouble;

use anyhow::{Context as _, Result};
use clap::Parser;
use side::{Given, Side};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What to measure. `cargo bench --bench cri -- --a containerd=unix:///... --b podwright=unix:///...`
#[derive(Debug, Parser)]
struct Cli {
    /// The first runtime, as NAME=unix:///SOCKET; ratios are against it
    #[arg(long)]
    a: Option<String>,
    /// Its daemon's pid, for memory
    #[arg(long)]
    a_pid: Option<u32>,
    /// Its directory: what names it on the command line is one of its processes
    #[arg(long)]
    a_dir: Option<PathBuf>,
    /// Its programs, for their sizes
    #[arg(long, value_delimiter = ',')]
    a_binaries: Vec<PathBuf>,
    /// Parent of its pods' cgroups
    #[arg(long, default_value = "")]
    a_cgroup: String,
    /// The second runtime
    #[arg(long)]
    b: Option<String>,
    /// As with --a
    #[arg(long)]
    b_pid: Option<u32>,
    /// As with --a
    #[arg(long)]
    b_dir: Option<PathBuf>,
    /// As with --a
    #[arg(long, value_delimiter = ',')]
    b_binaries: Vec<PathBuf>,
    /// As with --a
    #[arg(long, default_value = "")]
    b_cgroup: String,
    /// Address of podwright's metrics, for its own share.
    #[arg(long)]
    b_metrics: Option<SocketAddr>,
    /// The image of the containers: busybox
    #[arg(long, default_value = "docker.io/podwright/busybox:latest")]
    image: String,
    /// The OCI runtime that both use, for a baseline
    #[arg(long, default_value = "runc")]
    runtime: PathBuf,
    /// Pods one at a time
    #[arg(long, default_value_t = 30)]
    rounds: usize,
    /// Rounds of pods side by side
    #[arg(long, default_value_t = 5)]
    parallel_rounds: usize,
    /// How many side by side
    #[arg(long, default_value_t = 8)]
    parallel: usize,
    /// Pods for the memory measurement
    #[arg(long, default_value_t = 20)]
    pods: usize,
    /// Measure pulls instead, so many of each image
    #[arg(long, default_value_t = 0)]
    pulls: usize,
    /// Only the images whose name has this: `one`, `zstd`, `eight-gzip`
    #[arg(long, default_value = "")]
    only: String,
    /// Measure status and list calls instead, with so many pods, while all is well and while there is trouble;
    /// tests/bench/trouble.sh makes the plugin that hangs
    #[arg(long, default_value_t = 0)]
    trouble: usize,
    /// Number of measurements per call.
    #[arg(long, default_value_t = 500)]
    calls: usize,
    /// Registry for the images of the pull benchmark
    #[arg(long, requires = "pulls")]
    registry: Option<SocketAddr>,
    /// Directory for tools that have no daemon
    #[arg(long, default_value = "/tmp")]
    work: PathBuf,
    /// Where pods' logs go
    #[arg(long, default_value = "/tmp")]
    logs: PathBuf,
    /// Where the JSON goes
    #[arg(long)]
    json: Option<PathBuf>,
    /// Only what cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

impl Cli {
    fn sides(&self) -> Result<Vec<Side>> {
        let mut sides = Vec::new();
        if let Some(a) = &self.a {
            let given = Given {
                address: a,
                pid: self.a_pid,
                dir: self.a_dir.as_deref(),
                binaries: &self.a_binaries,
                cgroup: &self.a_cgroup,
                metrics: None,
            };
            sides.push(Side::new(&given, self)?);
        }
        if let Some(b) = &self.b {
            let given = Given {
                address: b,
                pid: self.b_pid,
                dir: self.b_dir.as_deref(),
                binaries: &self.b_binaries,
                cgroup: &self.b_cgroup,
                metrics: self.b_metrics,
            };
            sides.push(Side::new(&given, self)?);
        }
        Ok(sides)
    }
}

fn note(what: impl std::fmt::Display) {
    // Progress that cannot be shown is not missed.
    let _ = writeln!(std::io::stderr(), "bench: {what}");
}

// The client must not compete with the daemons for two processors: one thread is enough.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let mut sides = cli.sides()?;
    if sides.is_empty() {
        note("name a runtime with --a NAME=unix:///SOCKET; tests/bench/run.sh does all that is needed");
        return Ok(());
    }
    if cli.pulls > 0 {
        let registry = cli.registry.context("--pulls needs --registry")?;
        let (table, numbers) = pull::run(&mut sides, cli.pulls, &cli.only, registry, &cli.work).await?;
        return tell(&cli, &table, &numbers);
    }
    if cli.trouble > 0 {
        let (table, numbers) = trouble::run(&mut sides[0], cli.trouble, cli.calls).await?;
        return tell(&cli, &table, &numbers);
    }
    for side in &mut sides {
        side.pull().await.with_context(|| format!("pull {} by {}", cli.image, side.name))?;
    }
    let memory = memory::measure(&mut sides, cli.pods).await?;
    let (alone, share) = latency::one_at_a_time(&mut sides, cli.rounds, &cli.runtime).await?;
    let together = latency::side_by_side(&mut sides, cli.parallel_rounds, cli.parallel).await?;
    let after = sides.iter().map(|side| side.pid.map(memory::pss).transpose()).collect::<Result<Vec<_>>>()?;
    let report =
        report::Report { sides: &sides, parallel: cli.parallel, memory, alone, together, share, after };
    tell(&cli, &report.markdown(), &report.json())
}

fn tell(cli: &Cli, table: &str, numbers: &serde_json::Value) -> Result<()> {
    std::io::stdout().write_all(table.as_bytes())?;
    if let Some(json) = &cli.json {
        let text = serde_json::to_vec_pretty(numbers)?;
        std::fs::write(json, text).with_context(|| format!("write {}", json.display()))?;
    }
    Ok(())
}
