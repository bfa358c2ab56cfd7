//! Many pods come and go while CNI plugins fail by chance and the daemon is killed. In the end no address, rule,
//! interface or record is left.

use crate::host_network::{executable, isolated};
use podwright::cri::proto as pb;
use podwright_testkit::{Options, patience};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Semaphore;

/// Pods, unless PODWRIGHT_TEST_CHURN says another number; 200 take a minute or two.
const PODS: usize = 24;
/// At a time.
const TOGETHER: usize = 8;
/// The daemon is killed each time so many pods have come or gone.
const KILL_EVERY: usize = 20;
/// Tries until a pod is up, and until it is gone: with one call in five failing, far more than are needed.
const TRIES: u32 = 60;

/// Precedes a real plugin and fails one call in five, in various ways: before the real one, after it, killed, hanging,
/// or with an unintelligible answer. Depends only on the pod's name, the verb, the plugin and the number of the call,
/// so that a run can be repeated.
const FAULTY: &str = r#"#!/bin/sh
name=${0##*/} pod=${CNI_ARGS#*K8S_POD_NAME=}
pod=${pod%%;*} real=/usr/lib/cni/${0##*/}
[ -e @DIR@/calm ] && exec $real
count=@DIR@/count.$CNI_COMMAND.$name.$pod
echo >>$count
dice=$(printf '%s %s %s %s %s' "@SEED@" $CNI_COMMAND $name $pod "$(wc -l <$count)" | cksum)
dice=$((${dice%% *} % 100))
[ $dice -lt 20 ] && echo "$dice $CNI_COMMAND $name $pod" >>@DIR@/faults
if [ $dice -lt 6 ]; then
    echo '{"code":11,"msg":"a fault before"}'
    exit 1
elif [ $dice -lt 11 ]; then
    $real >/dev/null
    echo '{"code":5,"msg":"a fault after"}'
    exit 1
elif [ $dice -lt 14 ]; then
    $real >/dev/null
    kill -9 $$
elif [ $dice -lt 15 ]; then
    exec sleep 1000
elif [ $dice -lt 16 ]; then
    $real >/dev/null
    exec sleep 1000
elif [ $dice -lt 20 ]; then
    $real >/dev/null
    echo 'a fault instead of an answer'
    exit 0
fi
exec $real
"#;

/// What a kubelet does for a pod: tries again with the next attempt until it is up, then takes down all that there is.
async fn live(mut node: Client, name: String) {
    let mut up = false;
    for attempt in 0..TRIES {
        let mut config = node.config.clone();
        let metadata = config.metadata.as_mut().unwrap();
        (metadata.name, metadata.uid, metadata.attempt) = (name.clone(), format!("uid-{name}"), attempt);
        config.port_mappings =
            vec![pb::PortMapping { host_port: node.port, container_port: 80, ..Default::default() }];
        let request = pb::RunPodSandboxRequest { config: Some(config), ..Default::default() };
        up = node.runtime.run_pod_sandbox(request).await.is_ok();
        if up {
            break;
        }
        node.pause().await;
    }
    assert!(up, "{name} never came up");
    node.done.fetch_add(1, Ordering::Relaxed);
    for _ in 0..TRIES {
        if node.take_down(&name).await == Ok(0) {
            node.done.fetch_add(1, Ordering::Relaxed);
            return;
        }
        node.pause().await;
    }
    panic!("{name} cannot be removed: {:?}", node.take_down(&name).await);
}

#[derive(Clone)]
struct Client {
    runtime: pb::runtime_service_client::RuntimeServiceClient<tonic::transport::Channel>,
    config: pb::PodSandboxConfig,
    port: i32,
    done: Arc<AtomicUsize>,
}

impl Client {
    /// Between two tries, as a daemon that was killed needs a moment. Not a wait for something.
    async fn pause(&self) {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }

    /// Stops and removes every sandbox of a pod; how many there were.
    async fn take_down(&mut self, name: &str) -> Result<usize, String> {
        let list = pb::ListPodSandboxRequest { filter: None };
        let items = self.runtime.list_pod_sandbox(list).await.map_err(|e| e.to_string())?.into_inner().items;
        let ours: Vec<_> =
            items.into_iter().filter(|p| p.metadata.as_ref().is_some_and(|m| m.name == name)).collect();
        for pod in &ours {
            let pod_sandbox_id = pod.id.clone();
            let stop = pb::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
            self.runtime.stop_pod_sandbox(stop).await.map_err(|e| e.to_string())?;
            let remove = pb::RemovePodSandboxRequest { pod_sandbox_id };
            self.runtime.remove_pod_sandbox(remove).await.map_err(|e| e.to_string())?;
        }
        Ok(ours.len())
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_come_and_go_with_failing_plugins_leave_no_address() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
    let pods = number("PODWRIGHT_TEST_CHURN").unwrap_or(PODS);
    let seed = number("PODWRIGHT_TEST_SEED").unwrap_or(1);
    let faults = tempfile::tempdir().unwrap();
    let script =
        FAULTY.replace("@DIR@", &faults.path().display().to_string()).replace("@SEED@", &seed.to_string());
    // A plugin that hangs costs that long, and an emulated machine's are slow.
    let limit = 2 * patience();
    // host-local is called by bridge, from the same directories.
    for plugin in ["bridge", "host-local", "portmap"] {
        executable(&faults.path().join(plugin), &script);
    }
    let extra_config = format!(
        "[network]\nbin_dirs = [\"{}\", \"/usr/lib/cni\"]\nadd_timeout_seconds = {limit}\ndel_timeout_seconds = {limit}\n",
        faults.path().display()
    );
    // The plugin leaves its masquerading when it is killed just after it has removed the interface.
    let (mut node, host) = isolated(Options { extra_config, ip_masq: false, ..Default::default() }).await;
    let done = Arc::new(AtomicUsize::new(0));
    let turns = Arc::new(Semaphore::new(TOGETHER));
    let mut lives = tokio::task::JoinSet::new();
    for index in 0..pods {
        let client = Client {
            runtime: node.runtime.clone(),
            config: node.pod("churn"),
            port: 20_000 + i32::try_from(index).unwrap(),
            done: Arc::clone(&done),
        };
        let turns = Arc::clone(&turns);
        lives.spawn(async move {
            let _turn = turns.acquire_owned().await.unwrap();
            live(client, format!("pod{index}")).await;
        });
    }
    let (mut next_kill, mut kills) = (KILL_EVERY, 0);
    while !lives.is_empty() {
        tokio::select! {
            ended = lives.join_next() => ended.unwrap().unwrap(),
            () = tokio::time::sleep(std::time::Duration::from_millis(20)) => {}
        }
        if done.load(Ordering::Relaxed) >= next_kill {
            next_kill += KILL_EVERY;
            kills += 1;
            node.daemon.crash().unwrap();
        }
    }
    let happened = std::fs::read_to_string(faults.path().join("faults")).unwrap();
    assert!(kills > 0 && happened.lines().count() > pods / 4, "too little went wrong: {happened}");
    assert!(node.list_pods().await.is_empty());
    let leases: Vec<_> = names(&node.scratch.ipam_dir().join(node.scratch.id()))
        .into_iter()
        .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
        .collect();
    assert!(leases.is_empty(), "seed {seed}: addresses are left: {leases:?}");
    let cached = names(&node.scratch.cni_cache_dir().join("results"));
    assert!(cached.is_empty(), "seed {seed}: attachments are left: {cached:?}");
    let rules = host.tool("iptables-save", &[]);
    let ours: Vec<_> = rules.lines().filter(|rule| rule.contains(node.scratch.id())).collect();
    assert!(ours.is_empty(), "seed {seed}: rules are left: {ours:?}");
    let links = host.tool("ip", &["-o", "link", "show", "type", "veth"]);
    assert!(links.is_empty(), "seed {seed}: interfaces are left: {links}");
    std::fs::write(faults.path().join("calm"), "").unwrap();
    node.finish().await;
}
