//! A registry that misbehaves, and a full disk. After each: nothing in staging, and an honest pull works.

use super::fixture::{Content, Layer, MANIFEST, Packing, config, left_over, names, open, small, tar};
use super::server::{Ask, End, Reply, Server, serve};
use crate::config;
use crate::images::{Credentials, ImageError, Images};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A pull must fail; afterwards the store is clean and the same image can be had from an honest registry.
pub(super) async fn fails_cleanly(
    config: config::Images,
    name: &str,
    auth: Option<Credentials>,
) -> ImageError {
    let root = tempfile::tempdir().unwrap();
    let images = Images::open(root.path(), &config).unwrap();
    let error = images.pull(name, auth).await.unwrap_err();
    still_works(&images, root.path()).await;
    error
}

async fn still_works(images: &Images, root: &Path) {
    assert_eq!(left_over(images, root).await, Vec::<String>::new());
    assert!(images.list().is_empty());
    let (content, _, id) = small();
    let honest = Server::serving(content);
    assert_eq!(images.pull(&honest.name("x:t"), None).await.unwrap().as_str(), id.as_str());
    assert_eq!(left_over(images, root).await, Vec::<String>::new());
}

fn is_blob(ask: &Ask, content: &Content, big: bool) -> bool {
    // The config is the blob that is JSON.
    ask.path.rsplit('/').next().and_then(|d| content.blobs.get(d)).is_some_and(|b| (b[0] != b'{') == big)
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_does_not_match_its_digest() {
    // Another valid layer under the digest of the first: of the same length, so that only the hash differs.
    let mut content = Content::default();
    let honest = Layer::new(&tar(&[("f", "aaaa")]), Packing::Plain);
    let forged = Layer::new(&tar(&[("f", "bbbb")]), Packing::Plain);
    content.add("t", std::slice::from_ref(&honest), "{}");
    content.blobs.insert(honest.digest().to_string(), forged.blob.clone());
    let server = Server::serving(content);
    let error = fails_cleanly(config(), &server.name("x:t"), None).await;
    assert!(
        matches!(&error, ImageError::DigestMismatch { expected, .. } if *expected == honest.digest().to_string()),
        "{error}"
    );

    // The config names other content than the layer's.
    let mut content = Content::default();
    let lie = Layer { diff_id: forged.diff_id.clone(), ..honest.clone() };
    content.add("t", &[lie], "{}");
    let server = Server::serving(content);
    let error = fails_cleanly(config(), &server.name("x:t"), None).await;
    assert!(
        matches!(&error, ImageError::DigestMismatch { expected, .. } if *expected == forged.diff_id.to_string()),
        "{error}"
    );

    // A manifest that does not match its digest.
    let (mut content, manifest, _) = small();
    content.manifests.insert(manifest.to_string(), (MANIFEST, content.manifests["t"].1.to_ascii_uppercase()));
    let server = Server::serving(content);
    let error = fails_cleanly(config(), &server.name(&format!("x@{manifest}")), None).await;
    assert!(matches!(error, ImageError::DigestMismatch { .. } | ImageError::SizeMismatch { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_of_the_wrong_size() {
    for (longer, part) in [(false, "got"), (true, "or more")] {
        let (content, ..) = small();
        let server = Server::start(move |ask| {
            let mut reply = serve(&content, ask);
            if is_blob(ask, &content, true) {
                if longer {
                    reply.body.extend([0; 100]);
                } else {
                    reply.body.truncate(reply.body.len() - 1);
                }
            }
            reply
        });
        let error = fails_cleanly(config(), &server.name("x:t"), None).await;
        assert!(
            matches!(&error, ImageError::SizeMismatch { .. }) && error.to_string().contains(part),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_stream() {
    let mut content = Content::default();
    let mut layer = Layer::new(&tar(&[("f", "content")]), Packing::Gzip);
    let middle = layer.blob.len() / 2;
    layer.blob[middle] ^= 0xff;
    content.add("t", &[layer], "{}");
    let server = Server::serving(content);
    let error = fails_cleanly(config(), &server.name("x:t"), None).await;
    assert!(matches!(error, ImageError::CorruptLayer { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_is_resumed_where_it_stands() {
    let (content, _, id) = small();
    let served = AtomicUsize::new(0);
    let server = Server::start(move |ask| {
        let mut reply = serve(&content, ask);
        if is_blob(ask, &content, true) {
            let from = ask.header("range").map(|r| r["bytes=".len()..r.len() - 1].parse::<usize>().unwrap());
            let whole = reply.body.len();
            match (from, served.fetch_add(1, Ordering::SeqCst) % 2) {
                // Half of the hosts of this world ignore ranges.
                (Some(from), 0) => {
                    reply.status = 206;
                    reply.body.drain(..from);
                    reply = reply.with("Content-Range", format!("bytes {from}-{}/{whole}", whole - 1));
                }
                (Some(_), _) => {}
                (None, _) => reply = reply.ends(End::BreakAt(whole / 2)),
            }
        }
        reply
    });
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    assert_eq!(images.pull(&server.name("x:t"), None).await.unwrap().as_str(), id.as_str());
    assert!(server.asks().iter().any(|ask| ask.header("range").is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_body_ends_by_the_progress_timeout() {
    let (content, ..) = small();
    let server = Server::start(move |ask| {
        let reply = serve(&content, ask);
        if is_blob(ask, &content, true) { reply.ends(End::StallAt(10)) } else { reply }
    });
    let quick = config::Images { progress_timeout_seconds: 1, ..config() };
    let error = fails_cleanly(quick, &server.name("x:t"), None).await;
    assert!(matches!(error, ImageError::Stalled { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_their_own_errors_and_the_registrys_words() {
    for (status, check) in [
        (404, (|e| matches!(e, ImageError::NotAtRegistry { .. })) as fn(&ImageError) -> bool),
        (401, |e| matches!(e, ImageError::Unauthorized { .. })),
        (403, |e| matches!(e, ImageError::Unauthorized { .. })),
        (429, |e| matches!(e, ImageError::RateLimited { .. })),
        (503, |e| matches!(e, ImageError::Unavailable { .. })),
        (418, |e| matches!(e, ImageError::Protocol { .. })),
    ] {
        let server = Server::start(move |_| {
            Reply::new(status, r#"{"errors":[{"code":"SOME_CODE","message":"some words"}]}"#)
                .with("Retry-After", "0")
        });
        let error = fails_cleanly(config(), &server.name("x:t"), None).await;
        assert!(check(&error), "{status}: {error:?}");
        assert!(error.to_string().contains("SOME_CODE: some words"), "{error}");
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = fails_cleanly(config(), &format!("127.0.0.1:{port}/x:t"), None).await;
    assert!(
        matches!(&error, ImageError::Unavailable { .. }) && error.to_string().contains("refused"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_fetched_and_never_leave_their_host() {
    let (content, _, id) = small();
    let storage_content = content.clone();
    let storage = Server::start(move |ask| serve(&storage_content, ask));
    let elsewhere = storage.name("");
    let server = Server::start(move |ask| {
        let host = ask.header("host").unwrap().to_owned();
        if ask.path.starts_with("/token") {
            let good = ask.body.contains("username=me") && ask.body.contains("scope=repository%3Ax%3Apull");
            return if good {
                Reply::new(200, r#"{"access_token":"tok","expires_in":300}"#)
            } else {
                Reply::new(401, "{}")
            };
        }
        if ask.header("authorization") != Some("Bearer tok") {
            let challenge =
                format!(r#"Bearer realm="http://{host}/token",service="s",scope="repository:x:pull""#);
            return Reply::new(401, "{}").with("WWW-Authenticate", challenge);
        }
        if ask.path.contains("/blobs/") {
            return Reply::new(307, "")
                .with("Location", format!("http://{}{}", elsewhere.trim_end_matches('/'), ask.path));
        }
        serve(&content, ask)
    });
    let auth = |password: &str| Credentials {
        username: "me".into(),
        password: password.into(),
        ..Default::default()
    };
    let root = tempfile::tempdir().unwrap();
    // The node names the storage service, or it would not be led to on this machine.
    let named = root.path().join("certs").join(format!("127.0.0.1_{}_", storage.port));
    std::fs::create_dir_all(named).unwrap();
    let config = config::Images { certs_dirs: vec![root.path().join("certs")], ..config() };
    let images = Images::open(&root.path().join("store"), &config).unwrap();
    assert_eq!(images.pull(&server.name("x:t"), Some(auth("pw"))).await.unwrap().as_str(), id.as_str());
    assert_eq!(server.asks().iter().filter(|a| a.path.starts_with("/token")).count(), 1, "one token for all");
    assert!(!storage.asks().is_empty());
    assert!(storage.asks().iter().all(|a| a.header("authorization").is_none()));

    // What one caller may have, another without credentials may not, even though it is in the store.
    let error = images.pull(&server.name("x:t"), None).await.unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_token_services_and_basic() {
    let (content, _, id) = small();
    let basic = "Basic bWU6cHc=";
    let server = Server::start(move |ask| {
        let host = ask.header("host").unwrap().to_owned();
        if ask.path.starts_with("/token") {
            return match (ask.method.as_str(), ask.header("authorization") == Some(basic)) {
                ("GET", true) => Reply::new(200, r#"{"token":"tok"}"#),
                ("POST", _) => Reply::new(405, ""),
                _ => Reply::new(401, ""),
            };
        }
        let bearer = ask.path.contains("/bearer/");
        if ask.header("authorization") == Some(if bearer { "Bearer tok" } else { basic }) {
            return serve(&content, ask);
        }
        let challenge = if bearer {
            format!(r#"Bearer realm="http://{host}/token""#)
        } else {
            r#"Basic realm="r""#.to_owned()
        };
        Reply::new(401, "{}").with("WWW-Authenticate", challenge)
    });
    let auth = Credentials { auth: "bWU6cHc=".into(), ..Default::default() };
    for repository in ["bearer/x:t", "basic/x:t"] {
        let root = tempfile::tempdir().unwrap();
        let pulled = open(root.path()).pull(&server.name(repository), Some(auth.clone())).await.unwrap();
        assert_eq!(pulled.as_str(), id.as_str());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_have_their_limits() {
    for (location, words) in [
        ("/v2/x/manifests/t", "more than 10"),
        ("http://169.254.169.254/latest", "link-local"),
        ("file:///etc/passwd", "another protocol"),
        ("http://u:p@127.0.0.1:1/", "credentials"),
    ] {
        let server = Server::start(move |_| Reply::new(307, "").with("Location", location));
        let error = fails_cleanly(config(), &server.name("x:t"), None).await;
        assert!(matches!(error, ImageError::Redirect { .. }) && error.to_string().contains(words), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_mirror_leads_to_the_registry() {
    let (content, _, id) = small();
    let broken = Server::start(|_| Reply::new(500, ""));
    let mirror_content = content.clone();
    // Holds only the layers, so the rest comes from the registry.
    let mirror = Server::start(move |ask| {
        if is_blob(ask, &mirror_content, true) { serve(&mirror_content, ask) } else { Reply::new(404, "") }
    });
    let registry = Server::serving(content);
    let certs = tempfile::tempdir().unwrap();
    let dir = certs.path().join(format!("127.0.0.1_{}_", registry.port));
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(
        dir.join("hosts.toml"),
        format!(
            "[host.\"http://127.0.0.1:{}\"]\n[host.\"http://127.0.0.1:{}\"]\ncapabilities = [\"pull\"]\n",
            broken.port, mirror.port
        ),
    )
    .unwrap();
    let config = config::Images { certs_dirs: vec![certs.path().to_owned()], ..config() };
    let root = tempfile::tempdir().unwrap();
    let images = Images::open(root.path(), &config).unwrap();
    let auth = Credentials { registry_token: "secret".into(), ..Default::default() };
    assert_eq!(images.pull(&registry.name("x:t"), Some(auth)).await.unwrap().as_str(), id.as_str());
    let ns = format!("?ns=127.0.0.1%3A{}", registry.port);
    assert!(
        !broken.asks().is_empty() && broken.asks().iter().all(|a| a.path.ends_with(&ns)),
        "{:?}",
        broken.asks()
    );
    assert!(mirror.asks().iter().all(|a| a.header("authorization").is_none() && a.method == "GET"));
    assert!(registry.asks().iter().all(|a| a.header("authorization") == Some("Bearer secret")));
    assert!(registry.asks().iter().any(|a| a.method == "HEAD"), "only the registry resolves the tag");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_layer_and_hostile_manifests() {
    let mut content = Content::default();
    content.add("t", &[Layer::new(&tar(&[("etc/.wh.", "")]), Packing::Gzip)], "{}");
    let deep = |n: usize| {
        // Each index points to the next; the last to itself is impossible by digest, so a plain chain.
        let mut content = Content::default();
        let mut below = content.manifest("t", MANIFEST, b"{}".to_vec());
        for _ in 0..n {
            let body = format!(
                r#"{{"schemaVersion":2,"manifests":[{{"digest":"{below}","size":{}}}]}}"#,
                content.manifests["t"].1.len()
            );
            below = content.manifest("t", super::fixture::INDEX, body.into_bytes());
        }
        content
    };
    let mut huge = Content::default();
    huge.manifest("t", MANIFEST, vec![b' '; (4 << 20) + 1]);
    for (content, words) in [(content, "refused"), (deep(100), "nesting"), (huge, "limit")] {
        let server = Server::serving(content);
        let error = fails_cleanly(config(), &server.name("x:t"), None).await;
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bomb_meets_the_cap() {
    let mut content = Content::default();
    content.add("t", &[Layer::new(&tar(&[("zeros", &"\0".repeat(8 << 20))]), Packing::Zstd)], "{}");
    let server = Server::serving(content);
    let small = config::Images { max_layer_bytes: 1 << 20, ..config() };
    let error = fails_cleanly(small, &server.name("x:t"), None).await;
    assert!(matches!(error, ImageError::Limit { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_says_so_and_recovers() {
    let root = tempfile::tempdir().unwrap();
    let disk = Tmpfs::mount(root.path(), "size=6m");
    let images = open(root.path());
    let mut content = Content::default();
    let noise: String = (0..8 << 20)
        .map(|n: u32| char::from(b'a' + u8::try_from(n.wrapping_mul(2_654_435_761) >> 28).unwrap()))
        .collect();
    content.add("t", &[Layer::new(&tar(&[("big", &noise)]), Packing::Gzip)], "{}");
    let server = Server::serving(content);
    let error = images.pull(&server.name("x:t"), None).await.unwrap_err();
    assert!(matches!(&error, ImageError::NoSpace { path, .. } if path.starts_with(root.path())), "{error:?}");
    assert!(names(root.path(), "layers").is_empty());
    still_works(&images, root.path()).await;
    drop(images);
    drop(disk);
}

/// A small file system of its own, unmounted when dropped.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn mount(at: &Path, options: &str) -> Self {
        let done = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(at)
            .status();
        assert!(done.unwrap().success());
        Self(at.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily, so that a failed test's open files do not keep it.
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
