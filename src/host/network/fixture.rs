//! Shared by the tests of this module: an attachment and a fake plugin that records its calls.

use super::{Attachment, Network, Readiness};
use crate::config;
use crate::model::{PodName, SandboxId};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// An attachment of pod ns/web, with a fresh sandbox id.
pub(super) fn attachment() -> Attachment {
    Attachment {
        sandbox: SandboxId::random().unwrap(),
        netns: None,
        pod: PodName { name: "web".into(), namespace: "ns".into(), uid: "u-1".into(), attempt: 0 },
        port_mappings: Vec::new(),
        cgroup_parent: String::new(),
        annotations: BTreeMap::new(),
        dns: None,
    }
}

/// Readiness with one network.
pub(super) fn ready_with(network: &str) -> Readiness {
    Readiness::Ready { networks: vec![network.to_owned()] }
}

/// A plugin that appends `<verb> <plugin>` to `calls`, keeps its environment and stdin in
/// `<n>-<verb>-<plugin>.{env,json}`, runs `hook-<verb>-<plugin>` or `hook-<verb>` if there is one, and answers ADD
/// with one address.
const PLUGIN: &str = r#"#!/bin/sh
d=@DIR@
me=${0##*/}
n=$(flock $d/calls sh -c "echo $CNI_COMMAND $me $CNI_CONTAINERID >> $d/calls; wc -l < $d/calls")
env | sort > $d/$n-$CNI_COMMAND-$me.env
cat > $d/$n-$CNI_COMMAND-$me.json
for h in $d/hook-$CNI_COMMAND-$me $d/hook-$CNI_COMMAND; do
    if [ -e $h ]; then . $h; fi
done
if [ $CNI_COMMAND = ADD ]; then
    echo "{\"cniVersion\":\"@VERSION@\",\"by\":\"$me\",\"interfaces\":[{\"name\":\"eth0\",\"mac\":\"02:00:00:00:00:01\"}],\"ips\":[{\"address\":\"fd00::2/64\"},{\"address\":\"10.5.0.2/24\",\"interface\":0}]}"
fi
"#;

/// A world of fake plugins a, b and c.
pub(super) struct World {
    pub(super) dir: tempfile::TempDir,
    pub(super) config: config::Network,
}

impl World {
    /// With a chain of a, b, c of this version.
    pub(super) fn new(version: &str) -> Self {
        let world = Self::bare(version);
        let caps = r#"{"portMappings":true}"#;
        world.conf(
            "10-n.conflist",
            &format!(
                r#"{{"cniVersion":"{version}","name":"n","plugins":[{{"type":"a"}},{{"type":"b","capabilities":{caps}}},{{"type":"c"}}]}}"#
            ),
        );
        world
    }

    /// Without configuration.
    pub(super) fn bare(version: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["conf", "bin"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        std::fs::write(path("calls"), "").unwrap();
        let config = config::Network {
            conf_dir: path("conf"),
            conf_template: PathBuf::new(),
            bin_dirs: vec![path("absent"), path("bin")],
            cache_dir: path("cache"),
            max_conf_num: 1,
            netns_dir: path("netns"),
            add_timeout_seconds: 60,
            del_timeout_seconds: 60,
        };
        let world = Self { config, dir };
        for name in ["a", "b", "c"] {
            world.plugin(name, version);
        }
        world
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn plugin(&self, name: &str, version: &str) {
        let text =
            PLUGIN.replace("@DIR@", &self.dir.path().display().to_string()).replace("@VERSION@", version);
        executable(&self.path("bin").join(name), &text);
    }

    pub(super) fn conf(&self, name: &str, text: &str) {
        let new = self.path("new-conf");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.config.conf_dir.join(name)).unwrap();
    }

    /// Shell lines that a plugin runs.
    pub(super) fn hook(&self, name: &str, script: &str) {
        std::fs::write(self.path(&format!("hook-{name}")), script).unwrap();
    }

    pub(super) fn unhook(&self, name: &str) {
        std::fs::remove_file(self.path(&format!("hook-{name}"))).unwrap();
    }

    pub(super) fn start(&self) -> Network {
        Network::start(&self.config).unwrap()
    }

    /// `<verb> <plugin>` of all calls so far.
    pub(super) fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("calls")).unwrap();
        text.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
    }

    pub(super) fn forget_calls(&self) {
        std::fs::write(self.path("calls"), "").unwrap();
    }

    /// stdin of call number `n`, from 1.
    pub(super) fn stdin(&self, n: usize) -> serde_json::Value {
        serde_json::from_slice(&self.recorded(n, ".json")).unwrap()
    }

    /// Environment of call number `n`, from 1.
    pub(super) fn env(&self, n: usize) -> BTreeMap<String, String> {
        let text = String::from_utf8(self.recorded(n, ".env")).unwrap();
        text.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }

    fn recorded(&self, n: usize, end: &str) -> Vec<u8> {
        let call = self.calls()[n - 1].replace(' ', "-");
        std::fs::read(self.path(&format!("{n}-{call}{end}"))).unwrap()
    }

    /// Names in the result cache.
    pub(super) fn cached(&self) -> Vec<String> {
        let dir = std::fs::read_dir(self.path("cache/results")).into_iter().flatten();
        dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

pub(super) fn executable(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
