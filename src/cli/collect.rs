//! `images gc`.

use super::connection::Client;
use super::error::CliError;
use super::{list, out, text};
use crate::admin::proto as pb;
use serde_json::{Value, json};

pub(super) async fn run(
    client: &mut Client,
    dry_run: bool,
    unused_images: bool,
    json: bool,
) -> Result<(), CliError> {
    let answer = client.collect(pb::CollectRequest { dry_run, unused_images }).await?.into_inner();
    if json {
        out::json(&as_json(&answer, dry_run));
    } else {
        out::line(&as_text(&answer, dry_run));
    }
    Ok(())
}

fn as_text(answer: &pb::CollectResponse, dry_run: bool) -> String {
    if answer.images.is_empty() && answer.layers.is_empty() {
        return "nothing to delete".to_owned();
    }
    let image = |image: &pb::CollectedImage| {
        format!("image  {}  {}", text::short(&image.id), image.names.join(", ")).trim_end().to_owned()
    };
    let layer =
        |layer: &pb::Layer| format!("layer  {}  {}", text::short(&layer.diff_id), text::bytes(layer.bytes));
    let mut lines: Vec<String> =
        answer.images.iter().map(image).chain(answer.layers.iter().map(layer)).collect();
    lines.push(format!(
        "{} {} by deleting {} and {}",
        if dry_run { "would free" } else { "freed" },
        text::bytes(answer.freed_bytes),
        text::count(answer.images.len(), "image"),
        text::count(answer.layers.len(), "layer"),
    ));
    lines.join("\n")
}

fn as_json(answer: &pb::CollectResponse, dry_run: bool) -> Value {
    let image = |image: &pb::CollectedImage| json!({ "id": image.id, "names": image.names });
    json!({
        "dry_run": dry_run,
        "images": answer.images.iter().map(image).collect::<Vec<_>>(),
        "layers": answer.layers.iter().map(list::layer).collect::<Vec<_>>(),
        "freed_bytes": answer.freed_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_is_told_by_name() {
        let answer = pb::CollectResponse {
            images: vec![pb::CollectedImage { id: "sha256:abc".into(), names: vec!["x:1".into()] }],
            layers: vec![pb::Layer { diff_id: "sha256:def".into(), bytes: 2000, images: 1 }],
            freed_bytes: 2000,
        };
        assert_eq!(
            as_text(&answer, true),
            "image  abc  x:1\nlayer  def  2.0 kB\nwould free 2.0 kB by deleting 1 image and 1 layer"
        );
        assert!(as_text(&answer, false).ends_with("\nfreed 2.0 kB by deleting 1 image and 1 layer"));
        assert_eq!(as_text(&pb::CollectResponse::default(), false), "nothing to delete");
        assert_eq!(as_json(&answer, true)["freed_bytes"], 2000);
    }
}
