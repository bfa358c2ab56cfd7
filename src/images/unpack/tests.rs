//! Layers made by hand, applied for real. Need root. Breakout cases follow the names of containerd's TestBreakouts.

use super::{Limits, OPAQUE, Unpacked, unpack};
use crate::images::error::ImageError;
use std::fs::Permissions;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

const LIMITS: Limits = Limits { bytes: 1 << 20, entries: 1000 };

/// A staging directory inside a directory whose every change would be a breakout.
struct Layer {
    dir: tempfile::TempDir,
}

impl Layer {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["staging", "staging/fs", "staging/replaced", "outside"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        std::fs::write(dir.path().join("outside/victim"), "untouched").unwrap();
        std::fs::set_permissions(dir.path().join("outside/victim"), Permissions::from_mode(0o600)).unwrap();
        Self { dir }
    }

    /// Unpacks; whatever can be unpacked can be made again, byte for byte.
    fn apply(&self, tar: &[u8]) -> Result<Unpacked, ImageError> {
        let staging = self.dir.path().join("staging");
        let unpacked = unpack(tar, &staging, "test", LIMITS)?;
        let mut again = Vec::new();
        std::io::Read::read_to_end(&mut crate::images::recipe::tar(&staging)?, &mut again).unwrap();
        assert!(again == tar, "{} bytes became {}", tar.len(), again.len());
        Ok(unpacked)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join("staging/fs").join(path)
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.at(path)).unwrap()
    }

    /// Everything beside the layer, with content, mode, owner and times.
    fn outside(&self) -> String {
        let mut seen = String::new();
        let mut dirs = vec![self.dir.path().to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).unwrap() {
                let path = entry.unwrap().path();
                if path.ends_with("staging") {
                    continue;
                }
                let meta = path.symlink_metadata().unwrap();
                seen +=
                    &format!("{path:?} {:o} {} {} {}\n", meta.mode(), meta.uid(), meta.mtime(), meta.nlink());
                if meta.is_dir() {
                    dirs.push(path);
                } else {
                    seen += &std::fs::read_to_string(path).unwrap();
                }
            }
        }
        seen
    }
}

pub(crate) fn entry(kind: EntryType, path: &str, link: &str, content: &str) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(1_234_567_890);
    header.set_size(u64::try_from(content.len()).unwrap());
    let gnu = header.as_gnu_mut().unwrap();
    gnu.name[..path.len()].copy_from_slice(path.as_bytes());
    gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
    if matches!(kind, EntryType::Char | EntryType::Block) {
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
    }
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(content.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

pub(crate) fn file(path: &str, content: &str) -> Vec<u8> {
    entry(EntryType::Regular, path, "", content)
}

pub(crate) fn dir(path: &str) -> Vec<u8> {
    entry(EntryType::Directory, path, "", "")
}

pub(crate) fn symlink(path: &str, target: &str) -> Vec<u8> {
    entry(EntryType::Symlink, path, target, "")
}

pub(crate) fn hard_link(path: &str, target: &str) -> Vec<u8> {
    entry(EntryType::Link, path, target, "")
}

pub(crate) fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    builder.append_pax_extensions(records.iter().copied()).unwrap();
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1024);
    bytes
}

