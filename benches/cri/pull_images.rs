//! Images for the pull benchmark: the same bytes on every machine, as compressible as a distribution's files. Owns their
//! content; pushing them is the test kit's.

use anyhow::{Context as _, Result};
use podwright_testkit::image::sha256;
use podwright_testkit::image::{Compression, Entry, ImageBuilder, Layer, LayerBuilder};
use podwright_testkit::registry::push;
use std::io::Write as _;
use std::net::SocketAddr;

/// gzip as `docker build` and buildkit make it: their default level.
const GZIP_LEVEL: u32 = 6;
/// zstd's own default level.
const ZSTD_LEVEL: i32 = 3;
/// Mean size of a file, bytes: 400 MB in 13,940 files, as a distribution with a language runtime has.
const MEAN_FILE: usize = 400_000_000 / 13_940;
/// Files in one directory.
const FILES_IN_DIRECTORY: usize = 24;

/// One image of the benchmark.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) layers: usize,
    pub(crate) layer_bytes: usize,
    pub(crate) zstd: bool,
}

/// What is pulled.
pub(crate) const SHAPES: [Shape; 6] = [
    Shape { name: "one-gzip", layers: 1, layer_bytes: 400_000_000, zstd: false },
    Shape { name: "eight-gzip", layers: 8, layer_bytes: 50_000_000, zstd: false },
    Shape { name: "forty-gzip", layers: 40, layer_bytes: 2_500_000, zstd: false },
    Shape { name: "one-zstd", layers: 1, layer_bytes: 400_000_000, zstd: true },
    Shape { name: "eight-zstd", layers: 8, layer_bytes: 50_000_000, zstd: true },
    Shape { name: "forty-zstd", layers: 40, layer_bytes: 2_500_000, zstd: true },
];

impl Shape {
    /// In words, for the report.
    pub(crate) fn title(&self) -> String {
        let megabytes = |bytes: usize| bytes as f64 / 1e6;
        let compression = if self.zstd { "zstd" } else { "gzip" };
        match self.layers {
            1 => format!("1 layer of {:.0} MB, {compression}", megabytes(self.layer_bytes)),
            n => format!("{n} layers of {} MB, {compression}", megabytes(self.layer_bytes)),
        }
    }

    pub(crate) fn repository(&self) -> String {
        format!("podwright/pull-{}", self.name)
    }
}

/// Builds all and pushes them; two at a time, for the machines that this is run on have two processors.
pub(crate) fn push_all(registry: SocketAddr) -> Result<()> {
    for shapes in SHAPES.chunks(2) {
        std::thread::scope(|scope| {
            let pushing: Vec<_> = shapes.iter().map(|s| scope.spawn(|| push_one(registry, s))).collect();
            pushing
                .into_iter()
                .try_for_each(|t| t.join().unwrap_or_else(|_| anyhow::bail!("a thread panicked")))
        })?;
    }
    Ok(())
}

fn push_one(registry: SocketAddr, shape: &Shape) -> Result<()> {
    let mut image = ImageBuilder::new().cmd(&["/bin/true"]);
    for n in 0..shape.layers {
        image = image.layer(&layer(n, shape.layer_bytes, shape.zstd).with_context(|| shape.name)?);
    }
    push(registry, &shape.repository(), "latest", &image.build().into())
}

fn layer(number: usize, bytes: usize, zstd: bool) -> Result<Layer> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (number as u64 + 1));
    let (mut builder, mut left, mut file) = (LayerBuilder::new(), bytes, 0);
    while left > 0 {
        if file % FILES_IN_DIRECTORY == 0 {
            builder = builder.entry(Entry::dir(directory(number, file)));
        }
        // Many small files and a few large ones, as everywhere.
        let size = match random.below(20) {
            0 => MEAN_FILE * 8,
            1..=4 => MEAN_FILE * 2,
            _ => MEAN_FILE / 5,
        };
        let size = (size / 2 + random.below(size)).min(left);
        let data = content(&mut random, size);
        builder = builder.entry(Entry::file(format!("{}/file-{file}", directory(number, file)), data));
        left -= size;
        file += 1;
    }
    let tar = builder.tar()?;
    let (blob, compression) = if zstd {
        (zstd::encode_all(&*tar, ZSTD_LEVEL)?, Compression::Zstd)
    } else {
        let level = flate2::Compression::new(GZIP_LEVEL);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), level);
        gzip.write_all(&tar)?;
        (gzip.finish()?, Compression::Gzip)
    };
    Ok(Layer { digest: sha256(&blob), diff_id: sha256(&tar), blob: blob.into(), compression })
}

fn directory(layer: usize, file: usize) -> String {
    format!("usr/share/layer-{layer}/directory-{}", file / FILES_IN_DIRECTORY)
}

/// Words between bytes that do not compress: about 2.6 to 1 with gzip, as executables and documents together.
#[allow(clippy::cast_possible_truncation)] // Eight of the random bits are what is wanted.
fn content(random: &mut Random, size: usize) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "return", "const", "the ", "file", "0x00", "\n\t", "struct ", "value", "error", ".so.1", "lib",
        "usr/", "    ", "and ", "image", "int ",
    ];
    let mut data = Vec::with_capacity(size + 32);
    while data.len() < size {
        let next = random.next();
        if next.is_multiple_of(4) {
            data.extend_from_slice(&next.to_le_bytes()[2..]);
        } else {
            for shift in [8, 16, 24, 32] {
                data.extend_from_slice(WORDS[usize::from((next >> shift) as u8) % WORDS.len()].as_bytes());
            }
        }
    }
    data.truncate(size);
    data
}

/// xorshift64*: the content must be the same everywhere, not unpredictable.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap_or_default()
    }
}
