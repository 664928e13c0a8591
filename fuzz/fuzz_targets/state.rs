//! The state file of a snapshot.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cocoon::micro::fuzzing::state(data));
