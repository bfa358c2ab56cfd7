//! Mirrors that fail half-way, and registries that ask for patience.

use super::fixture::{Content, Layer, Packing, config, left_over, open, small, tar};
use super::server::{Ask, End, Reply, Server, serve};
use crate::config;
use crate::images::{ImageError, Images};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn is_layer(ask: &Ask, content: &Content) -> bool {
    ask.path
        .split('?')
        .next()
        .and_then(|p| p.rsplit('/').next())
        .and_then(|d| content.blobs.get(d))
        .is_some_and(|b| b[0] != b'{')
}

/// An honest registry that supports ranges.
fn ranged(content: &Content, ask: &Ask) -> Reply {
    let mut reply = serve(content, ask);
    let whole = reply.body.len();
    let Some((from, last)) = ask.header("range").and_then(|r| r["bytes=".len()..].split_once('-')) else {
        return reply;
    };
    let (from, last) = (from.parse::<usize>().unwrap(), last.parse().unwrap_or(whole - 1).min(whole - 1));
    reply.status = 206;
    reply.body = reply.body[from..=last].to_vec();
    reply.with("Content-Range", format!("bytes {from}-{last}/{whole}"))
}

/// Images with the given mirrors in front of a registry.
fn behind(dir: &std::path::Path, mirrors: &[u16], registry: &Server) -> Images {
    let certs = dir.join("certs").join(format!("127.0.0.1_{}_", registry.port));
    std::fs::create_dir_all(&certs).unwrap();
    let hosts: String = mirrors.iter().map(|p| format!("[host.\"http://127.0.0.1:{p}\"]\n")).collect();
    std::fs::write(certs.join("hosts.toml"), hosts).unwrap();
    let config =
        config::Images { certs_dirs: vec![dir.join("certs")], progress_timeout_seconds: 1, ..config() };
    Images::open(&dir.join("store"), &config).unwrap()
}

