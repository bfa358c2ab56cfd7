//! Results of CNI plugins, configuration lists, entries of the cache.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwright::host::fuzz::cni(data));
