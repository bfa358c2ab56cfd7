//! CDI specifications.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwright::host::fuzz::cdi(data));
