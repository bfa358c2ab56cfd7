//! The tar parsers by themselves: PAX records, headers, tables of contents.
#![no_main]

use std::sync::LazyLock;

static DIR: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a directory to work in"));

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwright::images::fuzz::pax(DIR.path(), data));
