//! Archives of images and other runtimes' stores.
#![no_main]

use std::sync::LazyLock;

static DIR: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a directory to work in"));

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwright::images::fuzz::stores(DIR.path(), data));