/// The required result of a breakout attempt.
enum Must {
    /// A refusal that contains this text.
    Fail(&'static str),
    /// This file inside the layer.
    Land(&'static str),
}

#[test]
fn breakouts() {
    use Must::{Fail, Land};
    let cases: Vec<(&str, Vec<Vec<u8>>, Must)> = vec![
        ("file up and out", vec![file("../../outside/victim", "x")], Land("outside/victim")),
        ("file absolute", vec![file("/outside/victim", "x")], Land("outside/victim")),
        ("file through dots", vec![file("a/../../../outside/victim", "x")], Land("outside/victim")),
        (
            "symlink absolute",
            vec![dir("outside/"), symlink("l", "/outside"), file("l/victim", "x")],
            Land("outside/victim"),
        ),
        (
            "symlink up and out",
            vec![symlink("l", "../../outside"), file("l/victim", "x")],
            Land("outside/victim"),
        ),
        (
            "symlink chain",
            vec![symlink("a", "../.."), symlink("b", "a/../outside"), file("b/victim", "x")],
            Land("outside/victim"),
        ),
        ("symlink loop", vec![symlink("a", "b"), symlink("b", "a"), file("a/x", "x")], Fail("loop")),
        ("symlink to itself", vec![symlink("a", "a"), file("a/x", "x")], Fail("loop")),
        ("file over symlink", vec![symlink("l", "../../outside/victim"), file("l", "x")], Land("l")),
        (
            "directory over symlink",
            vec![symlink("l", "../../outside"), dir("l/"), file("l/victim", "x")],
            Land("l/victim"),
        ),
        (
            "symlink over directory that was the parent",
            vec![dir("d/"), file("d/a", "a"), symlink("d", "../../outside"), file("d/victim", "x")],
            Land("outside/victim"),
        ),
        ("hardlink down and out", vec![hard_link("h", "../../outside/victim")], Fail("not in this layer")),
        (
            "hardlink via symlink",
            vec![symlink("l", "../../outside"), hard_link("h", "l/victim"), file("h", "x")],
            Fail("not in this layer"),
        ),
        (
            "write through hardlinked symlink",
            vec![symlink("l", "../../outside/victim"), hard_link("h", "l"), file("h", "x")],
            Land("h"),
        ),
        (
            "metadata through hardlinked symlink",
            vec![
                symlink("l", "../../outside/victim"),
                hard_link("h", "l"),
                entry(EntryType::Symlink, "h", "x", ""),
            ],
            Land("l"),
        ),
        ("hardlink to directory", vec![dir("d/"), hard_link("h", "d")], Fail("directory")),
        ("hardlink to root", vec![hard_link("h", "/")], Fail("root")),
        ("whiteout of root", vec![file(".wh.", "")], Fail("no name")),
        ("whiteout of dot", vec![file("a/.wh..", "")], Fail("no name")),
        ("whiteout of parent", vec![file("a/.wh...", "")], Fail("no name")),
        (
            "whiteout through symlink",
            vec![symlink("l", "../../outside"), file("l/.wh.victim", "")],
            Land("outside/victim"),
        ),
        ("parent is a file", vec![file("f", "f"), file("f/x", "x")], Fail("not a directory")),
        ("symlink without target", vec![symlink("l", "")], Fail("not a path")),
        ("root as a file", vec![file("/", "x"), file("ok", "x")], Land("ok")),
        ("name too long", vec![pax(&[("path", "n".repeat(256).as_bytes())]), file("x", "")], Fail("255")),
        ("path too long", vec![pax(&[("path", "p/".repeat(2500).as_bytes())]), file("x", "")], Fail("4095")),
        ("unknown type", vec![entry(EntryType::new(b'Z'), "z", "", "")], Fail("type")),
    ];
    for (name, entries, must) in cases {
        let layer = Layer::new();
        let before = layer.outside();
        let result = layer.apply(&entries.concat());
        assert_eq!(layer.outside(), before, "{name}");
        match (must, result) {
            (Must::Fail(words), Err(error)) => assert!(error.to_string().contains(words), "{name}: {error}"),
            (Must::Land(path), Ok(_)) => assert!(layer.at(path).symlink_metadata().is_ok(), "{name}"),
            (Must::Fail(_), Ok(_)) => panic!("{name}: was accepted"),
            (Must::Land(_), Err(error)) => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn whiteouts_become_overlays_own() {
    let layer = Layer::new();
    let whiteout = |name: &str| layer.at(name).symlink_metadata().unwrap();
    let opaque = |name: &str| {
        let mut value = [0u8; 1];
        rustix::fs::getxattr(layer.at(name), OPAQUE, &mut value[..]).is_ok_and(|_| value == *b"y")
    };
    let tar = [
        file("a/.wh.gone", ""),
        file("a/kept", "x"),
        file("a/.wh.kept", ""),
        file("o/before", "x"),
        file("o/.wh..wh..opq", ""),
        file("o/after", "x"),
        file(".wh.again", ""),
        dir("again/"),
        file("again/x", "x"),
        file(".wh.implied", ""),
        file("implied/x", "x"),
        dir("dir/"),
        file(".wh.dir", ""),
        file(".wh..wh.plnk", ""),
    ]
    .concat();
    let unpacked = layer.apply(&tar).unwrap();
    assert!(whiteout("a/gone").file_type().is_char_device() && whiteout("a/gone").rdev() == 0);
    assert_eq!(
        (layer.read("a/kept"), layer.read("o/before"), layer.read("o/after")),
        ("x".into(), "x".into(), "x".into())
    );
    assert!(opaque("o") && opaque("again") && opaque("implied") && opaque("dir"));
    assert!(!opaque("a") && !layer.at(".wh..wh.plnk").exists());
    assert!(!layer.at("o/.wh..wh..opq").exists() && !layer.at("a/.wh.gone").exists());
    let implied: Vec<_> = unpacked.implied.iter().map(|p| String::from_utf8_lossy(p).into_owned()).collect();
    assert_eq!(implied, ["a", "implied", "o"]);
}

#[test]
fn metadata_is_kept() {
    let layer = Layer::new();
    let capability: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut setuid = entry(EntryType::Regular, "bin/su", "", "x");
    setuid[100..108].copy_from_slice(b"0006755\0");
    let sum: u64 = setuid[..512]
        .iter()
        .enumerate()
        .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u64::from(*b) })
        .sum();
    setuid[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let tar = [
        dir("bin/"),
        pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.x", b"y"),
            ("uid", b"3000000000"),
            ("mtime", b"1000000000.5"),
        ]),
        setuid,
        hard_link("bin/su2", "bin/su"),
        entry(EntryType::Char, "null", "", ""),
        entry(EntryType::Fifo, "fifo", "", ""),
        symlink("link", "bin/su"),
    ]
    .concat();
    let unpacked = layer.apply(&tar).unwrap();
    let su = layer.at("bin/su").metadata().unwrap();
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid(), su.nlink()), (0o6755, 3_000_000_000, 2, 2));
    assert_eq!((su.mtime(), su.mtime_nsec()), (1_000_000_000, 500_000_000));
    let mut names = vec![0u8; 1024];
    let length = rustix::fs::listxattr(layer.at("bin/su"), &mut names[..]).unwrap();
    assert_eq!(&names[..length], b"security.capability\0");
    assert_eq!(layer.at("bin").metadata().unwrap().mtime(), 1_234_567_890, "set after its children");
    let null = layer.at("null").symlink_metadata().unwrap();
    assert_eq!((null.rdev(), null.uid()), (rustix::fs::makedev(1, 3), 1));
    assert!(layer.at("fifo").symlink_metadata().unwrap().file_type().is_fifo());
    let link = layer.at("link").symlink_metadata().unwrap();
    assert_eq!((link.uid(), link.mtime()), (1, 1_234_567_890));
    assert!(unpacked.implied.is_empty());
    assert_eq!(unpacked.inodes, 6, "root, bin, su, null, fifo, link; a hard link has none of its own");
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let layer = Layer::new();
    let tar = [
        file("f", "one"),
        file("f", "two"),
        dir("d/"),
        file("d/x", "x"),
        file("d", "now a file"),
        file("g", "file"),
        dir("g/"),
        file("g/y", "y"),
    ]
    .concat();
    layer.apply(&tar).unwrap();
    assert_eq!(
        (layer.read("f"), layer.read("d"), layer.read("g/y")),
        ("two".into(), "now a file".into(), "y".into())
    );
}

