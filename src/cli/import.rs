//! `images import-from`.

use super::arguments::Peer;
use super::connection::Client;
use super::error::CliError;
use super::load::absolute;
use super::{out, text};
use crate::admin::proto as pb;
use crate::model::plain;
use pb::import_from_request::Peer as Of;
use std::path::PathBuf;

/// Fails if an image was not imported; the others stay.
pub(super) async fn run(
    client: &mut Client,
    peer: Peer,
    root: Option<PathBuf>,
    names: Vec<String>,
) -> Result<(), CliError> {
    let root = root.as_deref().map(absolute).transpose()?.unwrap_or_default();
    let of = match peer {
        Peer::Containerd => Of::Containerd,
        Peer::Crio => Of::Crio,
    };
    let request = pb::ImportFromRequest { peer: of.into(), root, names };
    let answer = client.import_from(request).await?.into_inner();
    let mut failed = 0;
    for image in &answer.images {
        match &image.image {
            Some(here) => out::line(&told(image, here)),
            None => {
                failed += 1;
                out::error(&complaint(image));
            }
        }
    }
    let imported = answer.images.len() - failed;
    out::note(&format!("{} imported, {failed} not", text::count(imported, "image")));
    if failed > 0 { Err(CliError::Told) } else { Ok(()) }
}

fn complaint(image: &pb::ImportedImage) -> String {
    // The other runtime's names are anybody's words.
    let complaint = if image.error.contains(&image.name) {
        image.error.clone()
    } else {
        format!("{}: {}", image.name, image.error)
    };
    plain::marked(&complaint).into_owned()
}

fn told(image: &pb::ImportedImage, here: &pb::LoadedImage) -> String {
    let others: Vec<&str> =
        here.names.iter().map(String::as_str).filter(|name| *name != image.name).collect();
    let others = if others.is_empty() { String::new() } else { format!(" (also {})", others.join(", ")) };
    plain::marked(&format!("imported {} as {}{others}", image.name, here.id)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_names_are_told_once() {
        let here = pb::LoadedImage { id: "sha256:a".into(), names: vec!["x:1".into(), "x@sha256:b".into()] };
        let image = pb::ImportedImage { name: "x:1".into(), ..Default::default() };
        assert_eq!(told(&image, &here), "imported x:1 as sha256:a (also x@sha256:b)");
        let failed = |error: &str| complaint(&pb::ImportedImage { error: error.into(), ..image.clone() });
        assert_eq!(failed("layer y is gone"), "x:1: layer y is gone");
        assert_eq!(failed("x:1 is gone"), "x:1 is gone");
        let plain = pb::LoadedImage { names: vec!["x:1".into()], ..here };
        assert_eq!(told(&image, &plain), "imported x:1 as sha256:a");
    }
}
