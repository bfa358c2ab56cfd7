//! Signature policies, keys, payloads and bundles.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwright::images::fuzz::signatures(data));
