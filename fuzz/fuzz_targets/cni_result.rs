//! The answer of a CNI plugin.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cocoon::network::fuzzing::cni_result(data));
