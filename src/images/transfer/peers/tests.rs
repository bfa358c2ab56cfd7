//! Stores that the other runtimes wrote themselves, if installed; and faulty stores.

use super::bolt::Bolt;
use super::{Imported, Peer};
use crate::images::Images;
use crate::images::tests::fixture::{Content, Layer, Packing, open, small, tar};
use crate::images::transfer::tests::{layout, named, pack, unpack};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Whether a program is installed; a test of a foreign store needs it.
pub(in crate::images::transfer) fn installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("not tested: {program} is not installed");
    }
    found
}

pub(in crate::images::transfer) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(in crate::images::transfer) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An image whose layers have what makes tars differ: hard and symbolic links, long and odd names, whiteouts, empty and larger
/// files.
pub(in crate::images::transfer) fn rich() -> (Content, String) {
    let big = "0123456789abcdef".repeat(40_000);
    let long = format!("d/{}", "n".repeat(180));
    let mut bottom = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_ustar();
    let data = tar(&[
        ("etc/", ""),
        ("etc/a", "lower"),
        ("etc/b", "gone"),
        ("big", &big),
        ("empty", ""),
        (&long, "l"),
    ]);
    let mut archive = ::tar::Archive::new(data.as_slice());
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let (mut header, path) = (entry.header().clone(), entry.path().unwrap().into_owned());
        bottom.append_data(&mut header, path, entry).unwrap();
    }
    header.set_size(0);
    header.set_mode(0o644);
    for (kind, name, target) in
        [(::tar::EntryType::Link, "hard", "etc/a"), (::tar::EntryType::Symlink, "sym", "etc/a")]
    {
        header.set_entry_type(kind);
        bottom.append_link(&mut header, name, target).unwrap();
    }
    let bottom = Layer::new(&bottom.into_inner().unwrap(), Packing::Gzip);
    let top = Layer::new(&tar(&[("etc/a", "upper"), ("etc/.wh.b", "")]), Packing::Gzip);
    let mut content = Content::default();
    // skopeo requires a history that agrees with the layers; it goes into the config behind its `config` object.
    let config = r#"{"Cmd":["/x"]},"history":[{"created_by":"a"},{"created_by":"b"}]"#;
    let (_, id) = content.add("t", &[bottom, top], config);
    (content, id.to_string())
}

pub(in crate::images::transfer) fn check(images: &Images, name: &str, id: &str) {
    let hold = images.hold(name).unwrap();
    assert_eq!(hold.image().id.as_str(), id);
    let read = |layer: usize, path: &str| std::fs::read(hold.layers()[layer].join(path)).unwrap();
    assert_eq!((read(0, "hard"), read(1, "etc/a")), (b"lower".to_vec(), b"upper".to_vec()));
    assert_eq!(read(0, "big").len(), 640_000);
}

fn results(imported: &[Imported]) -> Vec<(&str, String)> {
    let told = |i: &Imported| match &i.result {
        Ok(loaded) => loaded.names.join(" "),
        Err(error) => error.to_string(),
    };
    imported.iter().map(|i| (i.name.as_str(), told(i))).collect()
}

