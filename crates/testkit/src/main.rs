//! `podwright-testkit`: the test kit for scripts and for hands.
//!
//! Owns the command line only; each command is one call into the library.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use podwright_testkit::programs::Programs;
use podwright_testkit::registry::push_all;
use podwright_testkit::{Registry, certs_d, stand_ins};

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
    }
}
