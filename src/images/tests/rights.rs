//! Who gets what is on the node already: only a caller whom a registry shows to be entitled.

use super::fixture::{Content, Layer, MANIFEST, Packing, config, names, open, small, tar};
use super::server::{Ask, End, Reply, Server, serve};
use crate::images::digest::Digest;
use crate::images::state::MAX_NAMES;
use crate::images::{Credentials, ImageError, Images};
use std::sync::atomic::Ordering;

fn as_user(user: &str) -> Option<Credentials> {
    Some(Credentials { username: user.into(), password: "pw".into(), ..Default::default() })
}

fn user_of(ask: &Ask) -> String {
    use base64::Engine as _;
    let text = ask.header("authorization").and_then(|h| h.strip_prefix("Basic ")).unwrap_or_default();
    let pair = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    String::from_utf8(pair).unwrap().split(':').next().unwrap().to_owned()
}

/// Serves `content` to the callers that `may` accepts.
fn guarded(content: &Content, may: impl Fn(&Ask, &str) -> bool + Send + Sync + 'static) -> Server {
    let content = content.clone();
    Server::start(move |ask| match user_of(ask) {
        user if user.is_empty() => Reply::new(401, "{}").with("WWW-Authenticate", "Basic realm=\"r\""),
        user if may(ask, &user) => serve(&content, ask),
        _ => Reply::new(403, "{}"),
    })
}

fn is_layer(ask: &Ask, content: &Content) -> bool {
    let name = ask.path.rsplit('/').next().unwrap();
    content.blobs.get(name).is_some_and(|blob| blob[0] != b'{')
}

fn layer_asks(server: &Server, content: &Content) -> Vec<(String, String)> {
    let of_layer = server.asks().into_iter().filter(|ask| is_layer(ask, content));
    of_layer.map(|ask| (ask.method.clone(), ask.header("range").unwrap_or_default().to_owned())).collect()
}

/// The victim's image is on the node.
async fn private(images: &Images) -> (Server, Content, Digest) {
    let (content, manifest, _) = small();
    let server = guarded(&content, |_, user| user == "victim");
    images.pull(&server.name("team/private:t"), as_user("victim")).await.unwrap();
    (server, content, manifest)
}

