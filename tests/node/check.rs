//! `podwright check` and the daemon's own messages on faulty nodes: each fault must fit one screen, with its remedy.

use crate::support::{Ability, runtime_can};
use podwright_testkit::daemon::default_binary;
use podwright_testkit::{CgroupDriver, Options, Scratch};
use serde_json::Value;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

/// A screen, in lines and columns.
const SCREEN: (usize, usize) = (24, 160);

fn check(scratch: &Scratch) -> Command {
    let mut command = Command::new(default_binary());
    command.arg("check").arg("--config").arg(scratch.config_file());
    command
}

/// A kubelet's configuration with these lines.
fn kubelet(scratch: &Scratch, text: &str) -> std::path::PathBuf {
    let file = scratch.root().join("kubelet.yaml");
    std::fs::write(&file, format!("apiVersion: kubelet.config.k8s.io/v1beta1\n{text}")).unwrap();
    file
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn as_json(command: &mut Command) -> (Value, Option<i32>) {
    let output = command.args(["--output", "json"]).output().unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    (json, output.status.code())
}

fn finding<'a>(json: &'a Value, name: &str) -> &'a Value {
    let checks = json["checks"].as_array().unwrap();
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name} in {json:#}"))
}

fn failures(json: &Value) -> Vec<String> {
    let checks = json["checks"].as_array().unwrap().iter();
    checks.filter(|check| check["verdict"] == "fail").map(|check| check["name"].to_string()).collect()
}

/// Asserts that this check fails, and that its words and its remedy have these in them; and that the last screen of the
/// text shows them too.
fn fails(command: impl Fn() -> Command, name: &str, found: &[&str], remedy: &str) {
    let (json, code) = as_json(&mut command());
    assert_eq!((json["verdict"].as_str(), code), (Some("fail"), Some(1)), "{json:#}");
    let finding = finding(&json, name);
    assert_eq!(finding["verdict"], "fail", "{finding:#}");
    for word in found {
        assert!(finding["found"].as_str().unwrap().contains(word), "{word:?} is not in {finding:#}");
    }
    assert!(finding["remedy"].to_string().contains(remedy), "{remedy:?} is not in {finding:#}");
    let text = told(&command().arg("--quiet").output().unwrap());
    let mut left = SCREEN.0;
    let screen: Vec<&str> = text
        .lines()
        .rev()
        .take_while(|line| {
            let lines = line.chars().count().div_ceil(SCREEN.1).max(1);
            left.checked_sub(lines).inspect(|rest| left = *rest).is_some()
        })
        .collect();
    for word in [name, remedy] {
        assert!(screen.iter().any(|line| line.contains(word)), "{word:?} is not on the screen:\n{text}");
    }
}

fn serve(scratch: &Scratch) -> String {
    let output = Command::new(default_binary())
        .args(["serve", "--config"])
        .arg(scratch.config_file())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_node_that_can_serve_has_no_failure() {
    let scratch = Scratch::new().unwrap();
    let driver = scratch.cgroup_driver().name();
    let file = kubelet(&scratch, &format!("cgroupDriver: {driver}\nfailSwapOn: false\n"));
    let runtime = Options::default().runtime;
    let before = std::fs::read_dir(scratch.root()).unwrap().count();
    let (json, code) = as_json(check(&scratch).arg("--kubelet-config").arg(&file));
    assert_eq!((failures(&json), code), (Vec::new(), Some(0)), "{json:#}");
    for (name, words) in [
        ("kernel", ""),
        ("cgroups", ""),
        ("overlay on root", "mounted"),
        ("monitor", "podwright-monitor"),
        (&format!("OCI runtime {runtime}"), &format!("ran a container, the default ({runtime} version")),
        (
            &format!("user namespaces with {runtime}"),
            if runtime_can(Ability::UserNamespaces) { "ran a container in one" } else { "are refused" },
        ),
        ("CNI configuration", scratch.id()),
        ("CNI plugins", "bridge, portmap"),
        ("grpc.socket", "free"),
        ("metrics.address", "free"),
        ("cgroup driver", driver),
        ("swap", ""),
        ("clock", ""),
        ("open files", ""),
    ] {
        let found = finding(&json, name)["found"].as_str().unwrap();
        assert!(found.contains(words), "{name}: {found}");
    }
    // Nothing of what was tried is left.
    assert_eq!(std::fs::read_dir(scratch.root()).unwrap().count(), before);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(scratch.id()), "{mounts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_serves_already_is_no_failure() {
    let node = crate::support::Node::new(Options::default()).await;
    let file = kubelet(&node.scratch, "failSwapOn: false\n");
    let (json, _) = as_json(check(&node.scratch).arg("--kubelet-config").arg(&file));
    assert_eq!(failures(&json), Vec::<String>::new(), "{json:#}");
    let pid = node.daemon.pid().unwrap().to_string();
    for name in ["grpc.socket", "metrics.address"] {
        let found = finding(&json, name)["found"].as_str().unwrap();
        assert!(found.contains("is served by") && found.contains(&pid), "{name}: {found}");
    }
    node.finish().await;
}

#[test]
fn a_kubelet_with_another_cgroup_driver_is_told_what_to_write() {
    let scratch = Scratch::new().unwrap();
    let (other, ours) = match scratch.cgroup_driver() {
        CgroupDriver::Cgroupfs => ("systemd", "cgroupfs"),
        CgroupDriver::Systemd => ("cgroupfs", "systemd"),
    };
    let file = kubelet(&scratch, &format!("cgroupDriver: {other}\n"));
    let command = || {
        let mut command = check(&scratch);
        command.arg("--kubelet-config").arg(&file);
        command
    };
    let remedy = format!("set cgroupDriver: {ours}");
    fails(command, "cgroup driver", &["cgroupfs", "systemd", "kubelet.yaml"], &remedy);
    let missing = scratch.root().join("none.yaml");
    let command = || {
        let mut command = check(&scratch);
        command.arg("--kubelet-config").arg(&missing);
        command
    };
    fails(command, "kubelet's configuration", &["none.yaml", "No such file"], "--kubelet-config FILE");
}

#[test]
fn no_cni_configuration_is_told() {
    let scratch = Scratch::new().unwrap();
    let conf = scratch.cni_conf_dir();
    std::fs::remove_file(conf.join("10-scratch.conflist")).unwrap();
    fails(
        || check(&scratch),
        "CNI configuration",
        &["none in", "NotReady"],
        "install the cluster's network plugin",
    );
    std::fs::write(conf.join("10-broken.conflist"), "{").unwrap();
    fails(|| check(&scratch), "CNI configuration", &["10-broken.conflist: EOF"], "10-podwright.conflist");
    // A plugin that is not installed.
    let list = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"nonesuch"}]}"#;
    std::fs::write(conf.join("20-n.conflist"), list).unwrap();
    fails(|| check(&scratch), "CNI plugins", &["nonesuch", "/usr/lib/cni"], "containernetworking-plugins");
    let (json, _) = as_json(&mut check(&scratch));
    let skipped = finding(&json, "CNI file 10-broken.conflist");
    assert_eq!(skipped["verdict"], "warn", "{skipped:#}");
}

