//! An image's user with its `/etc/passwd` and `/etc/group`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwright::host::fuzz::users(data));
