//! podwright's composition root: arguments, configuration, logs, build, recover, serve. Nothing else.

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use podwright::cli::{self, OneLine};
use podwright::config::{self, Config, LogFormat};
use podwright::daemon;
use podwright::images;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

/// A Kubernetes node agent: serves the CRI v1 runtime and image services over a unix socket.
#[derive(Debug, Parser)]
#[command(name = "podwright", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    Serve {
        /// Configuration file; drop-ins are beside it in FILE.d.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Print the configuration in force, with every key.
    Config {
        /// Configuration file; drop-ins are beside it in FILE.d.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The defaults instead.
        #[arg(long, conflicts_with = "config")]
        default: bool,
        /// Print the meaning of every key instead, as Markdown.
        #[arg(long, conflicts_with_all = ["config", "default"])]
        markdown: bool,
    },
    /// Show the daemon: version, conditions, pods, open streams. Exit code 3: it does not run.
    Status(cli::NodeArguments),
    /// List pods with their containers. Exit code 3: the daemon does not run.
    Pods {
        /// The beginning of a pod's id.
        #[arg(value_name = "ID", default_value = "")]
        id: String,
        #[command(flatten)]
        node: cli::NodeArguments,
    },
    /// Show what this node lacks, with remedies.
    Check(cli::check::Arguments),
    /// The node's images: list, pull, remove, collect, and where a pull would go.
    Images(cli::Arguments),
}

fn main() -> ExitCode {
    if let Some(code) = images::run_as_worker() {
        return code;
    }
    images::use_workers();
    keep_secrets();
    // Not fatal: what the person has in nsswitch.conf may do.
    if cfg!(target_feature = "crt-static")
        && let Err(error) = podwright_sys::names::only_files_and_dns()
    {
        report(&anyhow::Error::new(error).context("choose how names are looked up"), None);
    }
    let command = match Arguments::parse().command {
        Command::Images(arguments) => return cli::run(arguments),
        Command::Status(arguments) => return cli::status(arguments),
        Command::Pods { id, node } => return cli::pods(node, id),
        Command::Check(arguments) => return cli::check::run(&arguments),
        command => command,
    };
    let check = check_command(&command);
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error, check.as_deref());
            ExitCode::FAILURE
        }
    }
}

/// First of all: this process will know registry passwords, which no core dump may contain, and will run programs,
/// which must not inherit descriptors of its starter.
fn keep_secrets() {
    let undumpable = podwright_sys::process::never_dump_core();
    for (what, done) in [
        ("forbid core dumps", undumpable),
        ("keep descriptors from programs", podwright_sys::process::keep_to_ourselves(3)),
    ] {
        if let Err(error) = done {
            report(&anyhow::Error::new(error).context(what), None);
        }
    }
}

/// What to do when the daemon does not start.
fn check_command(command: &Command) -> Option<String> {
    match command {
        Command::Serve { config: Some(file) } => Some(format!("podwright check --config {}", file.display())),
        Command::Serve { config: None } => Some("podwright check".to_owned()),
        Command::Config { .. }
        | Command::Check(_)
        | Command::Images(_)
        | Command::Status(_)
        | Command::Pods { .. } => None,
    }
}

#[allow(clippy::print_stderr)]
fn report(error: &anyhow::Error, check: Option<&str>) {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Our own errors already name their cause.
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    eprintln!("podwright: {text}");
    if let Some(check) = check {
        eprintln!("podwright: to see what this node lacks, with remedies: {check}");
    }
}

fn load(path: Option<PathBuf>) -> anyhow::Result<Config> {
    let required = path.is_some();
    Ok(config::load(&path.unwrap_or_else(|| config::DEFAULT_FILE.into()), required)?)
}

#[allow(clippy::print_stdout)]
fn run(command: Command) -> anyhow::Result<()> {
    match command {
        // `main` has run them.
        Command::Images(_) | Command::Check(_) | Command::Status(_) | Command::Pods { .. } => Ok(()),
        Command::Config { markdown: true, .. } => {
            print!("{}", config::markdown());
            Ok(())
        }
        Command::Config { config, default, .. } => {
            let shown = if default { Config::default() } else { load(config)? };
            print!("{}", toml::to_string(&shown).context("show the configuration")?);
            Ok(())
        }
        Command::Serve { config } => {
            let config = load(config)?;
            // Descriptors inherited at start, except the three standard ones; none of ours is open yet.
            podwright_sys::process::close_from(3).context("close inherited descriptors")?;
            start_logs(&config)?;
            keep_keys();
            podwright_sys::memory::keep_small(daemon::LARGE_ALLOCATION);
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(daemon::worker_threads())
                .max_blocking_threads(daemon::MAX_BLOCKING_THREADS)
                .thread_keep_alive(daemon::BLOCKING_THREAD_KEEP_ALIVE)
                .enable_all()
                .build()
                .context("start the asynchronous runtime")?;
            let result = runtime.block_on(daemon::serve(config));
            // Blocked work must not delay the end.
            runtime.shutdown_background();
            result
        }
    }
}

/// While there is one thread, from which all others and all monitors have it. A container gets it only if the kernel has
/// no room for one of its own.
fn keep_keys() {
    if let Err(error) = podwright_sys::keyring::join_empty_session() {
        // Log: The daemon keeps the session keyring of whoever started it; monitors and CNI plugins inherit it, and so do
        // containers that get none of their own. Mostly root has as many keys as it may.
        // Do: `grep '^ *0:' /proc/key-users` shows root's keys and their limits. Find out who makes them, and restart.
        tracing::warn!(%error, "no session keyring of its own");
    }
}

fn start_logs(config: &Config) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log.level)
        .with_context(|| format!("configuration key log.level: {:?}", config.log.level))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    match config.log.format {
        LogFormat::Text => logs.with_writer(|| OneLine::text(io::stderr())).init(),
        LogFormat::Json => logs.with_writer(|| OneLine::json(io::stderr())).json().init(),
    }
    Ok(())
}