#[test]
fn long_names_and_sparse_files() {
    let layer = Layer::new();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o600);
    builder.append_data(&mut header, &long, &b"x"[..]).unwrap();
    let mut tar = builder.into_inner().unwrap();
    tar.truncate(tar.len() - 1024);
    let records: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse1"),
        ("GNU.sparse.realsize", b"10000"),
    ];
    let map = format!("{:\0<512}{}", "2\n0\n3\n9000\n2\n", "abcde");
    tar.extend([pax(records), file("GNUSparseFile.0/sparse1", &map)].concat());
    let old: &[(&str, &[u8])] = &[("GNU.sparse.size", b"5000"), ("GNU.sparse.map", b"4096,2")];
    tar.extend([pax(old), file("sparse0", "zz")].concat());
    layer.apply(&tar).unwrap();
    assert_eq!(layer.read(&long), "x");
    let sparse = std::fs::read(layer.at("sparse1")).unwrap();
    assert_eq!(
        (sparse.len(), &sparse[..3], &sparse[9000..9002], sparse[5000]),
        (10_000, &b"abc"[..], &b"de"[..], 0)
    );
    let sparse = std::fs::read(layer.at("sparse0")).unwrap();
    assert_eq!((sparse.len(), &sparse[4096..4098]), (5000, &b"zz"[..]));
}

