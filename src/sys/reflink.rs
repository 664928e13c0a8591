//! Copies of large, sparse files: shared where the file system can, else without filling holes.
//!
//! ```text
//!  FICLONE          the copy shares the blocks: no data moves         btrfs, XFS, bcachefs
//!  copy_file_range  each run of data, within the kernel              most others
//!  read, write      each run of data, through here                   what is left, and across file systems
//! ```
//! Invariant: whatever the way, a hole of the original is a hole of the copy.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{copy_file_range, ioctl_ficlone};
use rustix::io::Errno;

use super::sparse::next_data;

/// Bytes that are copied between two looks at whether to go on: some 10 ms of a disk's time.
const STEP: u64 = 16 << 20;

/// Bytes that are read and written at once.
const BUFFER: usize = 1 << 20;

/// How a file was copied.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Its blocks are shared.
    Reflink,
    /// Its data was copied by the kernel.
    CopyRange,
    /// Its data was read and written.
    ReadWrite,
}

/// Copies the file `from` to `to`, which must not exist, by the best way there is; and says which. Not
/// synced. Nobody else writes to `from` meanwhile. Stops when `go_on` says no.
///
/// # Errors
/// A file cannot be opened, read or written, or `go_on` said no ([`io::ErrorKind::Interrupted`]); what
/// was written of the copy stays.
pub fn copy(from: &Path, to: &Path, go_on: &dyn Fn() -> bool) -> io::Result<Way> {
    copy_best(from, to, Way::Reflink, go_on)
}

/// Whether files in the folder `to` can share blocks with files in `from`. Tries it on files that have no
/// name, so nothing is left however this ends.
///
/// # Errors
/// No file can be made in one of the folders.
pub fn shares(from: &Path, to: &Path) -> io::Result<bool> {
    let from = tempfile::tempfile_in(from)?;
    from.write_all_at(&[1; 4096], 0)?;
    let to = tempfile::tempfile_in(to)?;
    Ok(ioctl_ficlone(&to, &from).is_ok())
}

/// As [`copy`], by `first` or what comes after it.
fn copy_best(from: &Path, to: &Path, first: Way, go_on: &dyn Fn() -> bool) -> io::Result<Way> {
    let from = File::open(from)?;
    let to = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    if first == Way::Reflink && ioctl_ficlone(&to, &from).is_ok() {
        // Why it may fail, from another file system to none that can, is no error of the copy's.
        return Ok(Way::Reflink);
    }
    copy_data(&from, &to, first.max(Way::CopyRange), go_on)
}

fn copy_data(from: &File, to: &File, mut way: Way, go_on: &dyn Fn() -> bool) -> io::Result<Way> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut buffer = Vec::new();
    let mut position = 0;
    while let Some(data) = next_data(from, position, length)? {
        position = data.start;
        while position < data.end {
            if !go_on() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let end = data.end.min(position + STEP);
            if way == Way::CopyRange && !copy_within_kernel(from, to, position, end)? {
                way = Way::ReadWrite;
            }
            if way == Way::ReadWrite {
                copy_through(from, to, position, end, &mut buffer)?;
            }
            position = end;
        }
    }
    Ok(way)
}

/// Copies a range within the kernel, or says that this cannot be done between these two.
fn copy_within_kernel(from: &File, to: &File, start: u64, end: u64) -> io::Result<bool> {
    let (mut source, mut target) = (start, start);
    while source < end {
        let left = usize::try_from(end - source).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), left) {
            Ok(0) => return Ok(false), // Some file systems do that instead of refusing.
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

fn copy_through(
    from: &File,
    to: &File,
    start: u64,
    end: u64,
    buffer: &mut Vec<u8>,
) -> io::Result<()> {
    buffer.resize(BUFFER, 0);
    let mut position = start;
    while position < end {
        let left = usize::try_from(end - position).unwrap_or(usize::MAX);
        let chunk = &mut buffer[..left.min(BUFFER)];
        from.read_exact_at(chunk, position)?;
        to.write_all_at(chunk, position)?;
        position += chunk.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;

    const LENGTH: u64 = 64 << 20;

    /// A file with data at its begin, in the middle and, not to the block, at its end.
    fn sparse_file(dir: &Path) -> PathBuf {
        let path = dir.join("from");
        let file = File::create(&path).unwrap();
        file.set_len(LENGTH + 5).unwrap();
        for (offset, bytes) in [
            (0, &b"begin"[..]),
            (20 << 20, &[7; 3 << 20]),
            (LENGTH, b"tail!"),
        ] {
            file.write_all_at(bytes, offset).unwrap();
        }
        file.sync_all().unwrap();
        path
    }

    fn blocks(path: &Path) -> u64 {
        path.metadata().unwrap().blocks()
    }

    fn assert_same(from: &Path, to: &Path) {
        assert!(std::fs::read(from).unwrap() == std::fs::read(to).unwrap());
        let room = 64; // Blocks of 512 bytes: what a file system may allocate around three runs.
        assert!(blocks(to) <= blocks(from) + room, "holes were filled");
    }

    #[test]
    fn each_way_copies_all_data_and_fills_no_hole() {
        let dir = tempfile::tempdir().unwrap();
        let from = sparse_file(dir.path());
        for first in [Way::CopyRange, Way::ReadWrite] {
            let to = dir.path().join(format!("{first:?}"));
            let way = copy_best(&from, &to, first, &|| true).unwrap();
            assert!(way >= first, "{way:?}");
            assert_same(&from, &to);
        }
    }

    #[test]
    fn a_file_system_that_can_shares_the_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let from = sparse_file(dir.path());
        let to = dir.path().join("to");
        let way = copy(&from, &to, &|| true).unwrap();
        assert_same(&from, &to);
        let shares = shares(dir.path(), dir.path()).unwrap();
        assert_eq!(shares, way == Way::Reflink, "the probe and the copy agree");
        if way != Way::Reflink {
            println!(
                "SKIPPED: the file system of temporary files shares no blocks; it was {way:?}"
            );
        }
    }

    #[test]
    fn a_copy_stops_when_it_is_told_to() {
        let dir = tempfile::tempdir().unwrap();
        let from = sparse_file(dir.path());
        let to = dir.path().join("to");
        let stopped = copy_best(&from, &to, Way::CopyRange, &|| false).unwrap_err();
        assert_eq!(stopped.kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn what_exists_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let from = sparse_file(dir.path());
        let exists = copy(&from, &from, &|| true).unwrap_err();
        assert_eq!(exists.kind(), io::ErrorKind::AlreadyExists);
    }
}
