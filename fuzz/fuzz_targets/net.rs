//! What a network interface sends, and its control queue.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cocoon::micro::fuzzing::net(data));
