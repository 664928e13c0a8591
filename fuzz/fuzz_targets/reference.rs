//! The name of an image.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cocoon::image::fuzzing::reference(data));
