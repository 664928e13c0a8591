//! A config file.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cocoon::config::fuzzing::config(data));
