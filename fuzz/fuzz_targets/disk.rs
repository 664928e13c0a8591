//! A qcow2 image that somebody serves.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cocoon::disk::fuzzing::disk(data));
