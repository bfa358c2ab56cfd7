//! Where a registry may lead: services of this machine and its link are not reached on others' behalf, get no secret,
//! and their answers are not shown.

use super::faults::fails_cleanly;
use super::fixture::{config, open, small};
use super::server::{Reply, Server, serve};
use crate::config;
use crate::images::{Credentials, ImageError, Images};
use std::path::{Path, PathBuf};

const SECRET: &str = r#"{"errors":[{"code":"DENIED","message":"words of an inner service"}]}"#;

fn given() -> Credentials {
    Credentials { username: "me".into(), password: "hunter2".into(), ..Default::default() }
}

/// Names a host in the configuration: its own directory with this `hosts.toml`.
fn named(dir: &Path, host: &str, port: u16, hosts: &str) -> PathBuf {
    let own = dir.join(format!("{host}_{port}_"));
    std::fs::create_dir_all(&own).unwrap();
    std::fs::write(own.join("hosts.toml"), hosts).unwrap();
    dir.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_realm_on_this_machine_or_link_is_not_asked() {
    let inner = Server::start(|_| Reply::new(200, r#"{"access_token":"node-cloud-token"}"#));
    let port = inner.port;
    for (realm, words) in [
        (format!("http://127.0.0.1:{port}/token"), "this machine"),
        (format!("http://localhost:{port}/token"), "this machine"),
        (format!("http://[::ffff:127.0.0.1]:{port}/token"), "this machine"),
        (format!("http://0.0.0.0:{port}/token"), "this machine"),
        ("http://169.254.169.254/latest/token".into(), "link-local"),
        ("http://[fe80::1]/token".into(), "link-local"),
        (format!("http://u:p@127.0.0.1:{port}/token"), "credentials"),
    ] {
        let server = Server::start(move |_| {
            Reply::new(401, "{}").with("WWW-Authenticate", format!(r#"Bearer realm="{realm}",service="s""#))
        });
        for auth in [None, Some(given())] {
            let error = fails_cleanly(config(), &server.name("x:t"), auth).await;
            assert!(matches!(error, ImageError::Token { .. }), "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
        assert!(server.asks().iter().all(|ask| ask.header("authorization").is_none()));
    }
    assert!(inner.asks().is_empty(), "{:?}", inner.asks());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_to_another_service_of_this_machine_is_not_followed() {
    let inner = Server::start(|_| Reply::new(403, SECRET));
    let port = inner.port;
    for location in [
        format!("http://127.0.0.1:{port}/err-internal?do=it"),
        format!("http://localhost:{port}/err-internal"),
        format!("http://127.1:{port}/err-internal"),
        format!("http://[::1]:{port}/err-internal"),
    ] {
        let server = Server::start(move |_| Reply::new(307, "").with("Location", location.clone()));
        let error = fails_cleanly(config(), &server.name("x:t"), None).await;
        assert!(matches!(error, ImageError::Redirect { .. }), "{error}");
        assert!(error.to_string().contains("this machine"), "{error}");
    }
    assert!(inner.asks().is_empty(), "{:?}", inner.asks());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_may_name_what_it_leads_to() {
    let (content, _, id) = small();
    let blobs = content.clone();
    let storage = Server::start(move |ask| serve(&blobs, ask));
    let place = storage.name("");
    let server = Server::start(move |ask| {
        if ask.path.contains("/blobs/") {
            let to = format!("http://{}{}", place.trim_end_matches('/'), ask.path);
            return Reply::new(307, "").with("Location", to);
        }
        serve(&content, ask)
    });
    let error = fails_cleanly(config(), &server.name("x:t"), None).await;
    assert!(matches!(error, ImageError::Redirect { .. }) && storage.asks().is_empty(), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let certs = named(&dir.path().join("certs"), "127.0.0.1", storage.port, "");
    let config = config::Images { certs_dirs: vec![certs], ..config() };
    let images = Images::open(&dir.path().join("store"), &config).unwrap();
    assert_eq!(images.pull(&server.name("x:t"), None).await.unwrap().as_str(), id.as_str());
    assert!(!storage.asks().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_redirect_leads_gets_no_secret_and_names_no_realm() {
    let thief = Server::start(|ask| {
        if ask.path.starts_with("/token") {
            return Reply::new(200, r#"{"access_token":"t"}"#);
        }
        let host = ask.header("host").unwrap();
        Reply::new(401, SECRET).with("WWW-Authenticate", format!(r#"Bearer realm="http://{host}/token""#))
    });
    let place = thief.name("blob");
    let (content, ..) = small();
    let server = Server::start(move |ask| {
        if ask.header("authorization").is_none() {
            return Reply::new(401, "{}").with("WWW-Authenticate", r#"Basic realm="r""#);
        }
        if ask.path.contains("/blobs/") {
            return Reply::new(307, "").with("Location", format!("http://{place}"));
        }
        serve(&content, ask)
    });
    let dir = tempfile::tempdir().unwrap();
    let certs = named(dir.path(), "127.0.0.1", thief.port, "");
    let config = config::Images { certs_dirs: vec![certs], ..config() };
    let error = fails_cleanly(config, &server.name("x:t"), Some(given())).await;
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&format!("127.0.0.1:{}, where", thief.port)), "{text}");
    assert!(!text.contains("inner service"), "another's words: {text}");
    let asks = thief.asks();
    assert!(
        !asks.is_empty() && asks.iter().all(|ask| ask.method == "GET" && ask.path == "/blob"),
        "{asks:?}"
    );
    assert!(asks.iter().all(|ask| ask.header("authorization").is_none() && !ask.body.contains("hunter2")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leads_away_and_back_is_still_anothers() {
    let back = Server::start(|ask| {
        let to = ask.path.split_once("to=").unwrap().1.to_owned();
        Reply::new(307, "").with("Location", format!("http://{to}"))
    });
    let place = back.name("");
    let server = Server::start(move |ask| {
        let host = ask.header("host").unwrap();
        if ask.path.starts_with("/inner") {
            return Reply::new(401, SECRET).with("WWW-Authenticate", r#"Basic realm="r""#);
        }
        if ask.header("authorization").is_none() {
            return Reply::new(401, "{}").with("WWW-Authenticate", r#"Basic realm="r""#);
        }
        Reply::new(307, "").with("Location", format!("http://{place}?to={host}/inner"))
    });
    let dir = tempfile::tempdir().unwrap();
    let certs = named(dir.path(), "127.0.0.1", back.port, "");
    let config = config::Images { certs_dirs: vec![certs], ..config() };
    let images = Images::open(&dir.path().join("store"), &config).unwrap();
    let error = images.pull(&server.name("x:t"), Some(given())).await.unwrap_err().to_string();
    assert!(!error.contains("inner service"), "{error}");
    let inner: Vec<_> = server.asks().into_iter().filter(|ask| ask.path.starts_with("/inner")).collect();
    assert!(!inner.is_empty() && inner.iter().all(|ask| ask.header("authorization").is_none()), "{inner:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_a_host_stay_with_it() {
    let (content, _, id) = small();
    let blobs = content.clone();
    let storage = Server::start(move |ask| {
        if ask.path.starts_with("/token") {
            return Reply::new(200, r#"{"token":"tok"}"#);
        }
        serve(&blobs, ask)
    });
    let place = storage.name("");
    let server = Server::start(move |ask| {
        let place = place.trim_end_matches('/');
        if ask.header("authorization") != Some("Bearer tok") {
            let challenge = format!(r#"Bearer realm="http://{place}/token""#);
            return Reply::new(401, "{}").with("WWW-Authenticate", challenge);
        }
        if ask.path.contains("/blobs/") {
            return Reply::new(307, "").with("Location", format!("http://{place}{}", ask.path));
        }
        serve(&content, ask)
    });
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs");
    named(&certs, "127.0.0.1", storage.port, "[header]\nx-storage = \"s\"");
    let hosts = format!("server = \"http://127.0.0.1:{}\"\n[header]\nx-own = \"o\"", server.port);
    named(&certs, "127.0.0.1", server.port, &hosts);
    let config = config::Images { certs_dirs: vec![certs], ..config() };
    let images = Images::open(&dir.path().join("store"), &config).unwrap();
    assert_eq!(images.pull(&server.name("x:t"), None).await.unwrap().as_str(), id.as_str());
    assert!(server.asks().iter().all(|ask| ask.header("x-own") == Some("o")));
    assert!(storage.asks().iter().any(|ask| ask.path.starts_with("/token")));
    for ask in storage.asks() {
        assert!(ask.header("x-own").is_none() && ask.header("x-storage").is_none(), "{ask:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_looks_like_loopback_is_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    for (name, url) in [
        ("127.evil.example:80/x:t", "https://127.evil.example:80/v2/"),
        ("127.0.0.1:80/x:t", "http://127.0.0.1/v2/"),
    ] {
        assert_eq!(images.endpoints(name, false).await.unwrap().endpoints[0].0.url, url);
    }
    // Addresses that only the URL parser takes for one.
    for name in ["127.1:80/x:t", "0x7f.1:80/x:t", "0177.0.0.1:80/x:t", "1.2130706433/x:t"] {
        let error = images.pull(name, None).await.unwrap_err();
        assert!(matches!(error, ImageError::Malformed { .. }), "{name}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_document_elsewhere_is_told_without_its_words() {
    let index = |platform: &str| {
        let digest = crate::images::digest::Digest::sha256(b"");
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"digest":"{digest}","size":1,"platform":{platform}}}]}}"#
        )
    };
    for document in [
        r#""hunter2""#.to_owned(),
        r#"{"schemaVersion":"hunter2"}"#.to_owned(),
        r#"{"schemaVersion":2,"mediaType":"manifest.v hunter2","manifests":[]}"#.to_owned(),
        r#"{"schemaVersion":2,"config":{"digest":"hunter2","size":1},"layers":[]}"#.to_owned(),
        index(r#"{"os":"hunter2","architecture":"hunter2"}"#),
        "hunter2".to_owned(),
    ] {
        let inner = Server::start(move |ask| match ask.method.as_str() {
            "GET" => Reply::new(200, document.clone()),
            _ => Reply::new(404, ""),
        });
        let place = inner.name("");
        let server = Server::start(move |ask| {
            let to = format!("http://{}{}", place.trim_end_matches('/'), ask.path);
            Reply::new(307, "").with("Location", to)
        });
        let dir = tempfile::tempdir().unwrap();
        let certs = named(dir.path(), "127.0.0.1", inner.port, "");
        let config = config::Images { certs_dirs: vec![certs], ..config() };
        let error = fails_cleanly(config, &server.name("x:t"), None).await.to_string();
        assert!(inner.asks().iter().any(|ask| ask.method == "GET"), "{error}");
        assert!(error.contains("no manifest") && !error.contains("hunter2"), "{error}");
    }
}
