//! Files with holes: where their data is, which of their blocks are zero.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Bytes in a block: what file systems allocate at least, and a page.
pub const BLOCK: usize = 4096;

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// The next bytes of `file` at or after `from`, and before `end`, that are no hole. A file system that
/// knows no holes says that all is data. Moves the file's position.
///
/// # Errors
/// The file cannot be sought in.
pub fn next_data(file: &File, from: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    if from >= end {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(from)) {
        // There is no data from here to the end of the file.
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL) => return Ok(Some(from..end)),
        start => start?,
    };
    if start >= end {
        return Ok(None);
    }
    let stop = seek(file, SeekFrom::Hole(start))?;
    Ok(Some(start..stop.min(end)))
}

/// The runs of `bytes`, in whole blocks but for the last one, that are not all zero.
pub fn nonzero_runs(bytes: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut position = 0;
    std::iter::from_fn(move || {
        let is_zero = |block: &[u8]| block == &ZEROS[..block.len()];
        let blocks = || bytes[position..].chunks(BLOCK);
        let zeros = blocks().take_while(|block| is_zero(block)).count();
        let start = (position + zeros * BLOCK).min(bytes.len());
        if start == bytes.len() {
            return None;
        }
        position = start;
        let blocks = bytes[position..].chunks(BLOCK);
        let filled = blocks.take_while(|block| !is_zero(block)).count();
        position = (start + filled * BLOCK).min(bytes.len());
        Some(start..position)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_are_passed_over() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10 << 20).unwrap();
        file.write_all_at(b"x", 4 << 20).unwrap();
        let length = 10 << 20;
        let data = next_data(&file, 0, length).unwrap().unwrap();
        assert!(data.contains(&(4 << 20)), "{data:?}");
        if data == (0..length) {
            println!("SKIPPED: this file system keeps no holes");
            return;
        }
        assert_eq!(data.start % BLOCK as u64, 0);
        assert_eq!(next_data(&file, data.end, length).unwrap(), None);
        assert_eq!(next_data(&file, 0, data.start).unwrap(), None);
        let part = data.start + 1..data.start + 2;
        assert_eq!(
            next_data(&file, part.start, part.end).unwrap(),
            Some(part),
            "cut at both ends"
        );
        assert_eq!(next_data(&file, length, length).unwrap(), None);
    }

    #[test]
    fn runs_are_of_whole_blocks_and_leave_zeros_out() {
        let mut bytes = vec![0; 4 * BLOCK + 5];
        assert_eq!(nonzero_runs(&bytes).count(), 0);
        bytes[BLOCK + 7] = 1;
        bytes[2 * BLOCK] = 1;
        bytes[4 * BLOCK + 4] = 1;
        let runs: Vec<_> = nonzero_runs(&bytes).collect();
        assert_eq!(runs, [BLOCK..3 * BLOCK, 4 * BLOCK..4 * BLOCK + 5]);
        assert_eq!(nonzero_runs(&[]).count(), 0);
        assert!(nonzero_runs(&[1]).eq(std::iter::once(0..1)));
    }
}
