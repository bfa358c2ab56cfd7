//! `images endpoints`.

use super::connection::Client;
use super::error::CliError;
use super::out;
use crate::admin::proto as pb;
use crate::model::plain;
use serde_json::{Value, json};

/// Fails with `probe` when no endpoint has the manifest.
pub(super) async fn run(
    client: &mut Client,
    reference: String,
    probe: bool,
    json: bool,
) -> Result<(), CliError> {
    let answer = client.endpoints(pb::EndpointsRequest { reference, probe }).await?.into_inner();
    if json {
        out::json(&as_json(&answer));
    } else {
        out::line(&as_text(&answer));
    }
    let has_it = |e: &pb::Endpoint| e.probe.as_ref().is_some_and(|probe| probe.error.is_empty());
    if probe && !answer.endpoints.iter().any(has_it) {
        out::error(&format!("no endpoint has {}", answer.reference));
        return Err(CliError::Told);
    }
    Ok(())
}

fn as_text(answer: &pb::EndpointsResponse) -> String {
    let mut lines = vec![answer.reference.clone()];
    for (index, endpoint) in answer.endpoints.iter().enumerate() {
        let kind = if endpoint.mirror { "mirror" } else { "registry" };
        lines.push(format!("{}. {}{}  ({kind})", index + 1, endpoint.url, endpoint.repository));
        let facts = facts(endpoint).into_iter();
        lines.extend(facts.map(|(name, value)| format!("   {name:<13}{}", plain::marked(&value))));
    }
    lines.push("looked at, in this order:".to_owned());
    lines.extend(
        answer
            .looked_at
            .iter()
            .map(|at| format!("   {:<8} {}", if at.present { "present" } else { "absent" }, at.path)),
    );
    lines.join("\n")
}

fn facts(endpoint: &pb::Endpoint) -> Vec<(&'static str, String)> {
    let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
    let mut facts = vec![
        ("named by", or(&endpoint.configured_in, "no file: this is the default")),
        ("asked for", asked_for(endpoint).to_owned()),
        ("TLS", tls(endpoint)),
    ];
    if !endpoint.client_files.is_empty() {
        facts.push(("certificate", endpoint.client_files.join(", ")));
    }
    if !endpoint.headers.is_empty() {
        facts.push(("headers", endpoint.headers.join(", ")));
    }
    let entry = || format!("{}, entry {:?}", endpoint.auth_file, endpoint.auth_entry);
    facts.push(("credentials", if endpoint.auth_file.is_empty() { "none".to_owned() } else { entry() }));
    if !endpoint.auth_note.is_empty() {
        facts.push(("passed over", endpoint.auth_note.clone()));
    }
    facts.push(("proxy", or(&endpoint.proxy, "none")));
    if let Some(probe) = &endpoint.probe {
        facts.push(("answer", probed(probe)));
    }
    facts
}

fn asked_for(endpoint: &pb::Endpoint) -> &'static str {
    match (endpoint.resolve, endpoint.pull) {
        (true, true) => "tags and content",
        (true, false) => "tags only",
        (false, true) => "content only, by digest",
        (false, false) => "nothing: its capabilities say so",
    }
}

fn tls(endpoint: &pb::Endpoint) -> String {
    if endpoint.url.starts_with("http:") {
        return "no: plain http".to_owned();
    }
    if endpoint.skip_verify {
        return "certificate NOT verified".to_owned();
    }
    match endpoint.ca_files.as_slice() {
        [] => "system roots".to_owned(),
        files => format!("system roots and {}", files.join(", ")),
    }
}

fn probed(probe: &pb::ProbeResult) -> String {
    let status = match probe.status {
        0 => "none".to_owned(),
        status => format!("HTTP {status}"),
    };
    let what = if probe.error.is_empty() { &probe.digest } else { &probe.error };
    let shown = format!("{status} in {} ms: {what}", probe.milliseconds);
    shown.trim_end_matches(": ").to_owned()
}

fn as_json(answer: &pb::EndpointsResponse) -> Value {
    let probe = |probe: &pb::ProbeResult| {
        json!({
            "status": probe.status,
            "milliseconds": probe.milliseconds,
            "digest": probe.digest,
            "error": probe.error,
        })
    };
    let endpoint = |e: &pb::Endpoint| {
        json!({
            "url": e.url,
            "repository": e.repository,
            "mirror": e.mirror,
            "resolve": e.resolve,
            "pull": e.pull,
            "configured_in": e.configured_in,
            "ca_files": e.ca_files,
            "client_files": e.client_files,
            "skip_verify": e.skip_verify,
            "headers": e.headers,
            "auth_file": e.auth_file,
            "auth_entry": e.auth_entry,
            "auth_note": e.auth_note,
            "proxy": e.proxy,
            "probe": e.probe.as_ref().map(probe),
        })
    };
    let looked_at = |at: &pb::LookedAt| json!({ "path": at.path, "present": at.present });
    json!({
        "reference": answer.reference,
        "endpoints": answer.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        "looked_at": answer.looked_at.iter().map(looked_at).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_endpoint_says_where_it_is_from_and_what_it_gets() {
        let mirror = pb::Endpoint {
            url: "https://m.example/v2/".into(),
            repository: "a/b".into(),
            mirror: true,
            pull: true,
            configured_in: "/c/hosts.toml".into(),
            ca_files: vec!["/c/ca.pem".into()],
            auth_file: "/a.json".into(),
            auth_entry: "m.example".into(),
            probe: Some(pb::ProbeResult {
                status: 404,
                milliseconds: 7,
                error: "not found\n2. https://forged.example/v2/  (registry)".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let own = pb::Endpoint {
            url: "http://127.0.0.1:5000/v2/".into(),
            resolve: true,
            pull: true,
            probe: Some(pb::ProbeResult { status: 200, ..Default::default() }),
            ..Default::default()
        };
        let answer = pb::EndpointsResponse {
            reference: "r.example/a/b:1".into(),
            endpoints: vec![mirror, own],
            looked_at: vec![pb::LookedAt { path: "/c".into(), present: true }],
        };
        let text = as_text(&answer);
        for line in [
            "1. https://m.example/v2/a/b  (mirror)",
            "   named by     /c/hosts.toml",
            "   asked for    content only, by digest",
            "   TLS          system roots and /c/ca.pem",
            "   credentials  /a.json, entry \"m.example\"",
            "   answer       HTTP 404 in 7 ms: not found\u{fffd}2. https://forged.example/v2/  (registry)",
            "   TLS          no: plain http",
            "   named by     no file: this is the default",
            "   answer       HTTP 200 in 0 ms",
            "   present  /c",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
        }
        assert_eq!(as_json(&answer)["endpoints"][0]["probe"]["status"], 404);
    }
}