#[test]
fn bombs_meet_their_caps() {
    let big_name = |kind: u8, size: u64| {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::new(kind));
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let many: Vec<u8> = (0..1001).flat_map(|n| hard_link(&format!("h{n}"), "f")).collect();
    let holes: &[(&str, &[u8])] = &[("GNU.sparse.size", b"9000000000000000000"), ("GNU.sparse.map", b"0,0")];
    for (name, tar, words) in [
        ("entries", [file("f", ""), many].concat(), "entries"),
        ("PAX header", big_name(b'x', 1 << 40), "PAX"),
        ("GNU name", big_name(b'L', 1 << 40), "long name"),
        ("content", [file("f", &"x".repeat(900_000)), file("g", &"x".repeat(200_000))].concat(), "content"),
        ("8 EiB of hole", [pax(holes), file("f", "")].concat(), "limit"),
        ("overlapping PAX size", [pax(&[("size", b"99999")]), file("f", "x")].concat(), "ends within"),
        ("owner", [pax(&[("uid", b"4294967295")]), file("f", "x")].concat(), "owner"),
        ("truncated header", file("f", "x")[..300].to_vec(), "ends within"),
    ] {
        let error = Layer::new().apply(&tar).unwrap_err().to_string();
        assert!(error.contains(words), "{name}: {error}");
    }
}

#[test]
fn the_stream_is_read_to_its_end() {
    let tar = [file("f", "x"), vec![0; 1024], vec![7; 5000]].concat();
    let mut source = &tar[..];
    let layer = Layer::new();
    unpack(&mut source, &layer.dir.path().join("staging"), "test", LIMITS).unwrap();
    assert!(source.is_empty() && Path::new(&layer.at("f")).exists());
}

/// Known ways to stall the thread that applies a layer: each ends at a limit, within the time that a layer of honest
/// bytes may take.
#[test]
fn a_layer_of_headers_alone_ends() {
    for (name, header) in [
        ("x", pax(&[("comment", b"x")])),
        ("g", entry(EntryType::XGlobalHeader, "g", "", "")),
        ("L", entry(EntryType::GNULongName, "l", "", "name")),
        ("K", entry(EntryType::GNULongLink, "k", "", "name")),
    ] {
        let error = Layer::new().apply(&header.repeat(50)).unwrap_err().to_string();
        assert!(error.contains("headers before an entry"), "{name}: {error}");
        // Few before each entry, they count as entries.
        let counted = [header.repeat(4), file("f", "")].concat();
        Layer::new().apply(&counted.repeat(200)).unwrap();
        let error = Layer::new().apply(&counted.repeat(201)).unwrap_err().to_string();
        assert!(error.contains("entries"), "{name}: {error}");
    }
}

#[test]
fn extended_attributes_are_few() {
    let names: Vec<String> = (0..1100).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
    let records: Vec<(&str, &[u8])> = names.iter().map(|name| (&name[..], &b"x"[..])).collect();
    let error = Layer::new().apply(&[pax(&records), file("f", "")].concat()).unwrap_err().to_string();
    assert!(error.contains("1024 extended attributes"), "{error}");
}

