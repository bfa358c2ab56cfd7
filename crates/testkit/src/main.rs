//! `podwright-testkit`: the test kit for scripts and people.
//!
//! Owns the command line only; each command is one call into the library.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use podwright_testkit::programs::Programs;
use podwright_testkit::registry::push_all;
use podwright_testkit::scratch::Options;
use podwright_testkit::{Ledger, Registry, Scratch, certs_d, stand_ins, teardown};

#[derive(Debug, Parser)]
#[command(about = "Stand-in images, a loopback registry and scratch nodes for podwright's tests")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A loopback registry
    #[command(subcommand)]
    Registry(RegistryCommand),
    /// Stand-in images
    #[command(subcommand)]
    Images(ImagesCommand),
    /// Write hosts.toml files that lead upstream hosts to a registry
    #[command(name = "certs.d")]
    CertsD {
        /// Where the per-host directories go
        #[arg(long)]
        dir: PathBuf,
        /// Address of the registry, as 127.0.0.1:5000
        #[arg(long)]
        registry: SocketAddr,
        /// Upstream hosts
        #[arg(long, value_delimiter = ',', default_values_t = certs_d::STAND_IN_HOSTS.iter().map(|h| (*h).to_owned()))]
        hosts: Vec<String>,
    },
    /// Scratch nodes: directories with all that a daemon under test needs
    #[command(subcommand)]
    Scratch(ScratchCommand),
    /// Remove all scratch nodes of this machine, those of running tests too
    Sweep,
}

#[derive(Debug, Subcommand)]
enum ScratchCommand {
    /// Make one; prints its directory
    New {
        /// Registry that stand-in names lead to
        #[arg(long)]
        registry: Option<SocketAddr>,
        /// OCI runtime
        #[arg(long, default_value = "runc")]
        runtime: String,
    },
    /// Print NAME='value' lines for a shell
    Env { dir: PathBuf },
    /// List what belongs to a node on this machine; fails when there is anything
    Ledger { dir: PathBuf },
    /// Remove a node and everything that belongs to it; fails and lists what is left
    Remove { dir: PathBuf },
}

#[derive(Debug, Subcommand)]
enum RegistryCommand {
    /// Start one in the background; prints its address, writes DIR/registry.pid and DIR/registry.address
    Start {
        /// Storage, configuration and log
        #[arg(long)]
        dir: PathBuf,
        /// 0 takes a free port
        #[arg(long, default_value_t = 0)]
        port: u16,
    },
}

#[derive(Debug, Subcommand)]
enum ImagesCommand {
    /// Build the images of a set and push them
    Push {
        /// Address of the registry, as 127.0.0.1:5000
        #[arg(long)]
        registry: SocketAddr,
        /// Which images
        #[arg(long)]
        set: SetName,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SetName {
    Critest,
    Web,
}

impl From<SetName> for stand_ins::Set {
    fn from(name: SetName) -> Self {
        match name {
            SetName::Critest => Self::Critest,
            SetName::Web => Self::Web,
        }
    }
}

fn say(line: impl std::fmt::Display) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("write to stdout")
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Registry(RegistryCommand::Start { dir, port }) => {
            let registry = Registry::start(&dir, port)?;
            let address = registry.address();
            let pid = registry.detach().context("registry has no process")?;
            std::fs::write(dir.join("registry.pid"), pid.to_string())?;
            std::fs::write(dir.join("registry.address"), address.to_string())?;
            say(address)
        }
        Command::Images(ImagesCommand::Push { registry, set }) => {
            let images = stand_ins::build(set.into(), &Programs::load()?)?;
            push_all(registry, &images)?;
            for image in &images {
                for (repository, tag) in &image.names {
                    say(format_args!("{repository}:{tag} {}", image.artifact.digest()))?;
                }
            }
            Ok(())
        }
        Command::CertsD { dir, registry, hosts } => certs_d::write(&dir, registry, &hosts),
        Command::Scratch(command) => scratch(command),
        Command::Sweep => {
            for node in Scratch::all() {
                say(format_args!("remove {}", node.root().display()))?;
                empty(&teardown::remove(&node))?;
            }
            Ok(())
        }
    }
}

fn scratch(command: ScratchCommand) -> Result<()> {
    match command {
        ScratchCommand::New { registry, runtime } => {
            let node = Scratch::with(&Options { registry, runtime, ..Options::default() })?.keep();
            say(node.root().display())
        }
        ScratchCommand::Env { dir } => {
            let node = Scratch::open(&dir)?;
            say(format_args!("NODE_ID='{}'", node.id()))?;
            say(format_args!("CONFIG='{}'", node.config_file().display()))?;
            say(format_args!("SOCKET='{}'", node.socket().display()))?;
            say(format_args!("ENDPOINT='{}'", node.endpoint()))?;
            say(format_args!("LOGS='{}'", node.logs_dir().display()))?;
            say(format_args!("DAEMON_LOG='{}'", node.daemon_log().display()))?;
            say(format_args!("CGROUP_PARENT='{}'", node.cgroup_parent()))?;
            let metrics = node.metrics().map_or_else(String::new, |address| address.to_string());
            say(format_args!("METRICS='{metrics}'"))
        }
        ScratchCommand::Ledger { dir } => empty(&Ledger::of(&Scratch::open(&dir)?)),
        ScratchCommand::Remove { dir } => empty(&teardown::remove(&Scratch::open(&dir)?)),
    }
}

fn empty(ledger: &Ledger) -> Result<()> {
    anyhow::ensure!(ledger.is_empty(), "traces are there:\n{ledger}");
    Ok(())
}
