//! A client's bytes over a WebSocket.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwright::streaming::fuzz::websocket(data));