/// containers/storage mounts its directory upon itself and leaves it so.
struct Mount(std::path::PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        // It may not have reached the mount.
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_containers_storage() {
    if !installed("skopeo") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (content, id) = rich();
    let manifest = crate::images::digest::Digest::sha256(&content.manifests["t"].1);
    unpack(&layout(&content, &[(&manifest, &named("x"))]), &dir.path().join("layout"));
    let store = dir.path().join("store");
    let to =
        |name: &str| format!("containers-storage:[overlay@{}+{}/run]{name}", text(&store), text(dir.path()));
    let from = format!("oci:{}:x", text(&dir.path().join("layout")));
    let _mount = Mount(store.join("overlay"));
    run("skopeo", &["copy", "--insecure-policy", &from, &to("r.example/x:t")]);
    run("skopeo", &["copy", "--insecure-policy", &from, &to("r.example/y:u")]);

    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let peer = Peer::Crio { root: store.clone() };
    let none = images.import_from(peer.clone(), &["r.example/z".into()]).await.unwrap();
    assert!(none.len() == 1 && results(&none)[0].1.contains("is not in containers/storage"), "{none:?}");
    let imported = images.import_from(peer.clone(), &["r.example/x:t".into()]).await.unwrap();
    let names = format!("r.example/x:t r.example/x@{manifest} r.example/y:u r.example/y@{manifest}");
    assert_eq!(results(&imported), [("r.example/y:u", names)]);
    check(&images, "r.example/x:t", &id);
    let record = std::sync::Arc::clone(&images.inner.store.state().images[&id].record);
    assert!(
        record.blobs.iter().all(|b| content.blobs.contains_key(b.digest.as_str())),
        "blobs are the compressed ones"
    );

    // A file of the store that has changed, and one that has become shorter.
    let layer = std::fs::read_dir(store.join("overlay")).unwrap().find_map(|layer| {
        let big = layer.unwrap().path().join("diff/big");
        big.exists().then_some(big)
    });
    let big = layer.unwrap();
    let content = std::fs::read(&big).unwrap();
    for (change, expected) in [
        (b"#".iter().chain(&content[1..]).copied().collect(), "does not match its digest"),
        (content[1..].to_vec(), "big has become shorter"),
    ] as [(Vec<u8>, &str); 2]
    {
        std::fs::write(&big, change).unwrap();
        let root = tempfile::tempdir().unwrap();
        let images = open(root.path());
        let imported = images.import_from(peer.clone(), &[]).await.unwrap();
        assert!(results(&imported)[0].1.contains(expected), "{imported:?}");
        assert!(images.list().is_empty());
    }
}

/// Ends the daemon with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_containerd() {
    if !installed("containerd") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let config = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
        at("root"),
        at("state"),
        at("socket"),
        at("ttrpc")
    );
    std::fs::write(at("config.toml"), config).unwrap();
    let log = std::fs::File::create(at("log")).unwrap();
    let daemon =
        Command::new("containerd").args(["-c", text(&at("config.toml"))]).stderr(log).spawn().unwrap();
    let _daemon = Daemon(daemon);
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while std::os::unix::net::UnixStream::connect(at("socket")).is_err() {
        assert!(std::time::Instant::now() < patience, "{}", std::fs::read_to_string(at("log")).unwrap());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let (content, id) = rich();
    let manifest = crate::images::digest::Digest::sha256(&content.manifests["t"].1);
    let (other, other_manifest, _) = small();
    let full = |name: &str| format!(r#","annotations":{{"io.containerd.image.name":"{name}"}}"#);
    let mut whole = content.clone();
    whole.blobs.extend(other.blobs.clone());
    whole.manifests.extend(other.manifests.clone());
    let at_digest = format!("r.example/x@{manifest}");
    let entries = layout(
        &whole,
        &[
            (&manifest, &full("r.example/x:t")),
            (&manifest, &full(&at_digest)),
            (&manifest, &full(&id)),
            (&other_manifest, &full("r.example/lost:t")),
        ],
    );
    std::fs::write(at("images.tar"), pack(&entries)).unwrap();
    let ctr =
        |arguments: &[&str]| run("ctr", &[&["-a", text(&at("socket")), "-n", "k8s.io"], arguments].concat());
    ctr(&["images", "import", "--no-unpack", text(&at("images.tar"))]);
    // As containerd leaves it with discard_unpacked_layers.
    let lost = other.blobs.iter().find(|(_, body)| body[0] != b'{').unwrap().0;
    let blob = lost.replace("sha256:", "root/io.containerd.content.v1.content/blobs/sha256/");
    std::fs::remove_file(at(&blob)).unwrap();

    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let peer = Peer::Containerd { root: at("root") };
    let imported = images.import_from(peer.clone(), &[]).await.unwrap();
    let results = results(&imported);
    assert_eq!(results.len(), 2, "{results:?}");
    assert!(results[0].0 == "r.example/lost:t" && results[0].1.contains(lost), "{results:?}");
    assert_eq!(results[1].1, format!("r.example/x:t {at_digest}"));
    check(&images, "r.example/x:t", &id);

    // Many names: the images' bucket is then a tree of pages.
    for name in 0..300 {
        let name = format!("r.example/many/{}:{name}", "n".repeat(100));
        ctr(&["images", "tag", "r.example/x:t", &name]);
    }
    let imported = images.import_from(peer, &["r.example/x:t".into()]).await.unwrap();
    assert_eq!(imported[0].result.as_ref().unwrap().names.len(), 303, "with the repository at the digest");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_store_is_an_error() {
    let (dir, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let images = open(root.path());
    for peer in [Peer::Containerd { root: dir.path().into() }, Peer::Crio { root: dir.path().into() }] {
        let error = images.import_from(peer, &[]).await.unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
    }
    let error =
        images.import_from(Peer::Crio { root: dir.path().into() }, &["A B".into()]).await.unwrap_err();
    assert!(error.to_string().contains("malformed"), "{error}");
}

#[test]
fn a_hostile_database_costs_a_bounded_amount_of_reading() {
    const PAGE: usize = 4096;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.db");
    // Nine levels of branches, each two hundred times to the same page below: 10^18 leaves without a key.
    let mut file = vec![0; 12 * PAGE];
    file[..2 * PAGE].copy_from_slice(&database()[..2 * PAGE]);
    for (id, page) in file.chunks_mut(PAGE).enumerate().skip(2) {
        page[..8].copy_from_slice(&u64::try_from(id).unwrap().to_ne_bytes());
        let (kind, count) = if id < 11 { (1u16, 200u16) } else { (2, 0) };
        page[8..10].copy_from_slice(&kind.to_ne_bytes());
        page[10..12].copy_from_slice(&count.to_ne_bytes());
        for element in 0..usize::from(count) {
            let at = 16 + 16 * element + 8;
            page[at..at + 8].copy_from_slice(&u64::try_from(id + 1).unwrap().to_ne_bytes());
        }
    }
    std::fs::write(&path, &file).unwrap();
    let bolt = Bolt::open(&path).unwrap();
    let error = bolt.entries(&bolt.root()).unwrap_err().to_string();
    assert!(error.contains("more pages"), "{error}");

    // Two hundred elements, each of which fills all the room.
    let leaf = &mut file[2 * PAGE..3 * PAGE];
    leaf[8..10].copy_from_slice(&2u16.to_ne_bytes());
    for element in 0..200usize {
        let at = 16 + 16 * element;
        let (from, size) = (16 + 200 * 16 - at, PAGE - 16 - 200 * 16);
        for (field, number) in [(at, 0), (at + 4, from), (at + 8, size), (at + 12, 0)] {
            leaf[field..field + 4].copy_from_slice(&u32::try_from(number).unwrap().to_ne_bytes());
        }
    }
    std::fs::write(&path, &file).unwrap();
    let bolt = Bolt::open(&path).unwrap();
    let error = bolt.entries(&bolt.root()).unwrap_err().to_string();
    assert!(error.contains("larger than their page"), "{error}");
}

/// A database as bbolt writes it: two meta pages, a root with a bucket inline and one with a page of its own.
fn database() -> Vec<u8> {
    const PAGE: usize = 4096;
    fn leaf(page: &mut [u8], elements: &[(u32, &[u8], &[u8])]) {
        page[8..10].copy_from_slice(&2u16.to_ne_bytes());
        page[10..12].copy_from_slice(&u16::try_from(elements.len()).unwrap().to_ne_bytes());
        let mut data = 16 + 16 * elements.len();
        for (index, (flags, key, value)) in elements.iter().enumerate() {
            let at = 16 + 16 * index;
            let number = |n: usize| u32::try_from(n).unwrap().to_ne_bytes();
            page[at..at + 4].copy_from_slice(&flags.to_ne_bytes());
            page[at + 4..at + 8].copy_from_slice(&number(data - at));
            page[at + 8..at + 12].copy_from_slice(&number(key.len()));
            page[at + 12..at + 16].copy_from_slice(&number(value.len()));
            page[data..data + key.len()].copy_from_slice(key);
            page[data + key.len()..data + key.len() + value.len()].copy_from_slice(value);
            data += key.len() + value.len();
        }
    }
    let mut file = vec![0; 4 * PAGE];
    for (id, page) in file.chunks_mut(PAGE).enumerate() {
        page[..8].copy_from_slice(&u64::try_from(id).unwrap().to_ne_bytes());
    }
    for (id, transaction) in [(0, 8u64), (1, 7)] {
        let meta = &mut file[id * PAGE + 16..id * PAGE + 80];
        meta[..4].copy_from_slice(&0xed0c_daed_u32.to_ne_bytes());
        meta[4..8].copy_from_slice(&2u32.to_ne_bytes());
        meta[8..12].copy_from_slice(&4096u32.to_ne_bytes());
        meta[16..24].copy_from_slice(&(2 + transaction % 2).to_ne_bytes());
        meta[48..56].copy_from_slice(&transaction.to_ne_bytes());
        let sum = meta[..56].iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        meta[56..64].copy_from_slice(&sum.to_ne_bytes());
    }
    let mut inline = vec![0; 16 + 64];
    leaf(&mut inline[16..], &[(0, b"k", b"v")]);
    let paged = [3u64.to_ne_bytes(), [0; 8]].concat();
    leaf(
        &mut file[2 * PAGE..3 * PAGE],
        &[(1, b"inline", &inline), (1, b"paged", &paged), (0, b"plain", b"")],
    );
    leaf(&mut file[3 * PAGE..], &[(0, b"deep", b"down")]);
    file
}

#[test]
fn databases_of_bbolt() {
    use super::bolt::Value;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.db");
    let good = database();
    std::fs::write(&path, &good).unwrap();
    let bolt = Bolt::open(&path).unwrap();
    let values = |name: &[u8]| {
        let bucket = bolt.bucket(&bolt.root(), name).unwrap().unwrap();
        bolt.entries(&bucket).unwrap()
    };
    assert_eq!(values(b"inline"), [(b"k".to_vec(), Value::Bytes(b"v".to_vec()))]);
    assert_eq!(values(b"paged"), [(b"deep".to_vec(), Value::Bytes(b"down".to_vec()))]);
    assert!(bolt.bucket(&bolt.root(), b"plain").unwrap().is_none());
    assert!(bolt.is_current().unwrap());

    // The newer meta page damaged: the older counts, wherever it stands.
    let mut older = good.clone();
    older[16] ^= 1;
    std::fs::write(&path, &older).unwrap();
    assert!(!bolt.is_current().unwrap());
    let old = Bolt::open(&path).unwrap();
    assert_eq!(old.entries(&old.root()).unwrap()[0].0, b"deep");
    // Whatever byte is wrong, the worst result is an error.
    for at in 0..good.len() {
        if good[at] == 0 && at % 61 != 0 {
            continue;
        }
        for bit in [0x01, 0x80] {
            let mut bad = good.clone();
            bad[at] ^= bit;
            std::fs::write(&path, &bad).unwrap();
            let Ok(bolt) = Bolt::open(&path) else { continue };
            for name in [&b"inline"[..], b"paged"] {
                if let Ok(Some(bucket)) = bolt.bucket(&bolt.root(), name) {
                    let _ = bolt.entries(&bucket);
                }
            }
        }
    }
    std::fs::write(&path, &good[..100]).unwrap();
    let cut = Bolt::open(&path).unwrap();
    assert!(cut.entries(&cut.root()).is_err());
    std::fs::write(&path, b"").unwrap();
    assert!(Bolt::open(&path).unwrap_err().to_string().contains("meta page"));
}
