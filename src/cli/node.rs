//! `podwright status` and `podwright pods`: the running daemon's state and its pods.

use super::arguments::{NodeArguments, Output};
use super::connection;
use super::error::CliError;
use super::{out, text};
use crate::admin::proto as pb;
use crate::admin::proto::node_client::NodeClient;
use crate::model::plain;
use serde_json::{Value, json};
use tonic::transport::Channel;

async fn client(arguments: &NodeArguments) -> Result<NodeClient<Channel>, CliError> {
    let (channel, limit) =
        connection::daemon(arguments.config.as_deref(), arguments.socket.as_deref()).await?;
    Ok(NodeClient::new(channel).max_decoding_message_size(limit))
}

/// `status`.
pub(super) async fn status(arguments: NodeArguments) -> Result<(), CliError> {
    let answer = client(&arguments).await?.status(pb::StatusRequest {}).await?.into_inner();
    match arguments.output {
        Output::Text => out::line(&status_text(&answer)),
        Output::Json => out::json(&status_json(&answer)),
    }
    Ok(())
}

/// `pods`.
pub(super) async fn pods(arguments: NodeArguments, id: String) -> Result<(), CliError> {
    let answer = client(&arguments).await?.pods(pb::PodsRequest { id }).await?.into_inner();
    match arguments.output {
        Output::Text => out::line(&pods_text(&answer)),
        Output::Json => out::json(&pods_json(&answer)),
    }
    Ok(())
}

fn status_text(answer: &pb::StatusResponse) -> String {
    let up = text::age(answer.uptime_seconds.saturating_mul(1000));
    let mut lines = vec![format!("podwright {}, pid {}, up {up}", answer.version, answer.pid)];
    for condition in &answer.conditions {
        lines.push(match condition.ok {
            true => format!("{:<11} yes", condition.name),
            false => {
                let why = plain::marked(&condition.message);
                format!("{:<11} no: {}: {why}", condition.name, condition.reason)
            }
        });
    }
    lines.push(format!("pods         {} ready, {} not ready", answer.pods_ready, answer.pods_not_ready));
    lines.push(format!(
        "containers   {} created, {} running, {} exited",
        answer.containers_created, answer.containers_running, answer.containers_exited
    ));
    lines.push(format!(
        "streams      {} open, served at {}",
        answer.sessions.len(),
        answer.streaming_address
    ));
    if !answer.sessions.is_empty() {
        let head = ["KIND", "POD", "CONTAINER", "AGE", "SENT", "RECEIVED", "PROTOCOL"];
        let row = |session: &pb::Session| {
            let or = |name: &str, id: &str| {
                if name.is_empty() { text::short(id).to_owned() } else { name.to_owned() }
            };
            vec![
                session.kind.clone(),
                or(&session.pod_name, &session.pod_id),
                or(&session.container_name, &session.container_id),
                text::age(session.age_milliseconds),
                text::bytes(session.sent_bytes),
                text::bytes(session.received_bytes),
                session.protocol.clone(),
            ]
        };
        let rows: Vec<_> = answer.sessions.iter().map(row).collect();
        lines.push(String::new());
        lines.push(text::table(&head, &[3, 4, 5], &rows));
    }
    lines.join("\n")
}

fn status_json(answer: &pb::StatusResponse) -> Value {
    let condition =
        |c: &pb::Condition| json!({ "name": c.name, "ok": c.ok, "reason": c.reason, "message": c.message });
    let session = |s: &pb::Session| {
        json!({
            "kind": s.kind,
            "pod_id": s.pod_id,
            "pod_name": s.pod_name,
            "pod_namespace": s.pod_namespace,
            "container_id": s.container_id,
            "container_name": s.container_name,
            "protocol": s.protocol,
            "age_milliseconds": s.age_milliseconds,
            "sent_bytes": s.sent_bytes,
            "received_bytes": s.received_bytes,
        })
    };
    json!({
        "version": answer.version,
        "pid": answer.pid,
        "uptime_seconds": answer.uptime_seconds,
        "streaming_address": answer.streaming_address,
        "conditions": answer.conditions.iter().map(condition).collect::<Vec<_>>(),
        "pods": { "ready": answer.pods_ready, "not_ready": answer.pods_not_ready },
        "containers": {
            "created": answer.containers_created,
            "running": answer.containers_running,
            "exited": answer.containers_exited,
        },
        "sessions": answer.sessions.iter().map(session).collect::<Vec<_>>(),
    })
}

