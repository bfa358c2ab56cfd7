//! Input of streaming clients: SPDY header blocks, connections, terminal sizes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwright::streaming::fuzz::any(data));
