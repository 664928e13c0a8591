//! What comes through a VM process's control socket.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cocoon::vmm::fuzzing::control(data));