/// A row per container; a pod without containers has one too.
fn pods_text(answer: &pb::PodsResponse) -> String {
    let head =
        ["POD", "NAMESPACE", "POD ID", "STATE", "ADDRESS", "CONTAINER", "CONTAINER ID", "STATE", "IMAGE"];
    let mut rows = Vec::new();
    for pod in &answer.pods {
        let first = |address: Option<&String>| address.map_or("-", String::as_str).to_owned();
        let of_pod = [
            pod.name.clone(),
            pod.namespace.clone(),
            text::short(&pod.id).to_owned(),
            pod.state.clone(),
            first(pod.addresses.first()),
        ];
        let mut of_containers: Vec<[String; 4]> = pod
            .containers
            .iter()
            .map(|c| [c.name.clone(), text::short(&c.id).to_owned(), container_state(c), c.image.clone()])
            .collect();
        if of_containers.is_empty() {
            of_containers.push([(); 4].map(|()| "-".to_owned()));
        }
        rows.extend(of_containers.into_iter().map(|c| of_pod.iter().cloned().chain(c).collect()));
    }
    text::table(&head, &[], &rows)
}

fn container_state(container: &pb::Container) -> String {
    match container.reason.as_str() {
        "" => container.state.clone(),
        reason => format!("{} ({reason} {})", container.state, container.exit_code),
    }
}

fn pods_json(answer: &pb::PodsResponse) -> Value {
    let container = |c: &pb::Container| {
        let exit = (!c.reason.is_empty()).then(|| json!({ "code": c.exit_code, "reason": c.reason }));
        json!({
            "id": c.id,
            "name": c.name,
            "attempt": c.attempt,
            "state": c.state,
            "image": c.image,
            "created_at": c.created_at,
            "pid": c.pid,
            "exit": exit,
        })
    };
    let pod = |p: &pb::Pod| {
        json!({
            "id": p.id,
            "name": p.name,
            "namespace": p.namespace,
            "uid": p.uid,
            "attempt": p.attempt,
            "state": p.state,
            "created_at": p.created_at,
            "addresses": p.addresses,
            "monitor_pid": p.monitor_pid,
            "runtime": p.runtime,
            "containers": p.containers.iter().map(container).collect::<Vec<_>>(),
        })
    };
    json!({ "pods": answer.pods.iter().map(pod).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_shown_by_name_where_there_is_one() {
        let named = pb::Session {
            kind: "exec".into(),
            pod_name: "web".into(),
            container_name: "app".into(),
            age_milliseconds: 61_000,
            received_bytes: 2_000_000,
            protocol: "SPDY/3.1 v4.channel.k8s.io".into(),
            ..Default::default()
        };
        let unnamed =
            pb::Session { kind: "portforward".into(), pod_id: "a".repeat(64), ..Default::default() };
        let not_ready = pb::Condition {
            name: "NetworkReady".into(),
            reason: "NetworkPluginNotReady".into(),
            message: "no list".into(),
            ..Default::default()
        };
        let answer = pb::StatusResponse {
            version: "1.2.3".into(),
            pid: 7,
            uptime_seconds: 3_700,
            conditions: vec![not_ready],
            pods_ready: 2,
            sessions: vec![named, unnamed],
            ..Default::default()
        };
        let shown = status_text(&answer);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], "podwright 1.2.3, pid 7, up 1h1m");
        assert_eq!(lines[1], "NetworkReady no: NetworkPluginNotReady: no list");
        let cells = |line: &str| {
            line.split("  ").filter(|c| !c.is_empty()).map(|c| c.trim().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(
            cells(lines[7]),
            ["exec", "web", "app", "1m1s", "0 B", "2.0 MB", "SPDY/3.1 v4.channel.k8s.io"]
        );
        assert_eq!(cells(lines[8])[..2], ["portforward", "aaaaaaaaaaaa"]);
        assert_eq!(status_json(&answer)["sessions"][0]["age_milliseconds"], 61_000);
    }

    #[test]
    fn a_pod_without_containers_has_a_row() {
        let exited = pb::Container {
            name: "app".into(),
            state: "exited".into(),
            exit_code: 3,
            reason: "Error".into(),
            ..Default::default()
        };
        let pod = |name: &str, containers| pb::Pod { name: name.into(), containers, ..Default::default() };
        let answer =
            pb::PodsResponse { pods: vec![pod("one", vec![exited.clone(), exited]), pod("two", vec![])] };
        let table = pods_text(&answer);
        assert_eq!(table.lines().count(), 4, "{table}");
        assert!(table.contains("exited (Error 3)"));
        assert_eq!(pods_json(&answer)["pods"][0]["containers"][0]["exit"]["code"], 3);
    }
}
