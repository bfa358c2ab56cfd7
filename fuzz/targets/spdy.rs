//! What clients of streams send: SPDY header blocks, connections, sizes of terminals.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwright::streaming::fuzz::any(data));
