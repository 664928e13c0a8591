//! The digest of a sparse file: of its content, whatever its holes.
//!
//! ```text
//! SHA-256 of, for each run in order:   offset │ length │ the run's bytes
//!            and at the end:           size   │ 0             (numbers: 8 bytes, little-endian)
//!
//! file     │0000│data│data│0000│ …  hole  … │data│da│        blocks of 4 KiB, the last may be short
//! runs          └── run ──┘                 └─ run ─┘         cut where 1 MiB of the file ends
//! ```
//! A run is as long as can be of blocks that are not all zero, so it does not matter which zeros a file
//! system keeps as holes; and holes cost nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest as _, Sha256};

use crate::sys::sparse::{next_data, nonzero_runs};
use crate::units::Digest;

/// Bytes of a file that are looked at at once, and the longest run.
const WINDOW: usize = 1 << 20;

/// The digest of the content of `file`, which nobody writes to. Stops when `go_on` says no.
///
/// # Errors
/// The file cannot be read, or `go_on` said no ([`io::ErrorKind::Interrupted`]).
pub(super) fn of(file: &File, go_on: &dyn Fn() -> bool) -> io::Result<Digest> {
    let size = file.metadata()?.len();
    let mut hash = Sha256::new();
    let mut buffer = vec![0; WINDOW];
    let mut position = 0;
    while let Some(data) = next_data(file, position, size)? {
        if !go_on() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let window = data.start - data.start % WINDOW as u64;
        let left = usize::try_from(size - window).unwrap_or(usize::MAX);
        let bytes = &mut buffer[..left.min(WINDOW)];
        file.read_exact_at(bytes, window)?;
        for run in nonzero_runs(bytes) {
            hash.update((window + run.start as u64).to_le_bytes());
            hash.update((run.len() as u64).to_le_bytes());
            hash.update(&bytes[run]);
        }
        position = window + WINDOW as u64;
    }
    hash.update(size.to_le_bytes());
    hash.update(0_u64.to_le_bytes());
    Ok(Digest::finish(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(length: u64, pieces: &[(u64, &[u8])]) -> Digest {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for (offset, bytes) in pieces {
            file.write_all_at(bytes, *offset).unwrap();
        }
        of(&file, &|| true).unwrap()
    }

    #[test]
    fn the_digest_is_the_documented_one() {
        let mut text = Vec::new();
        for (offset, length) in [(0_u64, 4096_u64), (3 << 20, 5)] {
            text.extend(offset.to_le_bytes());
            text.extend(length.to_le_bytes());
            text.extend(vec![b'x'; usize::try_from(length).unwrap()]);
        }
        text.extend(((3 << 20) + 5_u64).to_le_bytes());
        text.extend([0; 8]);
        let length = (3 << 20) + 5;
        let pieces: [(u64, &[u8]); 2] = [(0, &[b'x'; 4096]), (3 << 20, b"xxxxx")];
        assert_eq!(digest(length, &pieces), Digest::of(&text));
    }

    #[test]
    fn written_zeros_and_holes_are_the_same_and_all_else_differs() {
        let length = 2 << 20;
        let base = digest(length, &[(5000, b"data")]);
        assert_eq!(
            digest(length, &[(0, &[0; 1 << 20]), (5000, b"data")]),
            base,
            "zeros that were written"
        );
        for (what, other) in [
            ("other data", digest(length, &[(5000, b"dat4")])),
            ("another place", digest(length, &[(5001, b"data")])),
            ("another block", digest(length, &[(9096, b"data")])),
            ("another length", digest(length + 1, &[(5000, b"data")])),
            ("nothing", digest(length, &[])),
        ] {
            assert_ne!(other, base, "{what}");
        }
        assert_ne!(digest(0, &[]), digest(1, &[]));
    }
}
