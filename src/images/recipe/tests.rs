//! Recipes of layers made by hand: exact round trips where files were replaced, damage that is named, and the cost.

use super::{Damage, RECIPE, REPLACED, Recreated, exists, tar};
use crate::images::error::ImageError;
use crate::images::unpack::tests::{dir, entry, file, hard_link, pax, symlink};
use crate::images::unpack::{Limits, unpack};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use tar::EntryType;

const LIMITS: Limits = Limits { bytes: 1 << 30, entries: 100_000 };

struct Layer {
    dir: tempfile::TempDir,
}

impl Layer {
    fn of(tar: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["fs", REPLACED] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        unpack(tar, dir.path(), "test", LIMITS).unwrap();
        Self { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn at(&self, path: &str) -> PathBuf {
        self.path().join(path)
    }

    fn kept(&self) -> usize {
        std::fs::read_dir(self.at(REPLACED)).unwrap().count()
    }

    fn again(&self) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let read = tar(self.path()).map_err(|e| e.to_string())?.read_to_end(&mut bytes);
        read.map(|_| bytes).map_err(|e| e.to_string())
    }

    fn told(&self) -> Vec<(String, &'static str)> {
        let mut recreated = Recreated::open(self.path(), Damage::Told(Vec::new())).unwrap();
        std::io::copy(&mut recreated, &mut std::io::sink()).unwrap();
        let text = |(path, reason): (Vec<u8>, _)| (String::from_utf8(path).unwrap(), reason);
        recreated.into_told().into_iter().map(text).collect()
    }
}

fn big(seed: u8, length: usize) -> String {
    (0..length)
        .map(|at| char::from(b'a' + u8::try_from((at * 7 + usize::from(seed)) % 26).unwrap()))
        .collect()
}

#[test]
fn what_a_layer_itself_replaces_is_still_in_its_tar() {
    let long = big(1, 200_000);
    for (name, entries, kept) in [
        ("nothing", vec![dir("d/"), file("d/a", "a"), file("b", &long)], 0),
        ("a file twice", vec![file("f", "one"), file("f", "two"), file("f", "three")], 2),
        ("an empty file", vec![file("f", ""), file("f", "two")], 0),
        (
            "a directory",
            vec![dir("d/"), file("d/x", "x"), dir("d/e/"), file("d/e/y", &long), file("d", "f")],
            1,
        ),
        (
            "a file of a directory, then the directory, then both again",
            vec![
                file("d/x", "1"),
                file("d/x", "2"),
                file("d", "now a file"),
                dir("d/"),
                file("d/x", "3"),
                file("d/x", "4"),
                symlink("d", "elsewhere"),
            ],
            5,
        ),
        (
            "a link that outlives its target",
            vec![
                file("a", "old"),
                hard_link("b", "a"),
                file("a", "new"),
                hard_link("c", "b"),
                file("b", "x"),
            ],
            2,
        ),
        ("a link over a file", vec![file("a", "a"), file("b", "b"), hard_link("b", "a")], 1),
        ("a link to a file of what it replaces", vec![file("d/x", "deep"), hard_link("d", "d/x")], 1),
        (
            "through a symlink that is replaced",
            vec![
                dir("real/"),
                symlink("l", "/real"),
                file("l/f", "1"),
                dir("l/"),
                file("l/f", "2"),
                file("real/f", "3"),
            ],
            1,
        ),
        (
            "whiteouts of own entries",
            vec![file("a", "a"), file(".wh.a", ""), dir("d/"), file(".wh.d", "")],
            0,
        ),
        ("a whiteout, then the name", vec![file(".wh.a", ""), file("a", "a")], 0),
        ("a whiteout with data", vec![file("d/.wh.a", "data of it"), file("d/.wh..wh..opq", "more")], 0),
        ("a device over a file", vec![file("n", "x"), entry(EntryType::Char, "n", "", "")], 1),
        (
            "data of a directory",
            vec![file("v7/", "ignored"), entry(EntryType::new(b'g'), "g", "", "12 a=bcdefg\n")],
            0,
        ),
        ("the root", vec![file("/", "data"), dir("./"), file("./f", "x")], 0),
    ] {
        let tar = [entries.concat(), vec![0; 1024], b"trailing bytes".to_vec()].concat();
        let layer = Layer::of(&tar);
        assert!(layer.again().unwrap() == tar, "{name}");
        assert_eq!(layer.told(), [], "{name}");
        assert_eq!(layer.kept(), if kept == 0 { 0 } else { kept + 1 }, "{name}");
    }
}

#[test]
fn sparse_files_come_back_by_their_extents() {
    let records: &[(&str, &[u8])] =
        &[("GNU.sparse.size", b"5000000"), ("GNU.sparse.map", b"0,3,4096,2,4098,1,9000,0,4999999,1")];
    let tar = [pax(records), file("s", "abcdefg"), file("t", "t")].concat();
    let layer = Layer::of(&tar);
    assert_eq!(layer.again().unwrap(), tar);
    let data = std::fs::read(layer.at("fs/s")).unwrap();
    assert_eq!(
        (data.len(), &data[..3], &data[4096..4099], data[4_999_999]),
        (5_000_000, &b"abc"[..], &b"def"[..], b'g')
    );
}

#[test]
fn damage_of_data_is_named() {
    let tar = [dir("d/"), file("d/a", &big(2, 70_000)), file("b", "second"), file("c", "third")].concat();
    type Harm = fn(&Layer);
    let cases: [(&str, Harm, &str); 5] = [
        (
            "d/a",
            |l| {
                let mut bytes = std::fs::read(l.at("fs/d/a")).unwrap();
                bytes[69_999] ^= 1;
                std::fs::write(l.at("fs/d/a"), bytes).unwrap();
            },
            "its content has changed",
        ),
        ("b", |l| std::fs::write(l.at("fs/b"), "sec").unwrap(), "it is too short"),
        ("b", |l| std::fs::remove_file(l.at("fs/b")).unwrap(), "it is missing"),
        (
            "b",
            |l| {
                std::fs::remove_file(l.at("fs/b")).unwrap();
                std::os::unix::fs::symlink("c", l.at("fs/b")).unwrap();
            },
            "it is a symbolic link or behind one",
        ),
        (
            "d/a",
            |l| {
                std::fs::rename(l.at("fs/d"), l.at("fs/e")).unwrap();
                std::os::unix::fs::symlink("e", l.at("fs/d")).unwrap();
            },
            "it is a symbolic link or behind one",
        ),
    ];
    for (path, harm, reason) in cases {
        let layer = Layer::of(&tar);
        harm(&layer);
        let error = layer.again().unwrap_err();
        assert!(error.contains(path) && error.contains(reason), "{error}");
        assert_eq!(layer.told(), [(path.to_owned(), reason)]);
    }
}

#[test]
fn a_damaged_recipe_is_never_a_tar() {
    let tar = [file("f", "one"), file("f", &big(3, 1000)), dir("d/"), file("d/g", "g")].concat();
    let whole = Layer::of(&tar);
    let (recipe, list) =
        (std::fs::read(whole.at(RECIPE)).unwrap(), std::fs::read(whole.at("replaced/index")).unwrap());
    for (path, good) in [(RECIPE, &recipe), ("replaced/index", &list)] {
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            for bytes in [&bad[..], &good[..at]] {
                std::fs::write(whole.at(path), bytes).unwrap();
                // A bit that the format does not use changes nothing.
                assert!(whole.again().map_or(true, |again| again == tar), "{path} at {at}");
            }
            assert!(whole.again().is_err(), "{path} cut at {at}");
        }
        std::fs::write(whole.at(path), good).unwrap();
    }
    std::fs::write(whole.at(RECIPE), [&recipe[..], b"x"].concat()).unwrap();
    assert!(whole.again().is_err(), "more behind it");
    std::fs::remove_file(whole.at(RECIPE)).unwrap();
    assert!(!exists(whole.path()));
    assert!(matches!(tar_error(whole.path()), ImageError::NoRecipe { .. }));
}

