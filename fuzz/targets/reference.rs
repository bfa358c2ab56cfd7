//! Image references.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwright::images::fuzz::reference(data));
