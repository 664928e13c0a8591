//! What a guest's agent says.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cocoon::agent::fuzzing::frames(data));