fn tar_error(path: &Path) -> ImageError {
    tar(path).err().unwrap()
}

/// By hand: `cargo test --release --lib images::recipe::tests::cost -- --ignored --nocapture`, TMPDIR on a tmpfs.
#[test]
#[ignore = "a measurement"]
fn cost() {
    let mut tar = Vec::new();
    for n in 0..14_000usize {
        if n % 10 == 0 {
            tar.extend(dir(&format!("usr/share/thing{}/", n / 10)));
        }
        // 28 KiB on average, most of them small.
        let size = if n % 20 == 0 { 400_000 } else { 8_000 + n % 2_000 };
        let content: String = big(u8::try_from(n % 251).unwrap(), size);
        tar.extend(file(&format!("usr/share/thing{}/file-{n}.so", n / 10), &content));
    }
    tar.extend([0; 1024]);
    let time = |recipe: bool| {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["fs", REPLACED] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        // Of this thread: others' work on the machine does not count.
        let clock = || {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            std::time::Duration::new(u64::try_from(now.tv_sec).unwrap(), u32::try_from(now.tv_nsec).unwrap())
        };
        let begin = clock();
        if recipe {
            unpack(&tar[..], dir.path(), "test", LIMITS).unwrap();
        } else {
            let parser = crate::images::worker::Parser::start().unwrap();
            let source = std::io::BufReader::new(&tar[..]);
            crate::images::unpack::unrecorded(source, parser, dir.path(), "test", LIMITS).unwrap();
        }
        (clock() - begin, std::fs::metadata(dir.path().join(RECIPE)).map_or(0, |m| m.len()))
    };
    for _ in 0..5 {
        let (without, _) = time(false);
        let (with, size) = time(true);
        eprintln!("{} MB: without {without:?}, with {with:?}, recipe {size} bytes", tar.len() / 1_000_000);
    }
}
