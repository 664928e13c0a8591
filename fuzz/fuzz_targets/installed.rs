//! A disk with an operating system on it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cocoon::installed::fuzzing::installed(data));
