//! `WWW-Authenticate` headers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwright::images::fuzz::challenge(data));
