//! Where the fuzz target enters: a qcow2 file, as it is.

use std::io::Write;

use super::{flatten, qcow2};

/// Disks beyond this are not read to their end: nothing would be learned from so many zeros.
const MOST: u64 = 4 << 20;

/// An image that somebody serves: its header is read, and where that is believed, all of its disk.
pub fn disk(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    let mut file = std::fs::File::options();
    let file = file.read(true).write(true).create_new(true).open(&from);
    let mut file = file.expect("an empty folder");
    file.write_all(data).expect("room for it");
    match qcow2::inspect(&file) {
        Ok(header) if header.is_simple() && header.virtual_size <= MOST => {
            let made = flatten(&from, &to, 0, &|_| true);
            if made.is_ok() {
                let size = to.metadata().expect("it was made").len();
                assert_eq!(size, header.virtual_size);
            }
        }
        Ok(_) => {}
        Err(error) => assert!(!error.to_string().contains(char::is_control), "{error}"),
    }
}

/// So that the entry stays alive where nobody fuzzes.
#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        // A look, not a search.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_bytes_harm_the_reader_of_images(data in prop::collection::vec(any::<u8>(), 0..4096)) {
            disk(&data);
            disk(&[&qcow2::MAGIC, &[0, 0, 0, 3][..], &data].concat());
        }
    }
}