/// A byte in each of many blocks takes the blocks.
#[test]
fn a_sparse_file_counts_what_it_takes_on_disk() {
    let map: String = (0..300).map(|n| format!("{},1,", n * 4096)).collect();
    let sparse = |size: &[u8]| {
        let holes: &[(&str, &[u8])] =
            &[("GNU.sparse.size", size), ("GNU.sparse.map", map.trim_end_matches(',').as_bytes())];
        [pax(holes), file("f", &"x".repeat(300))].concat()
    };
    let error = Layer::new().apply(&sparse(b"1040000")).unwrap_err().to_string();
    assert!(error.contains("sparse map beyond"), "{error}");
    let limits = Limits { bytes: 2 << 20, entries: 10 };
    let layer = Layer::new();
    let staging = layer.dir.path().join("staging");
    let unpacked = unpack(&sparse(b"1228800")[..], &staging, "test", limits).unwrap();
    assert!(unpacked.bytes >= 300 * 4096, "{}", unpacked.bytes);
    let layer = Layer::new();
    let twice = [sparse(b"1228800"), sparse(b"1228800")].concat();
    let error =
        unpack(&twice[..], &layer.dir.path().join("staging"), "test", limits).unwrap_err().to_string();
    assert!(error.contains("the content"), "{error}");
}

/// Chained links to long paths: a single look-up walks 80,000 components, and each entry has one or more.
#[test]
fn walks_through_links_are_counted() {
    let long = "d/../".repeat(800);
    let mut tar = dir("d/");
    for n in 0..30 {
        let target = if n == 0 { format!("{long}d") } else { format!("{long}l{}", n - 1) };
        tar.extend([pax(&[("linkpath", target.as_bytes())]), symlink(&format!("l{n}"), "x")].concat());
    }
    // The second directory prevents caching of the path.
    tar.extend([dir("e/")].concat());
    let few: Vec<u8> =
        (0..5).flat_map(|n| [file(&format!("l29/{n}"), ""), file(&format!("e/{n}"), "")].concat()).collect();
    Layer::new().apply(&[tar.clone(), few].concat()).unwrap();
    let many: Vec<u8> = (0..40_000)
        .flat_map(|n| [file(&format!("l29/{n}"), ""), file(&format!("e/{n}"), "")].concat())
        .collect();
    let layer = Layer::new();
    let limits = Limits { bytes: 1 << 30, entries: 1 << 20 };
    let staging = layer.dir.path().join("staging");
    let error = unpack(&[tar, many].concat()[..], &staging, "test", limits).unwrap_err().to_string();
    assert!(error.contains("walks through paths"), "{error}");
}

/// Directories that only paths imply were looked up from the root one by one: the square of the depth for each entry.
#[test]
fn a_deep_path_costs_its_components() {
    let deep = "d/".repeat(900);
    let entries: Vec<u8> = (0..100)
        .flat_map(|n| [pax(&[("path", format!("{deep}{n}/f").as_bytes())]), file("x", "")].concat())
        .collect();
    let unpacked = Layer::new();
    let limits = Limits { bytes: 1 << 30, entries: 1000 };
    let staging = unpacked.dir.path().join("staging");
    let implied = unpack(&entries[..], &staging, "test", limits).unwrap().implied;
    assert_eq!(implied.len(), 1000);
}

#[test]
fn a_link_made_again_and_again_is_given_up() {
    let layer = Layer::new();
    let tar = |times: usize| {
        let mut builder = Builder::new(Vec::new());
        for _ in 0..times {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, "link", "x".repeat(4000)).unwrap();
        }
        builder.into_inner().unwrap()
    };
    let error = layer.apply(&tar(300)).unwrap_err();
    assert!(error.to_string().contains("the targets of symbolic links"), "{error}");
    Layer::new().apply(&tar(100)).unwrap();
}
