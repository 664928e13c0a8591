//! A CNI configuration list.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cocoon::network::fuzzing::conflist(data));