#[test]
fn a_wrong_key_is_told_by_both() {
    let scratch = Scratch::with(&Options {
        extra_config: "[network]\nconfdir = \"/x\"\n".into(),
        ..Options::default()
    });
    let scratch = scratch.unwrap();
    fails(
        || check(&scratch),
        "configuration",
        &["50-test.toml:2:", "did you mean `conf_dir`?"],
        "podwright config --config",
    );
    let said = serve(&scratch);
    assert!(said.contains("50-test.toml:2:") && said.contains("did you mean `conf_dir`?"), "{said}");
    assert!(said.contains("podwright check --config") && said.lines().count() <= SCREEN.0, "{said}");
}

#[test]
fn a_missing_runtime_is_told_by_both() {
    let extra = "[runtime]\ndefault = \"\"\n[runtime.handlers.runc]\npath = \"/none/runc\"\n[runtime.handlers.crun]\npath = \"/none/crun\"\n";
    let scratch = Scratch::with(&Options { extra_config: extra.into(), ..Options::default() }).unwrap();
    fails(|| check(&scratch), "default OCI runtime", &["neither crun nor runc"], "apt-get install runc");
    let said = serve(&scratch);
    for word in ["no OCI runtime works", "/none/runc", "install crun or runc", "podwright check"] {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
}

#[test]
fn who_has_the_socket_is_told_by_both() {
    let scratch = Scratch::new().unwrap();
    let _listener = UnixListener::bind(scratch.socket()).unwrap();
    let we = format!("process {} (", std::process::id());
    let kill = format!("kill {}", std::process::id());
    fails(|| check(&scratch), "grpc.socket", &["in use by", &we], &kill);
    let said = serve(&scratch);
    assert!(said.contains("is in use by") && said.contains(&we) && said.contains("grpc.socket"), "{said}");
}

#[test]
fn who_has_the_metrics_port_is_told_by_both() {
    let scratch = Scratch::new().unwrap();
    let address = scratch.metrics().unwrap();
    let _listener = std::net::TcpListener::bind(address).unwrap();
    let we = format!("process {} (", std::process::id());
    fails(|| check(&scratch), "metrics.address", &[&address.to_string(), &we], "set metrics.address");
    let said = serve(&scratch);
    assert!(said.contains("metrics.address") && said.contains("Address already in use"), "{said}");
}

/// In a mount namespace of its own, where `at` is read-only.
fn read_only(at: &Path, program: &Command) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount -t tmpfs -o ro none \"$0\" && exec \"$@\""]).arg(at);
    command.arg(program.get_program()).args(program.get_args());
    command
}

#[test]
fn a_read_only_root_is_told_by_both() {
    let scratch = Scratch::new().unwrap();
    let at = scratch.root().join("disk");
    std::fs::create_dir(&at).unwrap();
    let extra = format!("root = \"{}/podwright\"\n", at.display());
    let drop_ins = scratch.root().join("config.toml.d");
    std::fs::create_dir(&drop_ins).unwrap();
    std::fs::write(drop_ins.join("50-test.toml"), extra).unwrap();
    let remedy = format!("mount -o remount,rw {}", at.display());
    fails(|| read_only(&at, &check(&scratch)), "root", &["Read-only file system"], &remedy);
    let mut serve = Command::new(default_binary());
    serve.args(["serve", "--config"]).arg(scratch.config_file());
    let output = read_only(&at, &serve).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("Read-only file system") && said.contains("podwright check --config"), "{said}");
}

#[test]
fn who_is_not_root_is_told_so_and_nothing_else() {
    let scratch = Scratch::new().unwrap();
    let inner = check(&scratch);
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(inner.get_program());
    // The scratch node's configuration is not for everyone to read.
    let output = command.arg("check").output().unwrap();
    let said = told(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("not root") && said.contains("> sudo podwright check"), "{said}");
    assert!(!said.contains("overlay"), "{said}");
}
