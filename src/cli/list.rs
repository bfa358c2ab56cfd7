//! `images ls`.

use super::connection::Client;
use super::error::CliError;
use super::{out, text};
use crate::admin::proto as pb;
use serde_json::{Value, json};

pub(super) async fn run(
    client: &mut Client,
    name: Option<String>,
    json: bool,
    quiet: bool,
) -> Result<(), CliError> {
    let request = pb::ListRequest { name: name.unwrap_or_default() };
    let answer = client.list(request).await?.into_inner();
    if json {
        out::json(&as_json(&answer));
    } else if quiet {
        answer.images.iter().for_each(|image| out::line(&image.id));
    } else {
        out::line(&as_table(&answer));
    }
    Ok(())
}

/// A row for each tag; an image without any is shown by a digest, or by its id alone.
fn as_table(answer: &pb::ListResponse) -> String {
    let head = ["NAME", "ID", "SIZE", "DISK", "SHARED", "LAYERS", "CREATED", "PINNED", "USED BY"];
    let mut rows: Vec<Vec<String>> = Vec::new();
    for image in &answer.images {
        let names = match (image.tags.as_slice(), image.digests.first()) {
            ([], Some(digest)) => vec![digest_name(digest)],
            ([], None) => vec!["-".to_owned()],
            (tags, _) => tags.to_vec(),
        };
        for name in names {
            rows.push(vec![
                name,
                text::short(&image.id).to_owned(),
                text::bytes(image.compressed_bytes),
                text::bytes(image.own_bytes.saturating_add(image.shared_bytes)),
                text::bytes(image.shared_bytes),
                image.layers.len().to_string(),
                text::minute(&image.created),
                if image.pinned { "yes" } else { "-" }.to_owned(),
                match image.containers {
                    0 => "-".to_owned(),
                    number => number.to_string(),
                },
            ]);
        }
    }
    rows.sort();
    let table = text::table(&head, &[2, 3, 4, 5], &rows);
    let (layers, bytes) = (answer.store_layers, text::bytes(answer.store_bytes));
    let layers = text::count(usize::try_from(layers).unwrap_or(usize::MAX), "layer");
    format!("{table}\n{layers} in the store, {bytes} on disk")
}

/// `repository@` and the first digits of the digest.
fn digest_name(name: &str) -> String {
    match name.split_once('@') {
        Some((repository, digest)) => format!("{repository}@{}", text::short(digest)),
        None => name.to_owned(),
    }
}

pub(super) fn layer(layer: &pb::Layer) -> Value {
    json!({ "diff_id": layer.diff_id, "bytes": layer.bytes, "images": layer.images })
}

fn as_json(answer: &pb::ListResponse) -> Value {
    let image = |image: &pb::Image| {
        json!({
            "id": image.id,
            "tags": image.tags,
            "digests": image.digests,
            "manifest_digest": image.manifest_digest,
            "artifact_type": image.artifact_type,
            "compressed_bytes": image.compressed_bytes,
            "own_bytes": image.own_bytes,
            "shared_bytes": image.shared_bytes,
            "layers": image.layers.iter().map(layer).collect::<Vec<_>>(),
            "created": if image.created.is_empty() { Value::Null } else { image.created.clone().into() },
            "pinned": image.pinned,
            "containers": image.containers,
        })
    };
    json!({
        "images": answer.images.iter().map(image).collect::<Vec<_>>(),
        "store_bytes": answer.store_bytes,
        "store_layers": answer.store_layers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> pb::ListResponse {
        let layer = |bytes, images| pb::Layer { diff_id: "sha256:d".into(), bytes, images };
        let image = pb::Image {
            id: format!("sha256:{}", "a".repeat(64)),
            tags: vec!["r.example/b:2".into(), "r.example/a:1".into()],
            compressed_bytes: 5_000_000,
            own_bytes: 1_000_000,
            shared_bytes: 12_000_000,
            layers: vec![layer(1_000_000, 1), layer(12_000_000, 2)],
            created: "2026-01-02T03:04:05Z".into(),
            pinned: true,
            containers: 3,
            ..Default::default()
        };
        let untagged = pb::Image {
            id: format!("sha256:{}", "b".repeat(64)),
            digests: vec![format!("r.example/c@sha256:{}", "c".repeat(64))],
            ..Default::default()
        };
        pb::ListResponse { images: vec![image, untagged], store_bytes: 13_000_000, store_layers: 2 }
    }

    #[test]
    fn a_row_for_each_name() {
        let table = as_table(&answer());
        let rows: Vec<Vec<&str>> =
            table.lines().map(|l| l.split("  ").filter(|c| !c.is_empty()).map(str::trim).collect()).collect();
        assert_eq!(
            rows[1],
            [
                "r.example/a:1",
                "aaaaaaaaaaaa",
                "5.0 MB",
                "13.0 MB",
                "12.0 MB",
                "2",
                "2026-01-02 03:04",
                "yes",
                "3"
            ]
        );
        assert_eq!(rows[2][0], "r.example/b:2");
        assert_eq!(
            rows[3],
            ["r.example/c@cccccccccccc", "bbbbbbbbbbbb", "0 B", "0 B", "0 B", "0", "-", "-", "-"]
        );
        assert_eq!(rows[4], ["2 layers in the store, 13.0 MB on disk"]);
    }

    #[test]
    fn json_has_what_the_table_leaves_out() {
        let json = as_json(&answer());
        assert_eq!(
            json["images"][0]["layers"][1],
            json!({ "diff_id": "sha256:d", "bytes": 12_000_000, "images": 2 })
        );
        assert_eq!(json["images"][1]["created"], Value::Null);
        assert_eq!(json["store_layers"], 2);
    }
}
