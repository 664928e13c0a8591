//! A boot loader's configuration.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cocoon::installed::fuzzing::grub(data));
