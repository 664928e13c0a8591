//! The memory balloon.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cocoon::micro::fuzzing::balloon(data));
