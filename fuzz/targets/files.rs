//! Seccomp profiles, classes of block I/O, `mountinfo`.
#![no_main]

use std::sync::LazyLock;

static DIR: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a directory to work in"));

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwright::host::fuzz::files(DIR.path(), data));
