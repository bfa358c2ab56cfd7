//! Against the real thing: Debian's docker-registry on a free port.

use super::fixture::{Content, INDEX, Layer, Packing, config, open, tar};
use crate::config;
use crate::images::registry::{Proxies, Registry};
use crate::images::{ImageError, Images};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

struct DockerRegistry {
    child: Child,
    port: u16,
    dir: Arc<tempfile::TempDir>,
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn start() -> DockerRegistry {
    serve(Arc::new(tempfile::tempdir().unwrap()), "")
}

/// Serves the storage in `dir`; `tls` is a part of the `http` section.
fn serve(dir: Arc<tempfile::TempDir>, tls: &str) -> DockerRegistry {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = dir.path().join(format!("config-{port}.yml"));
    let storage = dir.path().join("data");
    let text = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {storage:?}}}}}\n\
         http: {{addr: \"127.0.0.1:{port}\"{tls}}}\n"
    );
    std::fs::write(&config, text).unwrap();
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("Debian's docker-registry is installed");
    let registry = DockerRegistry { child, port, dir };
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::yield_now();
    }
    registry
}

async fn push(port: u16, repository: &str, content: &Content) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let base = format!("http://127.0.0.1:{port}/v2/{repository}");
    for (digest, blob) in &content.blobs {
        let begun = http.post(format!("{base}/blobs/uploads/")).send().await.unwrap();
        let location = begun.headers()["location"].to_str().unwrap().to_owned();
        let join = if location.contains('?') { '&' } else { '?' };
        let put =
            http.put(format!("{location}{join}digest={digest}")).body(blob.clone()).send().await.unwrap();
        assert_eq!(put.status(), 201, "{digest}");
    }
    // Digests sort before tags, and an index needs its manifests.
    let (indexes, manifests): (Vec<_>, Vec<_>) =
        content.manifests.iter().partition(|(_, (kind, _))| *kind == INDEX);
    for (name, (media_type, body)) in manifests.into_iter().chain(indexes) {
        let put = http.put(format!("{base}/manifests/{name}")).header("content-type", *media_type);
        let put = put.body(body.clone()).send().await.unwrap();
        assert_eq!(put.status(), 201, "{name}: {}", put.text().await.unwrap());
    }
}