type Fault = fn(Reply) -> Reply;

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_goes_on_at_the_next_host() {
    let faults: [(&str, bool, Fault); 8] = [
        ("no such blob", false, |_| Reply::new(404, "")),
        ("an error", false, |_| Reply::new(500, "")),
        ("a limit", false, |_| Reply::new(429, "").with("Retry-After", "3600")),
        ("a break", true, |r| {
            let half = r.body.len() / 2;
            r.ends(End::BreakAt(half))
        }),
        ("a stall", true, |r| {
            let half = r.body.len() / 2;
            r.ends(End::StallAt(half))
        }),
        ("a drip", true, |r| {
            let half = r.body.len() / 2;
            r.ends(End::DripFrom(half))
        }),
        ("a short body", true, |mut r| {
            r.body.truncate(r.body.len() / 2);
            r
        }),
        ("other content", false, |mut r| {
            let end = r.body.len() - 600;
            r.body[end] ^= 1;
            r
        }),
    ];
    for (name, resumes, fault) in faults {
        let mut content = Content::default();
        let text = "x".repeat(4096);
        let layer = Layer::new(&tar(&[("a", &text), ("b", &text)]), Packing::Plain);
        let (_, id) = content.add("t", std::slice::from_ref(&layer), "{}");
        let bad = content.clone();
        let mirror = Server::start(move |ask| {
            let reply = ranged(&bad, ask);
            // Its remainder breaks as well.
            if is_layer(ask, &bad) { fault(reply) } else { reply }
        });
        let good = content.clone();
        let registry = Server::start(move |ask| ranged(&good, ask));
        let dir = tempfile::tempdir().unwrap();
        let images = behind(dir.path(), &[mirror.port], &registry);
        assert_eq!(images.pull(&registry.name("x:t"), None).await.unwrap().as_str(), id.as_str(), "{name}");
        let asks: Vec<_> = registry.asks();
        assert!(asks.iter().all(|a| is_layer(a, &content)), "{name}: the rest came from the mirror");
        assert_eq!(asks.len(), 1, "{name}");
        assert_eq!(asks[0].header("range").is_some(), resumes, "{name}: {:?}", asks[0]);
        assert!(left_over(&images, &dir.path().join("store")).await.is_empty(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_host_with_the_right_content_is_an_error() {
    let (content, ..) = small();
    let forge = |content: &Content| {
        let content = content.clone();
        Server::start(move |ask| {
            let mut reply = serve(&content, ask);
            if is_layer(ask, &content) {
                let end = reply.body.len() - 1;
                reply.body[end] ^= 1;
            }
            reply
        })
    };
    let (mirror, registry) = (forge(&content), forge(&content));
    let dir = tempfile::tempdir().unwrap();
    let images = behind(dir.path(), &[mirror.port], &registry);
    let error = images.pull(&registry.name("x:t"), None).await.unwrap_err();
    assert!(matches!(error, ImageError::DigestMismatch { .. } | ImageError::CorruptLayer { .. }), "{error}");
    assert!(left_over(&images, &dir.path().join("store")).await.is_empty());
    for server in [&mirror, &registry] {
        let layers = server.asks().iter().filter(|a| is_layer(a, &content)).count();
        assert!((1..=2).contains(&layers), "each layer at most once from each host: {layers}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_without_a_connection_is_passed() {
    let (content, _, id) = small();
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let registry = Server::serving(content);
    let dir = tempfile::tempdir().unwrap();
    let images = behind(dir.path(), &[dead], &registry);
    assert_eq!(images.pull(&registry.name("x:t"), None).await.unwrap().as_str(), id.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_busy_for_a_while_is_asked_again() {
    for (status, after) in [(503, Some("0")), (429, Some("0")), (429, None), (408, Some("0"))] {
        let (content, _, id) = small();
        let refused = AtomicUsize::new(0);
        let server = Server::start(move |ask| {
            // The first three requests for layers.
            if is_layer(ask, &content) && refused.fetch_add(1, Ordering::SeqCst) < 2 {
                let reply = Reply::new(status, "");
                return after.map_or(Reply::new(status, ""), |after| reply.with("Retry-After", after));
            }
            serve(&content, ask)
        });
        let root = tempfile::tempdir().unwrap();
        let images = open(root.path());
        assert_eq!(images.pull(&server.name("x:t"), None).await.unwrap().as_str(), id.as_str(), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_asked_to_wait_holds_no_slot() {
    let (content, _, id) = small();
    let busy_content = content.clone();
    let refused = Arc::new(tokio::sync::Notify::new());
    let told = Arc::clone(&refused);
    let busy = Server::start(move |ask| {
        if is_layer(ask, &busy_content) {
            told.notify_one();
            return Reply::new(429, "").with("Retry-After", "3600");
        }
        serve(&busy_content, ask)
    });
    let honest = Server::serving(content);
    let root = tempfile::tempdir().unwrap();
    let one = config::Images { max_concurrent_downloads: 1, ..config() };
    let images = Images::open(root.path(), &one).unwrap();
    let waiting = {
        let (images, name) = (images.clone(), busy.name("y:t"));
        tokio::spawn(async move { images.pull(&name, None).await })
    };
    refused.notified().await;
    // Other layers: the same ones would join the waiting download.
    let mut other = Content::default();
    let layer = Layer::new(&tar(&[("other", "x")]), Packing::Gzip);
    let (_, other_id) = other.add("t", &[layer], "{}");
    let quick = Server::serving(other);
    // Well below the minimum sleep of the waiting one (the cap of Retry-After).
    let patience = std::time::Duration::from_secs(20);
    let pulled = tokio::time::timeout(patience, images.pull(&quick.name("x:t"), None)).await;
    assert_eq!(pulled.expect("the slot is free").unwrap().as_str(), other_id.as_str());
    assert!(!waiting.is_finished());
    waiting.abort();
    let _ = waiting.await;
    assert_eq!(images.pull(&honest.name("x:t"), None).await.unwrap().as_str(), id.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_drips_is_too_slow() {
    let (content, ..) = small();
    let server = Server::start(move |ask| serve(&content, ask).ends(End::DripFrom(3)));
    let root = tempfile::tempdir().unwrap();
    let quick = config::Images { progress_timeout_seconds: 1, ..config() };
    let images = Images::open(root.path(), &quick).unwrap();
    let error = images.pull(&server.name("x:t"), None).await.unwrap_err();
    assert!(matches!(error, ImageError::TooSlow { .. }), "{error}");
}

/// A layer of a little more than five parts whose bytes do not compress.
fn large() -> (Content, Layer, String) {
    let mut state = 1u32;
    let noise: String = (0..(21 << 20))
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from(b'a' + u8::try_from(state >> 28).unwrap())
        })
        .collect();
    let layer = Layer::new(&tar(&[("noise", &noise)]), Packing::Plain);
    let mut content = Content::default();
    let (_, id) = content.add("t", std::slice::from_ref(&layer), "{}");
    (content, layer, id.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_layer_comes_in_parts_side_by_side() {
    let (content, layer, id) = large();
    // The fate of the third part, and how many requests for the layer it causes.
    let faults: [(&str, Option<Fault>, bool); 4] = [
        ("all is well", Some(|r| r), true),
        ("a part fails", Some(|_| Reply::new(403, "")), true),
        (
            "a part is short",
            Some(|mut r| {
                r.body.truncate(9);
                r
            }),
            true,
        ),
        ("the host ignores ranges", None, false),
    ];
    for (name, fault, ranges) in faults {
        let served = content.clone();
        let failed = AtomicUsize::new(0);
        let server = Server::start(move |ask| {
            let Some(fault) = fault else { return serve(&served, ask) };
            let third = ask.header("range").is_some_and(|r| r.starts_with("bytes=8388608-"));
            let reply = ranged(&served, ask);
            if third && failed.fetch_add(1, Ordering::SeqCst) == 0 { fault(reply) } else { reply }
        });
        let root = tempfile::tempdir().unwrap();
        let split = config::Images { parallel_range_bytes: 1, ..config() };
        let images = Images::open(root.path(), &split).unwrap();
        assert_eq!(images.pull(&server.name("x:t"), None).await.unwrap().as_str(), id, "{name}");
        let asks: Vec<_> = server.asks().into_iter().filter(|a| is_layer(a, &content)).collect();
        assert_eq!(asks[0].header("range"), Some("bytes=0-4194303"), "{name}");
        if ranges {
            assert!(asks.len() >= layer.blob.len().div_ceil(4 << 20), "{name}: {}", asks.len());
            let rest = asks.iter().any(|a| a.header("range") == Some("bytes=8388608-"));
            assert_eq!(rest, name != "all is well", "{name}: goes on as one stream where it stands");
        } else {
            assert_eq!(asks.len(), 1, "{name}");
        }
        let bytes = images.stats().bytes.load(Ordering::Relaxed);
        assert_eq!(bytes, u64::try_from(layer.blob.len()).unwrap(), "{name}: nothing is handed on twice");
    }
}
