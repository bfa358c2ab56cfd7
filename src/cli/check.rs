//! `podwright check`: what this node lacks, the worst last, right above the prompt.

use super::{out, text};
use crate::check::{self, DEFAULT_KUBELET_CONFIG, Finding, Kubelet, Subject, Verdict};
use crate::config::{self, Config};
use crate::model::plain;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `podwright check`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Configuration file of the daemon.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Configuration file of the kubelet, which must agree.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_KUBELET_CONFIG)]
    kubelet_config: PathBuf,
    /// Only what is not as it should be.
    #[arg(short, long)]
    quiet: bool,
    /// Form of the answer.
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Text,
    Json,
}

/// Checks the node; 0 when nothing fails, else 1.
#[must_use]
pub fn run(arguments: &Arguments) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            out::error(&format!("start the asynchronous runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let found = runtime.block_on(look(arguments));
    match arguments.output {
        Form::Text => out::line(&as_text(&found, arguments.quiet)),
        Form::Json => out::json(&as_json(&found, arguments.quiet)),
    }
    if worst(&found) == Rank::Fail { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

async fn look(arguments: &Arguments) -> Vec<Finding> {
    let (config, mut found) = configuration(arguments.config.as_deref());
    if !rustix::process::geteuid().is_root() {
        // Without root, most checks would fail for lack of rights only.
        let remedy = "sudo podwright check";
        found.push(Finding::fail("rights", "not root: nothing else was looked at", remedy));
        return found;
    }
    let kubelet = match Kubelet::read(&arguments.kubelet_config) {
        Ok(kubelet) => Some(kubelet),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !named(&arguments.kubelet_config) => {
            None
        }
        Err(error) => {
            let path = arguments.kubelet_config.display();
            let remedy =
                format!("ls -l {path}\nor name the right file: podwright check --kubelet-config FILE");
            found.push(Finding::fail("kubelet's configuration", format!("{path}: {error}"), remedy));
            None
        }
    };
    found.extend(check::all(&Subject { config: &config, kubelet: kubelet.as_ref() }).await);
    found
}

/// Whether the user named the file, which must then exist.
fn named(kubelet_config: &Path) -> bool {
    kubelet_config != Path::new(DEFAULT_KUBELET_CONFIG)
}

/// The configuration. Reports a wrong one and checks the rest with the defaults.
fn configuration(file: Option<&Path>) -> (Config, Vec<Finding>) {
    let name = "configuration";
    let path = file.unwrap_or(Path::new(config::DEFAULT_FILE));
    match config::load(path, file.is_some()) {
        Ok(config) if path.exists() => (config, vec![Finding::ok(name, path.display().to_string())]),
        Ok(config) => (config, vec![Finding::ok(name, "the defaults")]),
        Err(error) => {
            let remedy = format!(
                "correct it; podwright config --config {} shows whether it is right then\n(all below is with the defaults)",
                path.display()
            );
            (Config::default(), vec![Finding::fail(name, error.to_string(), remedy)])
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Ok,
    Warn,
    Fail,
}

fn rank(finding: &Finding) -> Rank {
    match finding.verdict {
        Verdict::Ok => Rank::Ok,
        Verdict::Warn { .. } => Rank::Warn,
        Verdict::Fail { .. } => Rank::Fail,
    }
}

fn worst(found: &[Finding]) -> Rank {
    found.iter().map(rank).max().unwrap_or(Rank::Ok)
}

fn word(rank: Rank) -> &'static str {
    match rank {
        Rank::Ok => "ok",
        Rank::Warn => "warn",
        Rank::Fail => "fail",
    }
}

fn remedy(finding: &Finding) -> impl Iterator<Item = &str> {
    match &finding.verdict {
        Verdict::Ok => "",
        Verdict::Warn { remedy } | Verdict::Fail { remedy } => remedy,
    }
    .lines()
}

fn as_text(found: &[Finding], quiet: bool) -> String {
    let mut shown: Vec<&Finding> =
        found.iter().filter(|finding| !quiet || rank(finding) != Rank::Ok).collect();
    shown.sort_by_key(|finding| rank(finding));
    let width = shown.iter().map(|finding| finding.name.chars().count()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for finding in shown {
        // A cause of several lines, such as a program's output, stays one entry.
        let text = finding.found.lines().collect::<Vec<_>>().join(" ");
        let text = plain::marked(&text);
        lines.push(format!("{:<4}  {:<width$}  {text}", word(rank(finding)), finding.name));
        lines.extend(remedy(finding).map(|step| format!("        > {step}")));
    }
    let count = |wanted| found.iter().filter(|finding| rank(finding) == wanted).count();
    lines.push(match (count(Rank::Fail), count(Rank::Warn)) {
        (0, 0) => "everything is as it should be".to_owned(),
        (0, warnings) => format!("{}; podwright can serve", text::count(warnings, "warning")),
        (failures, warnings) => {
            format!("{}, {}", text::count(failures, "failure"), text::count(warnings, "warning"))
        }
    });
    lines.join("\n")
}

fn as_json(found: &[Finding], quiet: bool) -> Value {
    let checks: Vec<_> = found
        .iter()
        .filter(|finding| !quiet || rank(finding) != Rank::Ok)
        .map(|finding| {
            json!({
                "name": finding.name,
                "verdict": word(rank(finding)),
                "found": finding.found,
                "remedy": remedy(finding).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({ "verdict": word(worst(found)), "checks": checks })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Vec<Finding> {
        vec![
            Finding::fail("a socket", "in use\nby crio", "systemctl stop crio\nor another"),
            Finding::ok("kernel", "6.1"),
            Finding::warn("clock", "not synchronised", "timedatectl set-ntp true"),
        ]
    }

    #[test]
    fn the_worst_stands_last_with_what_to_type() {
        assert_eq!(
            as_text(&found(), false),
            "ok    kernel    6.1
warn  clock     not synchronised
        > timedatectl set-ntp true
fail  a socket  in use by crio
        > systemctl stop crio
        > or another
1 failure, 1 warning"
        );
        assert!(!as_text(&found(), true).contains("kernel"));
        assert_eq!(as_text(&found()[1..2], true), "everything is as it should be");
    }

    #[test]
    fn json_has_verdict_and_steps() {
        let json = as_json(&found(), false);
        assert_eq!(json["verdict"], "fail");
        assert_eq!(json["checks"][0]["remedy"], serde_json::json!(["systemctl stop crio", "or another"]));
        assert_eq!(json["checks"][1]["remedy"], serde_json::json!([]));
        assert_eq!(as_json(&found(), true)["checks"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn a_wrong_configuration_is_a_finding() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(&file, "[network]\nconfdir = \"/x\"\n").unwrap();
        let (config, found) = configuration(Some(&file));
        assert_eq!((config, worst(&found)), (Config::default(), Rank::Fail));
        assert!(
            found[0].found.contains("config.toml:2:") && found[0].found.contains("did you mean"),
            "{found:?}"
        );
    }
}