/// Two compressed layers behind an index with a foreign platform and an attestation.
fn image() -> (Content, String, String) {
    let mut content = Content::default();
    let layers = [
        Layer::new(&tar(&[("d/", ""), ("d/f", "lower"), ("d/g", "hidden")]), Packing::Gzip),
        Layer::new(&tar(&[("d/f", "upper"), ("d/.wh.g", "")]), Packing::Zstd),
        Layer::new(&tar(&[("plain", "p")]), Packing::Plain),
    ];
    let (manifest, id) =
        content.add("single", &layers, r#"{"Entrypoint":["/e"],"User":"nobody","Labels":{"a":"b"}}"#);
    let size = content.manifests["single"].1.len();
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[
            {{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{manifest}","size":{size},"platform":{{"os":"linux","architecture":"{arch}"}}}}]}}"#
    );
    let top = content.manifest("multi", INDEX, index.into_bytes());
    (content, top.to_string(), id.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_through_an_index_and_a_restart() {
    let registry = start();
    let (content, top, id) = image();
    push(registry.port, "team/app", &content).await;
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let name = format!("localhost:{}/team/app", registry.port);

    let pulled = images.pull(&format!("{name}:multi"), None).await.unwrap();
    assert_eq!(pulled.as_str(), id);
    let image = images.status(&id).unwrap();
    assert_eq!(image.repo_tags, [format!("{name}:multi")]);
    assert_eq!(image.repo_digests, [format!("{name}@{top}")]);
    assert!(image.size > 0);
    assert_eq!(images.config(&image.id).unwrap().entrypoint, ["/e"]);
    assert_eq!(images.status(&format!("{name}@{top}")).unwrap().id, image.id);
    assert!(images.raw_config(&image.id).unwrap().contains("rootfs"));

    let hold = images.hold(&id[..20]).unwrap();
    check_layers(hold.layers());
    let usage = images.fs_usage();
    assert!(usage.used_bytes >= 4096 && usage.inodes_used >= 7);

    // A second tag and the digest of the same image: no layer is transferred again.
    let bytes = images.stats().bytes.load(std::sync::atomic::Ordering::Relaxed);
    images.pull(&format!("{name}:single"), None).await.unwrap();
    images.pull(&format!("{name}@{top}"), None).await.unwrap();
    assert_eq!(images.stats().bytes.load(std::sync::atomic::Ordering::Relaxed), bytes);
    assert_eq!(images.list().len(), 1);
    assert_eq!(images.status(&id).unwrap().repo_tags.len(), 2);

    drop((hold, images));
    let images = open(root.path());
    assert_eq!(images.status(&id).unwrap().repo_tags.len(), 2);
    assert_eq!(images.fs_usage(), usage);
    check_layers(images.restore_hold(&pulled).unwrap().layers());

    let missing = images.pull(&format!("{name}:nothing"), None).await.unwrap_err();
    assert!(matches!(missing, ImageError::NotAtRegistry { .. }), "{missing}");
}

fn check_layers(layers: &[std::path::PathBuf]) {
    let read = |layer: &Path, name: &str| std::fs::read_to_string(layer.join(name)).unwrap();
    assert_eq!(layers.len(), 4, "three layers and the directories of the second");
    assert_eq!((read(&layers[0], "d/f"), read(&layers[1], "d/f")), ("lower".into(), "upper".into()));
    let whiteout = layers[1].join("d/g").symlink_metadata().unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    // The second layer only implies `d`; the directories layer on top repeats the first one's metadata.
    let implied = layers[1].join("d").metadata().unwrap();
    let repeated = layers[3].join("d").metadata().unwrap();
    assert_eq!((implied.mode() & 0o7777, implied.uid()), (0o755, 0));
    assert_eq!((repeated.mode() & 0o7777, repeated.uid(), repeated.mtime()), (0o750, 10, 1_000_000_000));
}

/// A self-signed certificate, its own authority.
pub(in crate::images) fn make_certificate(name: &str, certificate: &str, key: &str) {
    let (subject, names) = (format!("/CN={name}"), format!("subjectAltName=DNS:{name}"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", &subject, "-addext", &names, "-keyout", key])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-out", certificate])
        .stderr(Stdio::null())
        .status();
    assert!(made.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_a_private_authority() {
    let plain = start();
    let (content, _, id) = image();
    push(plain.port, "app", &content).await;
    let dir = Arc::clone(&plain.dir);
    let file = |name: &str| dir.path().join(name).into_os_string().into_string().unwrap();
    let (certificate, key) = (file("tls.pem"), file("tls.key"));
    make_certificate("localhost", &certificate, &key);
    let tls = serve(Arc::clone(&dir), &format!(", tls: {{certificate: {certificate:?}, key: {key:?}}}"));
    let name = format!("localhost:{}/app:single", tls.port);
    let certs = dir.path().join("certs.d").join(format!("localhost_{}_", tls.port));
    std::fs::create_dir_all(&certs).unwrap();
    let config = config::Images { certs_dirs: vec![dir.path().join("certs.d")], ..config() };
    let root = tempfile::tempdir().unwrap();
    let images = Images::open(root.path(), &config).unwrap();

    // The file is read for each pull: no restart between an unknown authority and a known one.
    let server = format!("server = \"https://localhost:{}\"\n", tls.port);
    std::fs::write(certs.join("hosts.toml"), &server).unwrap();
    let error = images.pull(&name, None).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ImageError::Unavailable { .. }) && text.contains("certificate"), "{text}");
    std::fs::write(certs.join("hosts.toml"), format!("{server}ca = {certificate:?}\n")).unwrap();
    assert_eq!(images.pull(&name, None).await.unwrap().as_str(), id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_opens_the_registry() {
    let plain = start();
    let (content, _, id) = image();
    push(plain.port, "app", &content).await;
    let dir = Arc::clone(&plain.dir);
    let file = |name: &str| dir.path().join(name).into_os_string().into_string().unwrap();
    let (certificate, key) = (file("server.pem"), file("server.key"));
    let (client, client_key) = (file("client.pem"), file("client.key"));
    make_certificate("localhost", &certificate, &key);
    make_certificate("node", &client, &client_key);
    let tls = format!(", tls: {{certificate: {certificate:?}, key: {key:?}, clientcas: [{client:?}]}}");
    let server = serve(Arc::clone(&dir), &tls);
    let name = format!("localhost:{}/app:single", server.port);
    let certs = dir.path().join("certs.d").join(format!("localhost_{}_", server.port));
    std::fs::create_dir_all(&certs).unwrap();
    let config = config::Images { certs_dirs: vec![dir.path().join("certs.d")], ..config() };
    let root = tempfile::tempdir().unwrap();
    let images = Images::open(root.path(), &config).unwrap();
    let hosts = format!("server = \"https://localhost:{}\"\nca = {certificate:?}\n", server.port);
    std::fs::write(certs.join("hosts.toml"), &hosts).unwrap();
    let error = images.pull(&name, None).await.unwrap_err();
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error}");
    std::fs::write(certs.join("hosts.toml"), format!("{hosts}client = [[{client:?}, {client_key:?}]]\n"))
        .unwrap();
    assert_eq!(images.pull(&name, None).await.unwrap().as_str(), id);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_may_skip_its_storage_may_not() {
    let plain = start();
    let (content, _, id) = image();
    push(plain.port, "app", &content).await;
    let dir = Arc::clone(&plain.dir);
    let file = |name: &str| dir.path().join(name).into_os_string().into_string().unwrap();
    let (certificate, key) = (file("tls.pem"), file("tls.key"));
    make_certificate("localhost", &certificate, &key);
    let tls = serve(Arc::clone(&dir), &format!(", tls: {{certificate: {certificate:?}, key: {key:?}}}"));
    let place = format!("https://localhost:{}", tls.port);
    let front = super::server::Server::start(move |ask| {
        let to = format!("{place}{}", ask.path);
        super::server::Reply::new(307, "").with("Location", to)
    });
    let certs = dir.path().join("certs.d");
    let own = |host: &str, port: u16, hosts: String| {
        let own = certs.join(format!("{host}_{port}_"));
        std::fs::create_dir_all(&own).unwrap();
        std::fs::write(own.join("hosts.toml"), hosts).unwrap();
    };
    own(
        "127.0.0.1",
        front.port,
        format!("server = \"http://127.0.0.1:{}\"\nskip_verify = true\nca = {certificate:?}\n", front.port),
    );
    own("localhost", tls.port, String::new());
    let config = config::Images { certs_dirs: vec![certs.clone()], ..config() };
    let root = tempfile::tempdir().unwrap();
    let images = Images::open(root.path(), &config).unwrap();
    let error = images.pull(&front.name("app:single"), None).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ImageError::Unavailable { .. }) && text.contains("certificate"), "{text}");
    // The node's settings for the storage itself apply there.
    own("localhost", tls.port, format!("ca = {certificate:?}\n"));
    assert_eq!(images.pull(&front.name("app:single"), None).await.unwrap().as_str(), id);
}

/// A proxy that leads every tunnel to `port`; returns its own port and the requests.
fn tunnels(port: u16) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    let asks = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asks);
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(client.try_clone().unwrap());
            let mut lines = (&mut reader).lines().map_while(Result::ok).take_while(|l| !l.is_empty());
            seen.lock().unwrap().extend(lines.next());
            lines.for_each(drop);
            let up = TcpStream::connect(("127.0.0.1", port)).unwrap();
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let (mut from, mut to) = (up.try_clone().unwrap(), up);
            std::thread::spawn(move || std::io::copy(&mut reader, &mut to));
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut client);
                let _ = client.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    (own, asks)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_used_but_never_for_this_machine() {
    let plain = start();
    let (content, _, id) = image();
    push(plain.port, "app", &content).await;
    let dir = Arc::clone(&plain.dir);
    let file = |name: &str| dir.path().join(name).into_os_string().into_string().unwrap();
    let (certificate, key) = (file("tls.pem"), file("tls.key"));
    make_certificate("registry.test", &certificate, &key);
    let tls = serve(Arc::clone(&dir), &format!(", tls: {{certificate: {certificate:?}, key: {key:?}}}"));
    let certs = dir.path().join("certs.d/registry.test");
    std::fs::create_dir_all(&certs).unwrap();
    std::fs::write(certs.join("hosts.toml"), format!("ca = {certificate:?}\n")).unwrap();
    let config = config::Images { certs_dirs: vec![dir.path().join("certs.d")], ..config() };
    let (proxy, asks) = tunnels(tls.port);
    let open = |variables: &[(&str, String)]| {
        let proxies =
            Proxies::from(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone()));
        let root = tempfile::tempdir().unwrap();
        let mut images = Images::open(root.path(), &config).unwrap();
        Arc::get_mut(&mut images.inner).unwrap().registry = Registry::with_proxies(&config, proxies);
        (images, root)
    };
    let url = format!("http://127.0.0.1:{proxy}");
    let (images, _root) = open(&[("HTTPS_PROXY", url.clone()), ("HTTP_PROXY", url.clone())]);
    // Plain http to this machine, past the proxy.
    assert_eq!(
        images.pull(&format!("127.0.0.1:{}/app:single", plain.port), None).await.unwrap().as_str(),
        id
    );
    assert!(asks.lock().unwrap().is_empty());
    assert_eq!(images.pull("registry.test/app:single", None).await.unwrap().as_str(), id);
    assert!(asks.lock().unwrap().iter().all(|line| line == "CONNECT registry.test:443 HTTP/1.1"));
    let before = asks.lock().unwrap().len();
    assert!(before > 0);
    // A name that cannot be resolved here: only the proxy reaches it.
    let (images, _root) = open(&[("HTTPS_PROXY", url), ("NO_PROXY", "registry.test".into())]);
    let error = images.pull("registry.test/app:single", None).await.unwrap_err();
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error}");
    assert_eq!(asks.lock().unwrap().len(), before);
}
