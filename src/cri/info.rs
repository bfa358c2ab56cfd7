//! The `info` maps of verbose answers, which crictl prints: JSON under the key `info`, with the names that crictl and
//! scripts read (`pid`, `runtimeSpec`, `sandboxID`).

use super::proto as pb;
use crate::images::{Image, ImageConfig, ImageKind};
use crate::sandbox::{ContainerSnapshot, ContainerState, Manager, Node, PodSnapshot, SandboxState};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;

type Info = HashMap<String, String>;

fn info(value: &Value) -> Info {
    HashMap::from([("info".to_owned(), value.to_string())])
}

pub(super) fn sandbox(pod: &PodSnapshot) -> Info {
    let monitor = pod.monitor.as_ref().map(|m| {
        let info = m.info();
        json!({ "pid": info.process.pid, "namespaces": info.namespaces })
    });
    let (cause, network) = match &pod.state {
        SandboxState::NotReady { why, .. } => (json!(why), Value::Null),
        SandboxState::Preparing => (Value::Null, Value::Null),
        SandboxState::Ready { network } => (Value::Null, json!(network)),
    };
    info(&json!({
        // There is no pause process: the monitor takes its place.
        "pid": pod.monitor.as_ref().map(|m| m.info().process.pid),
        "state": pod.state.name(),
        "cause": cause,
        // Includes the interfaces that do not give the pod's addresses.
        "network": network,
        "monitor": monitor,
        "runtimeHandler": pod.runtime.name(),
        "limits": pod.limits(),
        "config": *pod.spec,
    }))
}

pub(super) fn container(node: &Node, pod: &PodSnapshot, container: &ContainerSnapshot) -> Info {
    let config = node.places.bundle(&container.spec.id).join("config.json");
    let runtime_spec: Value =
        std::fs::read(config).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or(Value::Null);
    let pid = match &container.state {
        ContainerState::Running { init, .. } => init.pid,
        ContainerState::Creating
        | ContainerState::Created
        | ContainerState::Starting
        | ContainerState::Exited { .. } => 0,
    };
    info(&json!({
        "sandboxID": container.spec.sandbox_id,
        "pid": pid,
        "runtimeHandler": pod.runtime.name(),
        "config": *container.spec,
        "runtimeSpec": runtime_spec,
    }))
}

pub(super) fn image(image: &Image, config: &ImageConfig) -> Info {
    let artifact_type = match &image.kind {
        ImageKind::Image | ImageKind::Checkpoint => None,
        ImageKind::Artifact { config_type } => Some(config_type),
    };
    info(&json!({
        "artifactConfigType": artifact_type,
        "isCheckpoint": image.kind == ImageKind::Checkpoint,
        "chainID": image.chain_id,
        "imageSpec": { "config": config, "rootfs": { "type": "layers", "diff_ids": image.diff_ids } },
    }))
}

pub(super) fn node(node: &Node) -> Info {
    let text = |value: &Value| value.to_string();
    let selinux = node.selinux.as_ref().map(|selinux| {
        let contexts = selinux.contexts();
        json!({
            "enforcing": selinux.enforcing(),
            "process": contexts.process.to_string(),
            "file": contexts.file.to_string(),
        })
    });
    HashMap::from([
        ("config".to_owned(), text(&json!(node.config))),
        ("cniconfig".to_owned(), text(&node.network.config_summary())),
        ("runtimes".to_owned(), text(&json!(node.handlers.runtimes.names()))),
        ("writableLayers".to_owned(), text(&json!(node.layers.mode()))),
        ("cgroupMode".to_owned(), text(&json!(format!("{:?}", node.cgroups.kernel.mode())))),
        ("selinux".to_owned(), text(&json!(selinux))),
        ("cgroupDriver".to_owned(), text(&json!(node.cgroups.driver.name()))),
    ])
}

/// One entry per handler, and one with an empty name for the default; sorted by name.
pub(super) async fn handlers(node: &Arc<Node>) -> Vec<pb::RuntimeHandler> {
    let mut names = node.handlers.runtimes.names();
    names.push(String::new());
    names.sort();
    let mut handlers = Vec::new();
    for name in names {
        let features = pb::RuntimeHandlerFeatures {
            recursive_read_only_mounts: node.handlers.recursive_read_only(&name),
            user_namespaces: node.user_namespaces.have(&name).await,
        };
        handlers.push(pb::RuntimeHandler { name, features: Some(features) });
    }
    handlers
}

/// CRI's number of the signal that StopContainer would send.
pub(super) fn stop_signal(pods: &Manager, container: &ContainerSnapshot) -> i32 {
    let image_signal =
        || pods.node().images.status(container.spec.image.id.as_str()).map(|i| i.stop_signal.clone());
    let number = container
        .spec
        .stop_signal
        .or_else(|| image_signal().and_then(|name| crate::host::oci::signal_number(&name)))
        .unwrap_or(15);
    let name = match crate::host::oci::signal_name(number) {
        Some(name) => format!("SIGNAL_{}", name.replace('+', "PLUS").replace('-', "MINUS")),
        None => return pb::Signal::RuntimeDefault.into(),
    };
    pb::Signal::from_str_name(&name).unwrap_or(pb::Signal::RuntimeDefault).into()
}
