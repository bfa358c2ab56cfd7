//! Which host sees which credentials: examines every header that reaches a registry.

use super::fixture::{Content, config, open, small};
use super::server::{Ask, Reply, Server, serve};
use crate::config;
use crate::images::{Credentials, ImageError, Images};
use base64::Engine as _;
use std::path::Path;

/// A registry that wants this user by Basic; empty: nobody.
fn wants(user: &'static str, content: &Content) -> Server {
    let content = content.clone();
    Server::start(move |ask| {
        if user.is_empty() || ask.header("authorization") == Some(basic(user).as_str()) {
            serve(&content, ask)
        } else {
            Reply::new(401, "{}").with("WWW-Authenticate", "Basic realm=\"r\"")
        }
    })
}

fn basic(user: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:pw")))
}

fn given(user: &str) -> Credentials {
    Credentials { username: user.into(), password: "pw".into(), ..Default::default() }
}

fn auth_file(dir: &Path, entries: &[(String, &str)]) -> std::path::PathBuf {
    let list: Vec<_> = entries
        .iter()
        .map(|(key, user)| format!(r#""{key}":{{"username":"{user}","password":"pw"}}"#))
        .collect();
    let path = dir.join("auth.json");
    std::fs::write(&path, format!(r#"{{"auths":{{{}}}}}"#, list.join(","))).unwrap();
    path
}

fn seen(server: &Server) -> Vec<String> {
    let mut seen: Vec<_> =
        server.asks().iter().filter_map(|a: &Ask| a.header("authorization").map(str::to_owned)).collect();
    seen.sort();
    seen.dedup();
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callers_credentials_come_before_the_nodes() {
    let (content, _, id) = small();
    let server = wants("file", &content);
    let dir = tempfile::tempdir().unwrap();
    let file = auth_file(dir.path(), &[(format!("127.0.0.1:{}/x", server.port), "file")]);
    let config = config::Images { auth_files: vec![dir.path().join("absent"), file.clone()], ..config() };
    let images = Images::open(&dir.path().join("store"), &config).unwrap();
    // The caller's own are refused: the node's do not replace a wrong password.
    let error = images.pull(&server.name("x:t"), Some(given("caller"))).await.unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
    assert_eq!(seen(&server), [basic("caller")]);
    assert_eq!(images.pull(&server.name("x:t"), None).await.unwrap().as_str(), id.as_str());
    // Credentials for another registry are as good as none.
    let other = Credentials { server_address: "other.example".into(), ..given("caller") };
    images.pull(&server.name("x:t"), Some(other)).await.unwrap();
    // The entry is for one repository only.
    let error = images.pull(&server.name("y:t"), None).await.unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");

    // A file is read for each pull; a broken one is reported, and no pull continues without it.
    std::fs::write(&file, "{").unwrap();
    let error = images.pull(&server.name("x:t"), None).await.unwrap_err();
    assert!(matches!(&error, ImageError::Hosts { path, .. } if *path == file), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mirror_gets_its_own_credentials() {
    let (content, _, id) = small();
    let (first, second, registry) =
        (wants("first", &Content::default()), wants("second", &content), wants("own", &content));
    let open_mirror = wants("", &Content::default());
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join(format!("127.0.0.1_{}_", registry.port));
    std::fs::create_dir(&certs).unwrap();
    let hosts: String =
        [&first, &open_mirror, &second].map(|s| format!("[host.\"http://127.0.0.1:{}\"]\n", s.port)).concat();
    std::fs::write(certs.join("hosts.toml"), hosts).unwrap();
    let key = |server: &Server| format!("http://127.0.0.1:{}", server.port);
    let file =
        auth_file(dir.path(), &[(key(&first), "first"), (key(&second), "second"), (key(&registry), "own")]);
    let config =
        config::Images { certs_dirs: vec![dir.path().to_owned()], auth_files: vec![file], ..config() };
    let images = Images::open(&dir.path().join("store"), &config).unwrap();
    assert_eq!(images.pull(&registry.name("x:t"), None).await.unwrap().as_str(), id.as_str());
    assert_eq!(seen(&first), [basic("first")], "asked first, has nothing");
    assert_eq!(seen(&second), [basic("second")]);
    assert!(!open_mirror.asks().is_empty() && seen(&open_mirror).is_empty());
    assert!(registry.asks().is_empty(), "the second mirror had all");
    // The caller's are for the registry, which is not needed.
    images.pull(&registry.name("y:t"), Some(given("caller"))).await.unwrap();
    for server in [&first, &second, &open_mirror, &registry] {
        assert!(!seen(server).contains(&basic("caller")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_conf_leads_to_another_repository_with_its_own_credentials() {
    let (content, _, id) = small();
    let (mirror, registry) = (wants("mirror", &content), wants("", &Content::default()));
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("registries.conf");
    let text = format!(
        "[[registry]]\nprefix = \"r.example/team\"\nlocation = \"127.0.0.1:{}/own\"\ninsecure = true\n\
         [[registry.mirror]]\nlocation = \"127.0.0.1:{}/cache/team\"\ninsecure = true\n",
        registry.port, mirror.port
    );
    std::fs::write(&conf, text).unwrap();
    let file = auth_file(dir.path(), &[(format!("127.0.0.1:{}/cache", mirror.port), "mirror")]);
    let config = config::Images { registries_conf: conf, auth_files: vec![file], ..config() };
    let images = Images::open(&dir.path().join("store"), &config).unwrap();
    assert_eq!(images.pull("r.example/team/x:t", None).await.unwrap().as_str(), id.as_str());
    assert_eq!(seen(&mirror), [basic("mirror")]);
    assert!(mirror.asks().iter().all(|a| !a.path.contains("ns=") && a.path.starts_with("/v2/cache/team/x/")));
    assert!(registry.asks().is_empty());
    let image = images.status(id.as_str()).unwrap();
    assert_eq!(image.repo_tags, ["r.example/team/x:t"], "the name is the one that was asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_token_is_traded_for_an_access_token() {
    let (content, _, id) = small();
    let server = Server::start(move |ask| {
        let host = ask.header("host").unwrap().to_owned();
        if ask.path.starts_with("/token") {
            let good = ask.method == "POST"
                && ask.body.contains("grant_type=refresh_token")
                && ask.body.contains("refresh_token=identity")
                && !ask.body.contains("password");
            return Reply::new(
                if good { 200 } else { 400 },
                r#"{"access_token":"tok","refresh_token":"new"}"#,
            );
        }
        if ask.header("authorization") == Some("Bearer tok") {
            return serve(&content, ask);
        }
        Reply::new(401, "{}")
            .with("WWW-Authenticate", format!(r#"Bearer realm="http://{host}/token",service="s""#))
    });
    let dir = tempfile::tempdir().unwrap();
    let token = Credentials { identity_token: "identity".into(), ..Default::default() };
    let images = open(dir.path());
    assert_eq!(images.pull(&server.name("x:t"), Some(token)).await.unwrap().as_str(), id.as_str());
    assert!(server.asks().iter().all(|a| !a.path.contains("identity")), "no secret in a URL");
    // As `docker login` with an identity provider writes it.
    let file = dir.path().join("auth.json");
    let text = format!(
        r#"{{"auths":{{"127.0.0.1:{}":{{"auth":"MDAwOg==","identitytoken":"identity"}}}}}}"#,
        server.port
    );
    std::fs::write(&file, text).unwrap();
    let config = config::Images { auth_files: vec![file], ..config() };
    let images = Images::open(&dir.path().join("store"), &config).unwrap();
    assert_eq!(images.pull(&server.name("x:t"), None).await.unwrap().as_str(), id.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_in_mid_pull_is_renewed_once_for_all() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let (content, _, id) = small();
    let tokens = AtomicUsize::new(0);
    let server = Server::start(move |ask| {
        let host = ask.header("host").unwrap().to_owned();
        if ask.path.starts_with("/token") {
            let n = tokens.fetch_add(1, Ordering::SeqCst) + 1;
            return Reply::new(200, format!(r#"{{"token":"tok{n}","expires_in":300}}"#));
        }
        // The first token is good for documents, the second for layers: as if time had passed.
        let layer =
            ask.path.rsplit('/').next().and_then(|d| content.blobs.get(d)).is_some_and(|b| b[0] != b'{');
        let good = if layer { "Bearer tok2" } else { "Bearer tok1" };
        if ask.header("authorization") == Some(good) {
            return serve(&content, ask);
        }
        let challenge = format!(r#"Bearer realm="http://{host}/token",service="s",error="invalid_token""#);
        Reply::new(401, "{}").with("WWW-Authenticate", challenge)
    });
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(open(dir.path()).pull(&server.name("x:t"), None).await.unwrap().as_str(), id.as_str());
    let count = server.asks().iter().filter(|a| a.path.starts_with("/token")).count();
    assert_eq!(count, 2, "both layers share the second token");
}
