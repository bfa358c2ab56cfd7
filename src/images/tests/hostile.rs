//! Answers made to hurt: token services, endless bodies, bombs. After each: the right error, nothing in staging, and an
//! honest pull works.

use super::faults::fails_cleanly;
use super::fixture::{Content, INDEX, Layer, MANIFEST, Packing, config, open, small, tar};
use super::server::{Ask, Reply, Server, serve};
use crate::config;
use crate::images::{Credentials, ImageError};
use std::io::Write as _;

type Answer = fn() -> Reply;

const SECRET: &str = "correct-horse";

fn given() -> Credentials {
    Credentials { username: "me".into(), password: SECRET.into(), ..Default::default() }
}

/// A registry that sends everybody to `realm`, and what its token service answers.
fn guarded(realm: &'static str, token: Answer) -> Server {
    Server::start(move |ask: &Ask| {
        if ask.path.starts_with("/token") {
            return token();
        }
        let realm = realm.replace("HOST", ask.header("host").unwrap());
        Reply::new(401, "{}").with("WWW-Authenticate", format!(r#"Bearer realm="{realm}",service="s""#))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn token_services_that_fail() {
    let here = "http://HOST/token?secret=query";
    let cases: [(&str, &'static str, Answer, &str); 8] = [
        ("is down", "http://127.0.0.1:1/token", || Reply::new(200, ""), "connect"),
        ("breaks", here, || Reply::new(500, ""), "HTTP status 500"),
        ("talks nonsense", here, || Reply::new(200, "<html>"), "not a token document"),
        ("gives nothing", here, || Reply::new(200, "{}"), "no token"),
        ("gives a header of its own", here, || Reply::new(200, r#"{"token":"a\r\nX: y"}"#), "no token"),
        ("never ends", here, || Reply::new(200, vec![b' '; 2 << 20]), "1 MiB"),
        ("leads elsewhere", here, || Reply::new(307, "").with("Location", "http://127.0.0.1:1/"), "307"),
        ("is no URL", "::", || Reply::new(200, ""), "not a URL"),
    ];
    let certs = tempfile::tempdir().unwrap();
    // Named, or it would not even be tried.
    std::fs::create_dir(certs.path().join("127.0.0.1_1_")).unwrap();
    for (name, realm, token, words) in cases {
        let server = guarded(realm, token);
        let config = crate::config::Images { certs_dirs: vec![certs.path().to_owned()], ..config() };
        let error = fails_cleanly(config, &server.name("x:t"), Some(given())).await;
        let text = error.to_string();
        assert!(matches!(error, ImageError::Token { .. }) && text.contains(words), "{name}: {text}");
        assert!(!text.contains(SECRET) && !text.contains("secret=query"), "{name}: {text}");
        assert!(server.asks().len() <= 4, "{name}: {} requests", server.asks().len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_never_content_with_its_tokens() {
    let server = guarded("http://HOST/token", || Reply::new(200, r#"{"token":"t","expires_in":0}"#));
    let error = fails_cleanly(config(), &server.name("x:t"), Some(given())).await;
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
    assert!(server.asks().len() <= 10, "{} requests", server.asks().len());
    // Nor with Basic, and with unknown challenges.
    for challenge in ["Basic realm=\"r\"", "Bearer", "Bearer =,=,\"", "Digest realm=\"x\"", "\"", ""] {
        let server = Server::start(move |_| Reply::new(401, "{}").with("WWW-Authenticate", challenge));
        let error = fails_cleanly(config(), &server.name("x:t"), Some(given())).await;
        assert!(
            matches!(error, ImageError::Unauthorized { .. } | ImageError::Token { .. }),
            "{challenge:?}: {error}"
        );
        assert!(server.asks().len() <= 10, "{challenge:?}: {} requests", server.asks().len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_with_endless_words() {
    let words = format!(r#"{{"errors":[{{"code":"C","message":"{}"}}]}}"#, "x".repeat(20_000));
    let server = Server::start(move |_| Reply::new(403, words.clone()));
    let error = fails_cleanly(config(), &server.name("x:t"), None).await.to_string();
    assert!(error.contains("C: xxx") && error.len() < 1000, "{} bytes", error.len());
    let server = Server::start(|_| Reply::new(403, vec![b'['; 16 << 20]));
    let error = fails_cleanly(config(), &server.name("x:t"), None).await;
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
}

/// A blob under its right digest that is not what a tool would make.
fn with_blob(blob: Vec<u8>, tar: &[u8]) -> Content {
    let honest = Layer::new(tar, Packing::Gzip);
    let mut content = Content::default();
    content.add("t", &[Layer { blob, ..honest }], "{}");
    content
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_of_every_compression() {
    let zeros = tar(&[("zeros", &"\0".repeat(8 << 20))]);
    let gzip = Layer::new(&zeros, Packing::Gzip).blob;
    let zstd = Layer::new(&zeros, Packing::Zstd).blob;
    assert!(gzip.len() < 1 << 20 && zstd.len() < 1 << 20);
    let small = config::Images { max_layer_bytes: 1 << 20, ..config() };
    for blob in [gzip, zstd] {
        let server = Server::serving(with_blob(blob, &zeros));
        let error = fails_cleanly(small.clone(), &server.name("x:t"), None).await;
        assert!(matches!(error, ImageError::Limit { limit: 1_048_576, .. }), "{error}");
    }
    // A window of 1 GiB would be allocated before the first byte is known to be good.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(30).unwrap();
    encoder.write_all(&zeros[..4096]).unwrap();
    encoder.flush().unwrap();
    encoder.write_all(&zeros[4096..]).unwrap();
    let server = Server::serving(with_blob(encoder.finish().unwrap(), &zeros));
    let error = fails_cleanly(config(), &server.name("x:t"), None).await;
    assert!(matches!(error, ImageError::CorruptLayer { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_members_are_one_stream() {
    let bytes = tar(&[("f", &"y".repeat(100_000))]);
    let members: Vec<u8> = bytes
        .chunks(bytes.len().div_ceil(10_000))
        .flat_map(|part| Layer::new(part, Packing::Gzip).blob)
        .collect();
    let server = Server::serving(with_blob(members, &bytes));
    let root = tempfile::tempdir().unwrap();
    open(root.path()).pull(&server.name("x:t"), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_lie_about_their_length_or_kind() {
    let (content, manifest, _) = small();
    let body = content.manifests["t"].1.clone();
    // Too long a length, then a wrong digest header, then an index of entries that are indexes of themselves.
    let honest = content.clone();
    let long = Server::start(move |ask| {
        let reply = serve(&honest, ask);
        if ask.path.contains("/manifests/") { reply.with("Content-Length", "4000000") } else { reply }
    });
    let error = fails_cleanly(config(), &long.name("x:t"), None).await;
    assert!(matches!(error, ImageError::Unavailable { .. } | ImageError::SizeMismatch { .. }), "{error}");
    let forged = Server::start(move |ask| match ask.path.ends_with(":t") || ask.path.ends_with("/t") {
        true => Reply::new(200, body.clone())
            .with("Docker-Content-Digest", format!("sha256:{}", "0".repeat(64)))
            .with("Content-Type", MANIFEST),
        false => Reply::new(200, body.clone()),
    });
    let error = fails_cleanly(config(), &forged.name("x:t"), None).await;
    assert!(matches!(error, ImageError::DigestMismatch { .. }), "{error}");
    // A digest cannot name itself; the hash exposes an index that claims to.
    let looped = Server::start(move |_| {
        let entry = format!(r#"{{"mediaType":"{INDEX}","digest":"{manifest}","size":99}}"#);
        Reply::new(200, format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#))
    });
    let error = fails_cleanly(config(), &looped.name("x:t"), None).await;
    assert!(matches!(error, ImageError::DigestMismatch { .. } | ImageError::SizeMismatch { .. }), "{error}");
}

/// What an image's documents say stays on the disk: nobody collects images that take none of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_documents_say_takes_no_memory_for_as_long_as_the_image_is_there() {
    let mut content = Content::default();
    let large = "x".repeat(900_000);
    let said = format!(r#"{{"User":"7","Env":["A={large}"],"StopSignal":"SIGINT"}}"#);
    let (_, id) = content.add("t", &[Layer::new(&tar(&[("a", "b")]), Packing::Gzip)], &said);
    let server = Server::serving(content);
    let root = tempfile::tempdir().unwrap();
    let mut images = open(root.path());
    images.pull(&server.name("x:t"), None).await.unwrap();
    for _ in 0..2 {
        let held = format!("{:?}", images.inner.store.state().images);
        assert!(held.len() < 10_000, "{} bytes", held.len());
        let image = images.status(id.as_str()).unwrap();
        assert_eq!(image.stop_signal, "SIGINT");
        assert_eq!(images.config(&image.id).unwrap().env, [format!("A={large}")]);
        drop(images);
        images = open(root.path());
    }
}

/// However many pulls a registry lets wait for large documents.
#[tokio::test(flavor = "multi_thread")]
async fn large_documents_of_all_pulls_have_one_budget() {
    let mut content = Content::default();
    let said = |bytes: usize| format!(r#"{{"Env":["A={}"]}}"#, "x".repeat(bytes));
    content.add("large", &[], &said(100_000));
    content.add("small", &[], &said(10_000));
    let server = Server::serving(content);
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let documents = &images.inner.registry.documents;
    let mut places = Vec::new();
    while documents.free() > 0 {
        let registry = format!("{}.example", places.len() / 2);
        places.push(documents.place(&registry, "x", 4 << 20).await.unwrap());
    }
    let error = images.pull(&server.name("x:large"), None).await.unwrap_err().to_string();
    assert!(error.contains("other pulls take the memory for large documents"), "{error}");
    images.pull(&server.name("x:small"), None).await.unwrap();
    drop(places);
    images.pull(&server.name("x:large"), None).await.unwrap();
}
