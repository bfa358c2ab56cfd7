//! Pods with several networks, seen by fake plugins.

use super::fixture::{World, attachment, executable};
use super::*;
use serde_json::json;

/// Plugins a, b and c, networks n (a, b, c) and m (b, a), both for each pod.
fn two(version: &str) -> World {
    let mut world = World::new(version);
    world.config.max_conf_num = 2;
    let plugins = r#"[{"type":"b","capabilities":{"portMappings":true}},{"type":"a"}]"#;
    world.conf("20-m.conflist", &format!(r#"{{"cniVersion":"{version}","name":"m","plugins":{plugins}}}"#));
    world.conf("30-unused.json", r#"{"name":"unused","type":"c"}"#);
    world
}

/// `<verb> <plugin> <network> <interface>` of all calls so far.
fn calls(world: &World) -> Vec<String> {
    let one = |(index, call): (usize, String)| {
        let network = world.stdin(index + 1)["name"].as_str().unwrap().to_owned();
        let interface = world.env(index + 1).remove("CNI_IFNAME").unwrap_or_default();
        format!("{call} {network} {interface}")
    };
    world.calls().into_iter().enumerate().map(one).collect()
}

const ADD: [&str; 5] = ["ADD a n eth0", "ADD b n eth0", "ADD c n eth0", "ADD b m eth1", "ADD a m eth1"];
const DEL: [&str; 5] = ["DEL a m eth1", "DEL b m eth1", "DEL c n eth0", "DEL b n eth0", "DEL a n eth0"];

#[tokio::test]
async fn each_has_an_interface_and_the_first_has_the_address() {
    let world = two("1.0.0");
    let network = world.start();
    let both = Readiness::Ready { networks: vec!["n".into(), "m".into()] };
    assert_eq!(network.readiness(), both);
    let summary = network.config_summary();
    assert_eq!((&summary["maxConfNum"], &summary["network"]), (&json!(2), &json!("n")));
    let file = world.path("conf/20-m.conflist");
    let further =
        json!([{"interface":"eth1","network":"m","cniVersion":"1.0.0","file":file,"plugins":["b","a"]}]);
    assert_eq!(summary["furtherNetworks"], further);

    let mut request = attachment();
    request.port_mappings.push(PortMapping {
        protocol: crate::model::Protocol::Tcp,
        container_port: 80,
        host_port: 8080,
        host_ip: None,
    });
    // The second network's plugins report eth1; one of them no address at all.
    executable(
        &world.path("hook-ADD-a"),
        r#"[ $CNI_IFNAME = eth1 ] && { echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth1","mac":"02:00:00:00:00:02"}],"ips":[{"address":"10.6.0.9/24","interface":0}]}'; exit 0; }"#,
    );
    let got = network.attach(&request).await.unwrap();
    assert_eq!(got.ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.5.0.2", "fd00::2"]);
    let expected = FurtherInterface {
        network: "m".into(),
        interface: "eth1".into(),
        ips: vec!["10.6.0.9".parse().unwrap()],
        mac: Some("02:00:00:00:00:02".into()),
    };
    assert_eq!(got.further, [expected]);
    assert_eq!(calls(&world), ADD);
    // The preceding plugins of the other network are not this one's.
    assert!(world.stdin(4).get("prevResult").is_none());
    assert_eq!(world.stdin(5)["prevResult"]["by"], "b");
    // Each plugin that declares the capability gets the port, in whatever network.
    let told = |n: usize| world.stdin(n).get("runtimeConfig").is_some();
    assert_eq!([1, 2, 3, 4, 5].map(told), [false, true, false, true, false]);
    assert_eq!(world.cached().len(), 2);

    // A daemon that has another configuration by now ends both.
    drop(network);
    for name in ["10-n.conflist", "20-m.conflist"] {
        std::fs::remove_file(world.path(&format!("conf/{name}"))).unwrap();
    }
    world.forget_calls();
    world.start().detach(&request).await.unwrap();
    assert_eq!(calls(&world), DEL);
    assert_eq!(world.stdin(1)["prevResult"]["ips"][0]["address"], "10.6.0.9/24");
    assert!(world.cached().is_empty());
}

#[tokio::test]
async fn a_further_network_may_give_no_address_but_the_first_must() {
    let world = two("1.0.0");
    let network = world.start();
    let none = |interface: &str| {
        world.hook(
            "ADD",
            &format!(r#"[ $CNI_IFNAME = {interface} ] && {{ echo '{{"cniVersion":"1.0.0"}}'; exit 0; }}"#),
        );
    };
    none("eth1");
    let request = attachment();
    let got = network.attach(&request).await.unwrap();
    assert_eq!((got.further[0].ips.as_slice(), got.further[0].mac.as_deref()), ([].as_slice(), None));
    network.detach(&request).await.unwrap();
    none("eth0");
    let error = network.attach(&attachment()).await.unwrap_err();
    assert!(matches!(error, NetworkError::NoAddress { .. }), "{error}");
    assert!(world.cached().is_empty());
}

#[tokio::test]
async fn when_one_fails_those_before_it_are_detached_again() {
    let world = two("1.0.0");
    world.hook("ADD-a", r#"[ $CNI_IFNAME = eth1 ] && { echo '{"code":7,"msg":"full"}'; exit 1; }"#);
    let network = world.start();
    let error = network.attach(&attachment()).await.unwrap_err().to_string();
    assert_eq!(error, "CNI plugin a of network m: ADD for pod web_ns_u-1_0: full (code 7)");
    assert_eq!(calls(&world), [ADD, DEL].concat());
    assert!(world.cached().is_empty());
    assert!(lock(&network.inner.attached).is_empty());
}

#[tokio::test]
async fn what_of_the_first_is_not_undone_is_detached_later() {
    let world = two("1.0.0");
    world.hook("ADD-b", r#"[ $CNI_IFNAME = eth1 ] && exit 1"#);
    world.hook("DEL-c", "exit 1");
    let network = world.start();
    let request = attachment();
    let error = network.attach(&request).await.unwrap_err();
    assert!(matches!(error, NetworkError::NotUndone { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("b of network m: ADD") && text.contains("c of network n: DEL"), "{text}");
    assert_eq!(world.cached(), [format!("n-{}-eth0", request.sandbox)]);
    world.unhook("DEL-c");
    world.forget_calls();
    network.detach(&request).await.unwrap();
    assert_eq!(calls(&world), DEL[2..]);
    assert!(world.cached().is_empty());
}

#[tokio::test]
async fn a_failed_del_of_one_leaves_the_other_detached() {
    let world = two("1.0.0");
    let network = world.start();
    let request = attachment();
    network.attach(&request).await.unwrap();
    world.hook("DEL-b", r#"[ $CNI_IFNAME = eth1 ] && exit 1"#);
    let error = network.detach(&request).await.unwrap_err().to_string();
    assert!(error.starts_with("CNI plugin b of network m: DEL"), "{error}");
    assert_eq!(world.cached(), [format!("m-{}-eth1", request.sandbox)]);
    world.unhook("DEL-b");
    world.forget_calls();
    network.detach(&request).await.unwrap();
    assert_eq!(calls(&world), DEL[..2]);

    // Both fail, and both errors are reported.
    network.attach(&request).await.unwrap();
    world.hook("DEL-a", "exit 1");
    let error = network.detach(&request).await.unwrap_err();
    assert!(matches!(&error, NetworkError::NotDetached(failures) if failures.0.len() == 2), "{error}");
    let text = error.to_string();
    assert!(text.contains("network m: DEL") && text.contains("; CNI plugin a of network n: DEL"), "{text}");
    assert_eq!(world.cached().len(), 2);
}

#[tokio::test]
async fn an_add_that_was_cut_off_in_the_second_is_undone_in_both() {
    let world = two("1.0.0");
    world.hook("ADD-b", "[ $CNI_IFNAME = eth1 ] && { echo > $d/waits; exec sleep 1000; }");
    let network = world.start();
    let request = attachment();
    let attach = network.attach(&request);
    let begun = async {
        while !world.path("waits").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        got = attach => panic!("{got:?}"),
        () = begun => {}
    }
    drop(network);
    let network = world.start();
    network.detach(&request).await.unwrap();
    assert_eq!(calls(&world)[4..], DEL);
    assert!(world.cached().is_empty());
}

#[tokio::test]
async fn a_pod_of_one_network_stays_one_of_one() {
    let mut world = two("1.0.0");
    world.config.max_conf_num = 1;
    let request = attachment();
    world.start().attach(&request).await.unwrap();
    assert_eq!(calls(&world), ADD[..3]);
    // Written by a meta plugin that takes its configuration from elsewhere, and its own to detach.
    let id = request.sandbox.as_str();
    let foreign = json!({"kind": "cniCacheV1", "containerId": id, "config": "e30=", "ifName": "eth1",
        "networkName": "m", "cniArgs": [["K8S_POD_INFRA_CONTAINER_ID", id]], "result": {"cniVersion": "1.0.0"}});
    std::fs::write(world.path(&format!("cache/results/m-{id}-eth1")), foreign.to_string()).unwrap();
    world.config.max_conf_num = 0;
    world.forget_calls();
    let network = world.start();
    assert!(matches!(network.readiness(), Readiness::Ready { networks } if networks.len() == 3));
    assert_eq!(network.check(&request.sandbox, Path::new("")).await.unwrap(), Checkup::Well);
    network.detach(&request).await.unwrap();
    let check = ["CHECK a n eth0", "CHECK b n eth0", "CHECK c n eth0"];
    assert_eq!(calls(&world), [check, [DEL[2], DEL[3], DEL[4]]].concat());
    assert_eq!(world.cached(), [format!("m-{id}-eth1")]);
}

#[tokio::test]
async fn one_torn_entry_costs_nothing_of_the_other() {
    let world = two("1.0.0");
    let network = world.start();
    let request = attachment();
    network.attach(&request).await.unwrap();
    std::fs::write(world.path(&format!("cache/results/m-{}-eth1", request.sandbox)), "{").unwrap();
    world.forget_calls();
    world.hook("DEL", "[ $CNI_IFNAME = eth1 ] && exit 1");
    network.detach(&request).await.unwrap();
    // The known ones first; DEL is tried for the other.
    assert_eq!(calls(&world), [DEL[2], DEL[3], DEL[4], DEL[0], DEL[1]]);
    assert!(world.cached().is_empty());
}

#[tokio::test]
async fn all_are_checked_asked_and_collected() {
    let world = two("1.1.0");
    let network = world.start();
    let ready = || matches!(network.readiness(), Readiness::Ready { .. });
    let asked = async {
        while !ready() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), asked).await.unwrap();
    let status = ["STATUS a n ", "STATUS b n ", "STATUS c n ", "STATUS b m ", "STATUS a m "];
    assert_eq!(calls(&world), status);
    let (valid, stale) = (attachment(), attachment());
    network.attach(&valid).await.unwrap();
    network.attach(&stale).await.unwrap();
    world.forget_calls();
    assert_eq!(network.check(&valid.sandbox, Path::new("")).await.unwrap(), Checkup::Well);
    assert_eq!(calls(&world), ADD.map(|call| call.replace("ADD", "CHECK")));
    world.hook("CHECK-a", "[ $CNI_IFNAME = eth1 ] && exit 1");
    let error = network.check(&valid.sandbox, Path::new("")).await.unwrap_err().to_string();
    assert!(error.starts_with("CNI plugin a of network m: CHECK"), "{error}");

    // The next daemon collects.
    drop(network);
    world.forget_calls();
    let network = world.start();
    network.collect(std::slice::from_ref(&valid.sandbox)).await;
    let calls: Vec<_> = calls(&world).into_iter().filter(|call| !call.starts_with("STATUS")).collect();
    let gc = ["GC a n ", "GC b n ", "GC c n ", "GC b m ", "GC a m "];
    assert_eq!(calls, [DEL, gc].concat());
    for (n, call) in world.calls().into_iter().enumerate().filter(|(_, call)| call.starts_with("GC")) {
        let sent = world.stdin(n + 1);
        let interface = if sent["name"] == "n" { "eth0" } else { "eth1" };
        let only = json!([{"containerID": valid.sandbox, "ifname": interface}]);
        assert_eq!(sent["cni.dev/valid-attachments"], only, "{call}");
    }
    assert_eq!(world.cached().len(), 2);
}
