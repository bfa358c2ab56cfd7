//! Checkpoints: whole archives, CRIU's images, removed paths, OCI configurations (root, in $TMPDIR).
#![no_main]

use std::sync::LazyLock;

static DIR: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a directory to work in"));

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwright::sandbox::fuzz::checkpoint(DIR.path(), data));
