//! The random number generator.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cocoon::micro::fuzzing::rng(data));
