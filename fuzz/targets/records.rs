//! Records on disk: of pods, containers, monitors and exits.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwright::sandbox::fuzz::records(data));
