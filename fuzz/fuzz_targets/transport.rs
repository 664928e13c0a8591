//! The registers of a virtio-mmio transport.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cocoon::micro::fuzzing::transport(data));
