//! Exported images can be loaded again, here and by other tools.

use super::peers::tests::{check, installed, rich, run, text};
use super::tests::{layout, pack};
use super::{ExportOptions, Format, LoadOptions};
use crate::images::digest::Digest;
use crate::images::tests::fixture::open;
use crate::images::tests::server::Server;
use crate::images::{ImageError, Images};
use std::path::Path;

/// A store with an image of two names.
async fn filled(root: &Path) -> (Images, String) {
    let (content, id) = rich();
    let images = open(root);
    let manifest = Digest::sha256(&content.manifests["t"].1);
    let archive = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(archive.path(), pack(&layout(&content, &[(&manifest, "")]))).unwrap();
    for name in ["r.example/x:t", "r.example/y:u"] {
        images.load(archive.path(), LoadOptions { name: Some(name.into()) }).await.unwrap();
    }
    (images, id)
}

const FORMATS: [ExportOptions; 5] = [
    ExportOptions { format: Format::OciArchive, gzip: false },
    ExportOptions { format: Format::OciArchive, gzip: true },
    ExportOptions { format: Format::OciLayout, gzip: false },
    ExportOptions { format: Format::OciLayout, gzip: true },
    ExportOptions { format: Format::DockerArchive, gzip: false },
];

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_image_comes_back_as_itself() {
    let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (images, id) = filled(root.path()).await;
    for (number, options) in FORMATS.into_iter().enumerate() {
        let to = dir.path().join(number.to_string());
        let ids = images.export(&["r.example/x:t".into()], &to, options).await.unwrap();
        assert_eq!(ids[0].as_str(), id);
        let other_root = tempfile::tempdir().unwrap();
        let other = open(other_root.path());
        let loaded = other.load(&to, LoadOptions::default()).await.unwrap();
        assert_eq!(
            (loaded.len(), loaded[0].id.as_str(), loaded[0].names[0].as_str()),
            (1, id.as_str(), "r.example/x:t")
        );
        check(&other, "r.example/x:t", &id);
        assert!(other.status("r.example/y:u").is_none());
        // And out of the store that it was loaded into.
        let again = dir.path().join(format!("{number}.again"));
        other.export(std::slice::from_ref(&id), &again, options).await.unwrap();
        if options.format != Format::OciLayout {
            assert_eq!(std::fs::read(&to).unwrap(), std::fs::read(&again).unwrap(), "the same bytes");
        }
    }
    // By its id it has all its names, over an existing file.
    let to = dir.path().join("0");
    images.export(&[id.clone(), "r.example/x:t".into()], &to, FORMATS[0]).await.unwrap();
    let other_root = tempfile::tempdir().unwrap();
    let loaded = open(other_root.path()).load(&to, LoadOptions::default()).await.unwrap();
    assert_eq!((loaded.len(), loaded[0].names.len()), (1, 4));
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("part")), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_through_a_pipe() {
    let root = tempfile::tempdir().unwrap();
    let (images, id) = filled(root.path()).await;
    let (mut reader, writer) = std::io::pipe().unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writer));
    let reading = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
        bytes
    });
    images.export(std::slice::from_ref(&id), Path::new(&path), FORMATS[0]).await.unwrap();
    drop(writer);
    let archive = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(archive.path(), reading.join().unwrap()).unwrap();
    let other_root = tempfile::tempdir().unwrap();
    let loaded = open(other_root.path()).load(archive.path(), LoadOptions::default()).await.unwrap();
    assert_eq!(loaded[0].id.as_str(), id);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_exported_is_said() {
    let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (images, id) = filled(root.path()).await;
    let export = async |name: &str, to: &Path, options| {
        images.export(&[name.to_owned()], to, options).await.unwrap_err().to_string()
    };
    let to = dir.path().join("x");
    assert!(export("nothing", &to, FORMATS[0]).await.contains("not in the local store"));
    let docker = ExportOptions { format: Format::DockerArchive, gzip: true };
    assert!(export(&id, &to, docker).await.contains("no compressed layers"));
    std::fs::write(&to, "full").unwrap();
    assert!(export(&id, dir.path(), FORMATS[2]).await.contains("has entries"));
    assert!(export(&id, dir.path(), FORMATS[0]).await.contains("a file or a pipe"));
    assert!(export(&id, Path::new("/dev/null"), FORMATS[0]).await.contains("a file or a pipe"));
    // A layer with a changed file is not exported as the image's.
    let layer = images.hold(&id).unwrap().layers()[0].clone();
    std::fs::write(layer.join("etc/b"), "evil").unwrap();
    let error = images.export(std::slice::from_ref(&id), &to, FORMATS[0]).await.unwrap_err();
    assert!(matches!(error, ImageError::DamagedLayer { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&to).unwrap(), "full", "what was there stays");
    std::fs::remove_file(layer.parent().unwrap().join("recipe.zst")).unwrap();
    assert!(export(&id, &to, FORMATS[0]).await.contains("no recipe"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_tools_take_what_is_exported() {
    if !installed("skopeo") {
        return;
    }
    let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (images, id) = filled(root.path()).await;
    for (number, options) in FORMATS.into_iter().enumerate() {
        let to = dir.path().join(number.to_string());
        images.export(&["r.example/x:t".into()], &to, options).await.unwrap();
        let transport = match options.format {
            Format::OciArchive => "oci-archive",
            Format::OciLayout => "oci",
            Format::DockerArchive => "docker-archive",
        };
        let from = format!("{transport}:{}:r.example/x:t", text(&to));
        let back = dir.path().join(format!("{number}.back"));
        run(
            "skopeo",
            &["copy", "--insecure-policy", &from, &format!("docker-archive:{}:r.example/z:v", text(&back))],
        );
        let other_root = tempfile::tempdir().unwrap();
        let other = open(other_root.path());
        let loaded = other.load(&back, LoadOptions::default()).await.unwrap();
        // skopeo writes a config of its own when it changes the manifest's form, but never the layers.
        assert_eq!(loaded[0].names, ["r.example/z:v"]);
        assert_eq!(other.status("r.example/z:v").unwrap().diff_ids, images.status(&id).unwrap().diff_ids);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pulled_image_is_exported_too() {
    let (content, _, id) = crate::images::tests::fixture::small();
    let server = Server::serving(content);
    let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let images = open(root.path());
    let name = server.name("x:t");
    images.pull(&name, None).await.unwrap();
    let to = dir.path().join("x.tar");
    images.export(std::slice::from_ref(&name), &to, FORMATS[1]).await.unwrap();
    let other_root = tempfile::tempdir().unwrap();
    let loaded = open(other_root.path()).load(&to, LoadOptions::default()).await.unwrap();
    assert_eq!((loaded[0].id.as_str(), &loaded[0].names[0]), (id.as_str(), &name));
}
