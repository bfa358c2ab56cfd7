//! A monitor's messages to the daemon, over a socket and with descriptors.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwright::host::fuzz::monitor(data));
