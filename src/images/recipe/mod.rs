//! The recipe of a layer: how to reproduce its tar, byte for byte, from its unpacked files.
//!
//! Owns the format and both ends of it: `write` records while a layer is unpacked, `read` copies. Parses no tar and
//! never decides how to treat damage.
//!
//! ```text
//! layers/<key>/fs/              the layer
//!              recipe.zst       zstd: magic, version, segments in the order of the tar
//!              replaced/<n>     what a later entry of the same layer took the place of (only where there is such a thing)
//!              replaced/index   where each <n> stood, and for which files of the recipe
//! ```
//!
//! Segments, integers little endian: `I` u32 length, bytes | `F` u16 length, path, extent | `C` extent (of the same
//! file) | `E` u64 bytes of the tar. An extent is u64 offset, u64 length, u32 CRC-32 of its data. The tar's digest
//! shows that something is wrong, the CRC shows where. The zstd frame has a checksum of its own.

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod read;
mod write;

#[cfg(test)]
mod tests;

pub(crate) use read::{Damage, Recreated, exists};
pub(crate) use write::{Recorder, write_replaced};

use super::error::ImageError;
use std::path::Path;

/// Name of the recipe in a layer's directory.
pub(crate) const RECIPE: &str = "recipe.zst";
/// Name of the directory of what the layer itself replaced.
pub(crate) const REPLACED: &str = "replaced";
/// Name of the list in `replaced`.
pub(crate) const REPLACED_INDEX: &str = "index";

const MAGIC: &[u8; 8] = b"PWRECIPE";
const REPLACED_MAGIC: &[u8; 8] = b"PWREPLCD";
const VERSION: u8 = 1;
/// Bytes inside the recipe are cut into segments of this size; the reader holds one.
const MAX_INLINE: usize = 64 << 10;
/// Level 1 costs a tenth of the others, and headers and padding shrink tenfold at any.
const LEVEL: i32 = 1;
/// Window that a reader accepts, 2^20 bytes: level 1 writes with 2^19.
const MAX_WINDOW_LOG: u32 = 20;
/// Largest list of replaced files, bytes: the paths are bounded while it is written, the rest is 10 bytes each.
const MAX_REPLACED_INDEX: u64 = 256 << 20;

/// The exact tar of the layer in `layer_dir` (`layers/<key>`), which ends in an error where a file is not what was
/// unpacked. Blocking.
///
/// # Errors
/// `NoRecipe` for a layer of a daemon that wrote none; when the recipe cannot be opened. The reader's errors carry an
/// `ImageError`.
pub(crate) fn tar(layer_dir: &Path) -> Result<impl std::io::Read + Send + use<>, ImageError> {
    Recreated::open(layer_dir, Damage::Fails)
}