fn names_of(images: &Images) -> Vec<String> {
    images.list().iter().flat_map(|image| image.names().cloned().collect::<Vec<_>>()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_in_a_registrys_mouth_is_no_image() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let (_victim, content, manifest) = private(&images).await;
    let before = names_of(&images);
    let size = content.manifests[manifest.as_str()].1.len();
    let digest = manifest.to_string();
    let evil = Server::start(move |ask| match ask.method.as_str() {
        "HEAD" if ask.path.contains("/manifests/") => Reply::new(200, vec![b'x'; size])
            .with("Docker-Content-Digest", digest.clone())
            .with("Content-Type", MANIFEST),
        _ => Reply::new(404, ""),
    });
    let error = images.pull(&evil.name("evil/x:latest"), None).await.unwrap_err();
    assert!(matches!(error, ImageError::NotAtRegistry { .. }), "{error}");
    // By the digest, from a server that has a page for everything.
    let page = Server::start(|_| Reply::new(200, "<html>Welcome</html>"));
    let error = images.pull(&page.name(&format!("any/page@{manifest}")), None).await.unwrap_err();
    assert!(matches!(error, ImageError::DigestMismatch { .. } | ImageError::SizeMismatch { .. }), "{error}");
    assert_eq!(names_of(&images), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_does_not_open_the_layers_that_it_lists() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let (_victim, content, _) = private(&images).await;
    let before = (names_of(&images), names(root.path(), "layers"));
    for lies in [false, true] {
        // The documents are all present, their bytes are known; the layers are not.
        let documents = content.clone();
        let evil = Server::start(move |ask| {
            let reply = serve(&documents, ask);
            if is_layer(ask, &documents) && !(lies && ask.method == "HEAD") {
                return Reply::new(404, "");
            }
            reply
        });
        let error = images.pull(&evil.name("evil/x:t"), None).await.unwrap_err();
        assert!(matches!(error, ImageError::NotAtRegistry { .. }), "{lies}: {error}");
    }
    // A blob of its own, claimed to be the victim's layer.
    let mut forged = Content::default();
    let victims = Layer::new(&tar(&[("etc/a", "upper"), ("etc/.wh.b", "")]), Packing::Zstd).diff_id;
    let own = Layer::new(&tar(&[("mine", "")]), Packing::Gzip);
    forged.add("t", &[Layer { diff_id: victims, ..own }], "{}");
    let evil = Server::serving(forged);
    let error = images.pull(&evil.name("evil/x:t"), None).await.unwrap_err();
    assert!(matches!(error, ImageError::DigestMismatch { .. }), "{error}");
    assert_eq!((names_of(&images), names(root.path(), "layers")), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_the_callers_who_may_have_it() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let (content, ..) = small();
    let blobs = content.clone();
    // Everybody may have the documents, but not everybody the layers.
    let server = guarded(&content, move |ask, user| user != "bob" || !is_layer(ask, &blobs));
    images.pull(&server.name("a/x:t"), as_user("alice")).await.unwrap();
    let fetched = layer_asks(&server, &content).len();
    for repository in ["a/x:t", "b/x:t"] {
        let error = images.pull(&server.name(repository), as_user("bob")).await.unwrap_err();
        assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
    }
    // Nor does a caller who knows the image but has no credentials.
    assert!(images.pull(&server.name("a/x:t"), None).await.is_err());
    assert!(names_of(&images).iter().all(|name| !name.contains("/b/")), "{:?}", names_of(&images));

    // Another entitled caller is checked by HEAD, without the bytes; once per repository and layer.
    let before = layer_asks(&server, &content).len();
    assert!(before > fetched);
    images.pull(&server.name("a/x:t"), as_user("carol")).await.unwrap();
    images.pull(&server.name("c/x:t"), as_user("carol")).await.unwrap();
    let asked = layer_asks(&server, &content).split_off(before);
    assert_eq!(asked.len(), 4, "{asked:?}");
    assert!(asked.iter().all(|(method, _)| method == "HEAD"), "{asked:?}");
    let before = server.asks().len();
    images.pull(&server.name("c/x:t"), as_user("carol")).await.unwrap();
    let methods: Vec<_> = server.asks()[before..].iter().map(|ask| ask.method.clone()).collect();
    assert!(methods.len() <= 2 && methods.iter().all(|method| method == "HEAD"), "{methods:?}");
    // A new process has forgotten the callers, and still knows the layers.
    drop(images);
    let images = open(root.path());
    let before = layer_asks(&server, &content).len();
    images.pull(&server.name("c/x:t"), as_user("carol")).await.unwrap();
    let asked = layer_asks(&server, &content).split_off(before);
    assert!(asked.len() == 2 && asked.iter().all(|(method, _)| method == "HEAD"), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_registry_shows_a_shared_layer_by_its_bytes() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let (content, _, id) = small();
    let (first, second) = (Server::serving(content.clone()), Server::serving(content.clone()));
    images.pull(&first.name("x:t"), None).await.unwrap();
    let layers = names(root.path(), "layers");
    for _ in 0..2 {
        assert_eq!(images.pull(&second.name("x:t"), None).await.unwrap().as_str(), id.as_str());
        let asked = layer_asks(&second, &content);
        assert!(asked.len() == 2 && asked.iter().all(|(method, _)| method == "GET"), "{asked:?}");
    }
    // From then on its word counts too.
    images.pull(&second.name("y:t"), None).await.unwrap();
    let asked = layer_asks(&second, &content).split_off(2);
    assert!(asked.len() == 2 && asked.iter().all(|(method, _)| method == "HEAD"), "{asked:?}");
    assert_eq!(names(root.path(), "layers"), layers);
    assert!(names(root.path(), "staging").is_empty());
    assert_eq!(images.stats().layers.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_head_is_asked_for_the_first_byte() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let (content, ..) = small();
    let serving = content.clone();
    let server = Server::start(move |ask| {
        let reply = serve(&serving, ask);
        if !is_layer(ask, &serving) {
            return reply;
        }
        match (ask.method.as_str(), ask.header("range")) {
            ("HEAD", _) => Reply::new(405, ""),
            (_, Some("bytes=0-0")) => {
                let total = reply.body.len();
                Reply::new(206, &reply.body[..1]).with("Content-Range", format!("bytes 0-0/{total}"))
            }
            _ => reply,
        }
    });
    images.pull(&server.name("x:t"), None).await.unwrap();
    images.pull(&server.name("y:t"), None).await.unwrap();
    let asked = layer_asks(&server, &content).split_off(2);
    assert_eq!(asked.iter().filter(|(_, range)| range == "bytes=0-0").count(), 2, "{asked:?}");
    assert_eq!(asked.iter().filter(|(method, range)| method == "GET" && range.is_empty()).count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_header_opened_is_closed_to_another_header() {
    let (content, ..) = small();
    let serving = content.clone();
    // Everybody may have the documents, the layers only whose header says so.
    let server = Server::start(move |ask| {
        if is_layer(ask, &serving) && ask.header("x-user") != Some("alice") {
            return Reply::new(403, "{}");
        }
        serve(&serving, ask)
    });
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs").join(format!("127.0.0.1_{}_", server.port));
    std::fs::create_dir_all(&certs).unwrap();
    let config = crate::config::Images { certs_dirs: vec![dir.path().join("certs")], ..config() };
    let images = Images::open(&dir.path().join("store"), &config).unwrap();
    let own = format!("server = \"http://127.0.0.1:{}\"\n", server.port);
    let say = |user: &str| {
        std::fs::write(certs.join("hosts.toml"), format!("{own}[header]\nx-user = \"{user}\"\n")).unwrap();
    };
    say("alice");
    images.pull(&server.name("x:t"), None).await.unwrap();
    say("bob");
    let error = images.pull(&server.name("x:t"), None).await.unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
    say("alice");
    images.pull(&server.name("x:t"), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_anothers_download_shows_a_right_of_their_own() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let (content, ..) = small();
    let serving = content.clone();
    let server = Server::start(move |ask| {
        let reply = serve(&serving, ask);
        let half = reply.body.len() / 2;
        match ask.path.contains("/evil/") {
            true if is_layer(ask, &serving) => Reply::new(404, ""),
            false if is_layer(ask, &serving) => reply.ends(End::StallAt(half)),
            _ => reply,
        }
    });
    let pull = |name: String| {
        let images = images.clone();
        tokio::spawn(async move { images.pull(&name, None).await })
    };
    let first = pull(server.name("team/x:t"));
    super::sharing::until("layers are staged", || names(root.path(), "staging").len() == 2).await;
    let second = pull(server.name("evil/x:t"));
    let config = content.blobs.iter().find(|(_, blob)| blob[0] == b'{').unwrap().0.clone();
    let of_evil = |ask: &Ask| ask.path.contains("/evil/") && ask.path.ends_with(&config);
    super::sharing::until("the second waits", || server.asks().iter().any(of_evil)).await;
    server.release();
    first.await.unwrap().unwrap();
    let error = second.await.unwrap().unwrap_err();
    assert!(matches!(error, ImageError::NotAtRegistry { .. }), "{error}");
    assert!(names_of(&images).iter().all(|name| !name.contains("evil")));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_an_image_are_limited() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let (mut content, manifest, id) = small();
    let body = content.manifests[manifest.as_str()].clone();
    (0..MAX_NAMES + 20).for_each(|n| drop(content.manifests.insert(format!("n{n}"), body.clone())));
    let server = Server::serving(content);
    images.pull(&server.name("other/x:t"), None).await.unwrap();
    for n in 0..MAX_NAMES + 20 {
        images.pull(&server.name(&format!("many/x:n{n}")), None).await.unwrap();
    }
    let check = |images: &Images| {
        let image = images.status(id.as_str()).unwrap();
        assert_eq!(image.repo_tags.len() + image.repo_digests.len(), MAX_NAMES);
        for kept in ["other/x:t".to_owned(), format!("many/x:n{}", MAX_NAMES + 19)] {
            assert!(image.repo_tags.contains(&server.name(&kept)), "{kept}");
        }
        assert!(!image.repo_tags.contains(&server.name("many/x:n0")), "the oldest goes");
        assert_eq!(image.repo_digests.len(), 2);
    };
    check(&images);
    drop(images);
    let images = open(root.path());
    check(&images);
    // The order is known after a restart.
    images.pull(&server.name("many/x:n0"), None).await.unwrap();
    let image = images.status(id.as_str()).unwrap();
    assert!(image.repo_tags.contains(&server.name("many/x:n0")));
    assert!(!image.repo_tags.contains(&server.name("many/x:n23")), "{:?}", image.repo_tags.len());
}
