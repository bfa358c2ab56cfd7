//! Calls, seen by fake plugins.

use super::fixture::{World, attachment, executable, ready_with};
use super::*;
use crate::model::Protocol;
use serde_json::json;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};

const ADD: [&str; 3] = ["ADD a", "ADD b", "ADD c"];
const DEL: [&str; 3] = ["DEL c", "DEL b", "DEL a"];

fn with_port() -> Attachment {
    let mut request = attachment();
    let mapping = PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port: 8080, host_ip: None };
    request.port_mappings.push(mapping);
    request
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn a_pod_comes_and_goes() {
    let world = World::new("1.0.0");
    let network = world.start();
    let mut request = with_port();
    request.netns = Some("/proc/self/ns/net".into());
    let got = network.attach(&request).await.unwrap();
    assert_eq!(got.ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.5.0.2", "fd00::2"]);
    assert_eq!((got.network.as_str(), got.mac.as_deref()), ("n", Some("02:00:00:00:00:01")));
    assert!(got.plugin_time > Duration::ZERO);
    assert_eq!(world.calls(), ADD);
    assert!(world.stdin(1).get("prevResult").is_none());
    assert_eq!(world.stdin(2)["prevResult"]["by"], "a");
    assert_eq!(world.stdin(3)["prevResult"]["by"], "b");
    let mappings = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    assert_eq!(world.stdin(2)["runtimeConfig"], mappings);
    assert!(world.stdin(1).get("runtimeConfig").is_none() && world.stdin(3).get("runtimeConfig").is_none());
    assert!(world.stdin(2).get("capabilities").is_none());
    assert_eq!((&world.stdin(3)["name"], &world.stdin(3)["cniVersion"]), (&json!("n"), &json!("1.0.0")));
    let (env, id) = (world.env(1), request.sandbox.to_string());
    assert_eq!(env["CNI_CONTAINERID"], id);
    assert_eq!(env["CNI_NETNS"], "/proc/self/ns/net");
    assert_eq!(env["CNI_IFNAME"], "eth0");
    assert_eq!(
        env["CNI_PATH"],
        format!("{}:{}", world.path("absent").display(), world.path("bin").display())
    );
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=";
    assert_eq!(env["CNI_ARGS"], format!("{args}{id};K8S_POD_UID=u-1"));

    let file = world.path(&format!("cache/results/n-{id}-eth0"));
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(world.path("cache/results").metadata().unwrap().permissions().mode() & 0o777, 0o700);
    let cached: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!((&cached["kind"], &cached["networkName"]), (&json!("cniCacheV1"), &json!("n")));
    assert_eq!((&cached["containerId"], &cached["ifName"]), (&json!(id), &json!("eth0")));
    assert_eq!((&cached["result"]["by"], &cached["capabilityArgs"]), (&json!("c"), &mappings));
    assert_eq!(cached["cniArgs"][0], json!(["IgnoreUnknown", "1"]));

    world.forget_calls();
    // DEL uses the cache: the caller's current ports do not matter.
    request.port_mappings.clear();
    network.detach(&request).await.unwrap();
    assert_eq!(world.calls(), DEL);
    for n in 1..=3 {
        assert_eq!(world.stdin(n)["prevResult"]["by"], "c");
    }
    assert_eq!(world.stdin(2)["runtimeConfig"], mappings);
    assert_eq!(world.env(1)["CNI_NETNS"], "/proc/self/ns/net");
    assert!(world.cached().is_empty());
    network.detach(&request).await.unwrap();
}

#[tokio::test]
async fn a_failed_add_is_undone_and_says_what_the_plugin_said() {
    let world = World::new("0.4.0");
    world.hook("ADD-b", r#"echo '{"code":7,"msg":"no subnet","details":"ask the operator"}'; exit 1"#);
    let network = world.start();
    let error = network.attach(&attachment()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "CNI plugin b of network n: ADD for pod web_ns_u-1_0: no subnet: ask the operator (code 7)"
    );
    assert_eq!(world.calls(), ["ADD a", "ADD b", "DEL c", "DEL b", "DEL a"]);
    assert!(world.stdin(3).get("prevResult").is_none());
    assert!(world.cached().is_empty());
}

#[tokio::test]
async fn what_could_not_be_undone_is_detached_later() {
    let world = World::new("1.0.0");
    world.hook("ADD-c", "echo broken >&2; exit 3");
    world.hook("DEL-b", r#"echo '{"code":11,"msg":"busy"}'; exit 1"#);
    let network = world.start();
    let request = attachment();
    let error = network.attach(&request).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, NetworkError::NotUndone { .. }));
    assert!(text.contains("plugin c of network n: ADD") && text.contains("exit status: 3, broken"), "{text}");
    assert!(text.contains("undoing it failed too: CNI plugin b of network n: DEL"), "{text}");
    // The others were still run, and a repeated detach keeps failing until the plugin can.
    assert_eq!(world.calls()[3..], DEL);
    let error = network.detach(&request).await.unwrap_err();
    assert!(error.wants_retry());
    assert_eq!(world.calls()[6..], DEL);
    world.unhook("DEL-b");
    network.detach(&request).await.unwrap();
    assert!(world.cached().is_empty());
}

#[tokio::test]
async fn a_failed_del_of_an_attached_pod_ends_the_chain_and_is_repeated() {
    let world = World::new("1.0.0");
    let network = world.start();
    let request = attachment();
    network.attach(&request).await.unwrap();
    world.forget_calls();
    world.hook("DEL-b", "exit 1");
    network.detach(&request).await.unwrap_err();
    // The specification's order: nothing after the failed plugin, which may rely on what the others hold.
    assert_eq!(world.calls(), ["DEL c", "DEL b"]);
    world.unhook("DEL-b");
    world.forget_calls();
    network.detach(&request).await.unwrap();
    assert_eq!(world.calls(), DEL);
}

#[tokio::test]
async fn a_refused_configuration_leaves_no_pod_that_cannot_be_detached() {
    let world = World::new("1.0.0");
    let refuse = r#"echo '{"code":1,"msg":"incompatible CNI versions"}'; exit 1"#;
    for hook in ["ADD-b", "DEL-b", "DEL-c"] {
        world.hook(hook, refuse);
    }
    let error = world.start().attach(&attachment()).await.unwrap_err();
    assert!(matches!(error, NetworkError::Plugin { .. }), "{error}");
    assert_eq!(world.calls(), ["ADD a", "ADD b", "DEL c", "DEL b", "DEL a"]);
    assert!(world.cached().is_empty());
}

#[tokio::test]
async fn an_add_that_was_cut_off_is_undone_with_its_own_configuration() {
    let world = World::new("1.0.0");
    world.hook("ADD-b", "exec sleep 1000");
    let network = world.start();
    let request = with_port();
    let attach = tokio::spawn({
        let (network, request) = (network.clone(), request.clone());
        async move { network.attach(&request).await }
    });
    until("ADD b", || world.calls().len() == 2).await;
    attach.abort();
    assert!(attach.await.unwrap_err().is_cancelled());
    drop(network);
    world.conf("10-n.conflist", r#"{"cniVersion":"1.0.0","name":"other","plugins":[{"type":"a"}]}"#);
    world.forget_calls();
    let network = world.start();
    assert_eq!(network.readiness(), ready_with("other"));
    // Errors count, since there may be something to release.
    world.hook("DEL-a", "exit 1");
    network.detach(&request).await.unwrap_err();
    world.unhook("DEL-a");
    world.forget_calls();
    network.detach(&request).await.unwrap();
    assert_eq!(world.calls(), DEL);
    assert_eq!(world.stdin(2)["runtimeConfig"]["portMappings"][0]["hostPort"], 8080);
    assert!(world.cached().is_empty());
}

#[tokio::test]
async fn without_an_attachment_del_is_tried_and_its_errors_do_not_count() {
    let world = World::new("1.0.0");
    world.hook("DEL", "exit 1");
    let network = world.start();
    network.detach(&attachment()).await.unwrap();
    assert_eq!(world.calls(), DEL);
    let empty = World::bare("1.0.0");
    empty.start().detach(&attachment()).await.unwrap();
    assert!(empty.calls().is_empty());
}

#[tokio::test]
async fn a_lost_namespace_is_not_passed_on() {
    let world = World::new("1.0.0");
    let network = world.start();
    for plain in [true, false] {
        let mut request = attachment();
        request.netns = Some("/proc/self/ns/net".into());
        network.attach(&request).await.unwrap();
        world.forget_calls();
        let file = world.path("netns-file");
        if plain {
            std::fs::write(&file, "").unwrap();
        }
        request.netns = Some(file.clone());
        network.detach(&request).await.unwrap();
        assert_eq!(world.env(1)["CNI_NETNS"], "");
        drop(std::fs::remove_file(file));
    }
}

#[tokio::test]
async fn an_unknown_container_is_detached_already() {
    let world = World::new("1.0.0");
    let network = world.start();
    let request = attachment();
    network.attach(&request).await.unwrap();
    world.hook("DEL-c", r#"echo '{"code":3,"msg":"unknown"}'; exit 1"#);
    network.detach(&request).await.unwrap();
    assert!(world.cached().is_empty());
}

#[tokio::test]
async fn a_hung_plugin_is_killed_at_its_deadline() {
    let mut world = World::new("1.0.0");
    world.config.add_timeout_seconds = 1;
    world.hook("ADD-a", "sleep 1000 & echo $! > $d/pid; echo waiting >&2; wait");
    let network = world.start();
    let timed_out = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&timed_out);
    network.observe_plugins(move |call| {
        if call.outcome == CallOutcome::TimedOut && call.plugin == "a" && call.verb == Verb::Add {
            seen.fetch_add(1, Ordering::Relaxed);
        }
    });
    let error = network.attach(&attachment()).await.unwrap_err().to_string();
    assert!(error.contains("ADD for pod web_ns_u-1_0: no answer within 1s; killed: waiting"), "{error}");
    assert_eq!(timed_out.load(Ordering::Relaxed), 1);
    let pid = std::fs::read_to_string(world.path("pid")).unwrap();
    let process = PathBuf::from(format!("/proc/{}", pid.trim()));
    until("its child is gone", || !process.exists()).await;
}

#[tokio::test]
async fn bad_answers_fail_the_add() {
    for (hook, message) in [
        ("exit 0", "bad result: nothing on stdout"),
        ("echo hello; exit 0", "bad result: expected value"),
        ("head -c 2000000 /dev/zero; exit 0", "bad result: more than 1048576 bytes"),
        ("echo '{\"cniVersion\":\"1.0.0\"}'; exit 0", "no address for eth0 of pod web_ns_u-1_0"),
        ("exit 4", "exit status: 4, without a word"),
        ("kill -9 $$", "signal: 9"),
        ("echo '{\"code\":100,\"msg\":\"mine\"}' >&2; exit 1", "mine (code 100)"),
    ] {
        let world = World::new("1.0.0");
        world.hook("ADD-c", hook);
        let error = world.start().attach(&attachment()).await.unwrap_err().to_string();
        assert!(error.contains(message), "{hook}: {error}");
        assert_eq!(world.calls()[3..], DEL);
    }
}

#[tokio::test]
async fn a_missing_plugin_is_told_with_where_it_was_looked_for() {
    let world = World::new("1.0.0");
    std::fs::remove_file(world.path("bin/b")).unwrap();
    let network = world.start();
    let Readiness::NotReady { reason } = network.readiness() else { panic!() };
    assert!(
        reason.starts_with("CNI network n: no executable b in ") && reason.contains("/absent"),
        "{reason}"
    );
    let error = network.attach(&attachment()).await.unwrap_err().to_string();
    assert!(
        error.contains("plugin b of network n: ADD") && error.contains("no executable of that name in"),
        "{error}"
    );
}

#[tokio::test]
async fn a_plugin_that_is_being_replaced_is_awaited() {
    let world = World::new("1.0.0");
    let network = world.start();
    let writer = std::fs::OpenOptions::new().append(true).open(world.path("bin/a")).unwrap();
    let attach = tokio::spawn(async move { network.attach(&attachment()).await });
    tokio::time::sleep(plugin::TEXT_BUSY_PAUSE / 2).await;
    assert!(world.calls().is_empty());
    drop(writer);
    attach.await.unwrap().unwrap();
}

#[tokio::test]
async fn status_of_version_1_1_decides_readiness() {
    let world = World::new("1.1.0");
    world.hook("STATUS-b", r#"echo '{"code":50,"msg":"no route daemon"}'; exit 1"#);
    let network = world.start();
    assert!(matches!(network.readiness(), Readiness::NotReady { .. }));
    until("the plugin's reason", || {
        matches!(network.readiness(), Readiness::NotReady { reason } if reason.contains("STATUS: no route daemon (code 50)"))
    })
    .await;
    assert_eq!(world.calls(), ["STATUS a", "STATUS b"]);
    // An immediate second query does not call the plugins.
    drop(network.readiness());
    assert_eq!(world.calls().len(), 2);
    // Another configuration is another question.
    world.unhook("STATUS-b");
    world.conf("05-m.conflist", r#"{"cniVersion":"1.1.0","name":"m","plugins":[{"type":"b"}]}"#);
    until("ready", || network.readiness() == ready_with("m")).await;
    assert_eq!(world.calls()[2..], ["STATUS b"]);
}

#[tokio::test]
async fn the_configuration_may_come_late_go_and_come_back() {
    let world = World::bare("1.0.0");
    let mut config = world.config.clone();
    config.conf_dir = world.path("etc/cni/net.d");
    let network = Network::start(&config).unwrap();
    let unready =
        |word: &str| matches!(network.readiness(), Readiness::NotReady { reason } if reason.contains(word));
    let ready = |name: &str| network.readiness() == ready_with(name);
    assert!(unready("no CNI configuration in ") && unready("No such file"));
    let error = network.attach(&attachment()).await.unwrap_err();
    assert!(matches!(error, NetworkError::NotConfigured { .. }));
    let list = |name: &str| format!(r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{{"type":"a"}}]}}"#);
    std::fs::create_dir_all(&config.conf_dir).unwrap();
    std::fs::write(config.conf_dir.join("20.conflist"), list("first")).unwrap();
    until("first", || ready("first")).await;
    // By rename, as installers do.
    std::fs::write(world.path("new"), list("second")).unwrap();
    std::fs::rename(world.path("new"), config.conf_dir.join("10.conflist")).unwrap();
    until("second", || ready("second")).await;
    std::fs::remove_file(config.conf_dir.join("10.conflist")).unwrap();
    until("first again", || ready("first")).await;
    std::fs::write(config.conf_dir.join("20.conflist"), "{").unwrap();
    until("broken", || unready("20.conflist: EOF")).await;
    std::fs::remove_dir_all(world.path("etc")).unwrap();
    until("gone", || unready("No such file")).await;
    std::fs::create_dir_all(&config.conf_dir).unwrap();
    std::fs::write(config.conf_dir.join("30.conf"), r#"{"name":"third","type":"a"}"#).unwrap();
    until("third", || ready("third")).await;
    assert_eq!(network.config_summary()["plugins"], json!(["a"]));
    assert_eq!(network.config_summary()["cniVersion"], "0.1.0");
}

#[tokio::test]
async fn a_drop_in_is_noticed() {
    let world = World::bare("1.1.0");
    world.conf("n.conflist", r#"{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"a"}]}"#);
    let network = world.start();
    let plugins = || network.config_summary()["plugins"].clone();
    assert_eq!(plugins(), json!(["a"]));
    std::fs::create_dir(world.path("conf/n")).unwrap();
    std::fs::write(world.path("conf/n/1.conf"), r#"{"type":"b"}"#).unwrap();
    until("b", || plugins() == json!(["a", "b"])).await;
    std::fs::write(world.path("conf/n/2.conf"), r#"{"type":"c"}"#).unwrap();
    until("c", || plugins() == json!(["a", "b", "c"])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_pods_at_once_leave_nothing() {
    let world = World::new("1.0.0");
    let network = world.start();
    let mut pods = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (network, request) = (network.clone(), attachment());
        pods.spawn(async move {
            network.attach(&request).await.unwrap();
            network.detach(&request).await.unwrap();
        });
    }
    while let Some(end) = pods.join_next().await {
        end.unwrap();
    }
    assert_eq!(world.calls().len(), 600);
    assert!(world.cached().is_empty());
}

#[tokio::test]
async fn collection_takes_only_what_is_ours_and_stale() {
    let world = World::new("1.1.0");
    let network = world.start();
    let (stale, valid) = (attachment(), attachment());
    network.attach(&stale).await.unwrap();
    network.attach(&valid).await.unwrap();
    // As containerd writes it, for a sandbox of its own.
    let foreign = SandboxId::random().unwrap();
    let entry = json!({"kind": "cniCacheV1", "containerId": foreign, "config": "e30=", "ifName": "eth0",
        "networkName": "n", "netns": "", "cniArgs": [["K8S_POD_INFRA_CONTAINER_ID", foreign]],
        "result": {"cniVersion": "1.0.0"}});
    std::fs::write(world.path(&format!("cache/results/n-{foreign}-eth0")), entry.to_string()).unwrap();
    // This process's own attachments are never stale for it.
    network.collect(&[]).await;
    assert_eq!(world.cached().len(), 3);
    drop(network);
    let network = world.start();
    until("checked", || network.readiness() == ready_with("n")).await;
    world.forget_calls();
    network.collect(std::slice::from_ref(&valid.sandbox)).await;
    assert_eq!(world.calls()[..3], DEL);
    assert_eq!(world.env(1)["CNI_CONTAINERID"], stale.sandbox.to_string());
    assert_eq!(world.calls()[3..], ["GC a", "GC b", "GC c"]);
    let sent = world.stdin(4)["cni.dev/valid-attachments"].clone();
    let mut kept: Vec<&str> =
        sent.as_array().unwrap().iter().map(|a| a["containerID"].as_str().unwrap()).collect();
    kept.sort_unstable();
    let mut want = [valid.sandbox.as_str(), foreign.as_str()];
    want.sort_unstable();
    assert_eq!(kept, want);
    assert_eq!(sent[0]["ifname"], "eth0");
    assert_eq!(world.cached().len(), 2);
}

#[tokio::test]
async fn a_check_asks_each_plugin_in_order_with_what_add_gave() {
    let world = World::new("1.0.0");
    let network = world.start();
    let request = with_port();
    let netns = Path::new("/proc/self/ns/net");
    assert_eq!(network.check(&request.sandbox, netns).await.unwrap(), Checkup::Unasked);
    network.attach(&request).await.unwrap();
    world.forget_calls();
    assert_eq!(network.check(&request.sandbox, netns).await.unwrap(), Checkup::Well);
    assert_eq!(world.calls(), ["CHECK a", "CHECK b", "CHECK c"]);
    for n in 1..=3 {
        assert_eq!(world.stdin(n)["prevResult"]["by"], "c");
    }
    assert_eq!(world.stdin(2)["runtimeConfig"]["portMappings"][0]["hostPort"], 8080);
    assert_eq!(world.env(1)["CNI_NETNS"], "/proc/self/ns/net");
    world.hook("CHECK-b", r#"echo '{"code":101,"msg":"eth0 is gone"}'; exit 1"#);
    let error = network.check(&request.sandbox, netns).await.unwrap_err().to_string();
    assert_eq!(error, "CNI plugin b of network n: CHECK for pod ns/web: eth0 is gone (code 101)");
    network.detach(&request).await.unwrap();
}

#[tokio::test]
async fn a_check_that_hangs_gives_way_to_the_detach() {
    let world = World::new("1.0.0");
    world.hook("CHECK-a", "echo $$ > $d/pid; exec sleep 1000");
    let network = world.start();
    let request = attachment();
    network.attach(&request).await.unwrap();
    let check = tokio::spawn({
        let (network, sandbox) = (network.clone(), request.sandbox.clone());
        async move { network.check(&sandbox, Path::new("")).await }
    });
    until("CHECK a", || world.path("pid").exists()).await;
    network.detach(&request).await.unwrap();
    assert_eq!(check.await.unwrap().unwrap(), Checkup::Overtaken);
    assert!(world.cached().is_empty());
}

#[tokio::test]
async fn what_wants_no_check_is_not_asked() {
    for top in [r#""cniVersion":"1.0.0","disableCheck":true"#, r#""cniVersion":"0.3.1""#] {
        let world = World::bare("0.3.1");
        world.conf("n.conflist", &format!(r#"{{{top},"name":"n","plugins":[{{"type":"a"}}]}}"#));
        let (network, request) = (world.start(), attachment());
        network.attach(&request).await.unwrap();
        assert_eq!(network.check(&request.sandbox, Path::new("")).await.unwrap(), Checkup::Unasked);
        assert_eq!(world.calls(), ["ADD a"]);
    }
}

#[tokio::test]
async fn disabled_or_older_networks_are_not_asked_to_collect() {
    for top in [r#""cniVersion":"1.1.0","disableGC":true"#, r#""cniVersion":"1.0.0""#] {
        let world = World::bare("1.0.0");
        world.conf("n.conflist", &format!(r#"{{{top},"name":"n","plugins":[{{"type":"a"}}]}}"#));
        world.start().collect(&[]).await;
        assert!(world.calls().iter().all(|call| !call.starts_with("GC")));
    }
}

#[tokio::test]
async fn an_attachment_of_containerd_can_be_detached() {
    use base64::Engine as _;
    let world = World::bare("1.0.0");
    let list = r#"{"cniVersion":"0.4.0","name":"k8s-pod-network","plugins":[{"type":"a"},{"type":"b","capabilities":{"portMappings":true}}]}"#;
    let request = attachment();
    let entry = json!({"kind": "cniCacheV1", "containerId": request.sandbox, "ifName": "eth0",
        "config": base64::engine::general_purpose::STANDARD.encode(list), "networkName": "k8s-pod-network",
        "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAME", "p"]],
        "capabilityArgs": {"portMappings": [{"HostPort": 1, "ContainerPort": 2, "Protocol": "tcp", "HostIP": ""}]},
        "result": {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]}});
    std::fs::create_dir_all(world.path("cache/results")).unwrap();
    let file = world.path(&format!("cache/results/k8s-pod-network-{}-eth0", request.sandbox));
    std::fs::write(&file, entry.to_string()).unwrap();
    world.start().detach(&request).await.unwrap();
    assert_eq!(world.calls(), ["DEL b", "DEL a"]);
    assert_eq!(world.stdin(1)["runtimeConfig"]["portMappings"][0]["HostPort"], 1);
    // Converted to the version of the configuration.
    let converted = json!({"cniVersion": "0.4.0", "ips": [{"address": "10.0.0.2/24", "version": "4"}]});
    assert_eq!(world.stdin(1)["prevResult"], converted);
    assert_eq!(world.env(1)["CNI_ARGS"], "IgnoreUnknown=1;K8S_POD_NAME=p");
    assert!(!file.exists());
}

#[tokio::test]
async fn a_torn_cache_entry_counts_as_missing() {
    let world = World::new("1.0.0");
    let network = world.start();
    let request = attachment();
    network.attach(&request).await.unwrap();
    let file = world.path(&format!("cache/results/n-{}-eth0", request.sandbox));
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    world.forget_calls();
    network.detach(&request).await.unwrap();
    assert_eq!(world.calls(), DEL);
    assert!(world.stdin(1).get("prevResult").is_none());
    assert!(world.cached().is_empty());
}

#[tokio::test]
async fn results_are_converted_along_the_chain() {
    let world = World::new("1.0.0");
    executable(
        &world.path("bin/a"),
        r#"#!/bin/sh
[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.2/24"}}'
exit 0
"#,
    );
    world.start().attach(&attachment()).await.unwrap();
    assert_eq!(
        world.stdin(1)["prevResult"],
        json!({"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}]})
    );
}
