//! A tree of files that a guest sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cocoon::agent::fuzzing::tree(data));
