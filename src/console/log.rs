//! What a console printed, kept on disk within bounds.
//!
//! ```text
//! <path>      the newest bytes, at most N
//! <path>.1    the N bytes before them
//! ```
//! Invariants: both files together hold the last N bytes that were written, and never more than
//! 2 N. A full disk costs log, never the console: what could not be written is counted and left out.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::units::ByteSize;

/// How much a console keeps unless told otherwise: a Linux boot prints 50 to 100 KiB, so some ten
/// boots; a host with a thousand VMs spends 2 GiB at worst.
pub const DEFAULT_MAX: ByteSize = ByteSize::from_mib(1);

/// The least that a log keeps: a page, so that rotation never becomes the main work.
const LEAST_MAX: u64 = 4096;

/// How often [`tail`] starts anew because the log was rotated meanwhile. A rotation needs N bytes
/// of output, so two in a row during a read are unlikely already.
const TAIL_ATTEMPTS: usize = 5;

/// A failure of the console log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log cannot be opened or created.
    #[error("cannot open the console log {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The log cannot be read.
    #[error("cannot read the console log {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The log of one console, for its only writer.
#[derive(Debug)]
pub struct ConsoleLog {
    path: PathBuf,
    file: File,
    /// Bytes in `file`.
    len: u64,
    /// Bytes at which `file` becomes the older one.
    max: u64,
    lost_bytes: u64,
}

impl ConsoleLog {
    /// Opens the log at `path`, readable by its owner alone, and goes on where it ended. Keeps at
    /// least the last `max` (at least 4 KiB) and at most twice that.
    ///
    /// # Errors
    /// The file cannot be opened or created, or is a symbolic link.
    pub fn open(path: &Path, max: ByteSize) -> Result<Self, LogError> {
        let open = || {
            let file = open_for_append(path)?;
            let len = file.metadata()?.len();
            Ok((file, len))
        };
        let (file, len) = open().map_err(|source| LogError::Open {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
            len,
            max: max.bytes().max(LEAST_MAX),
            lost_bytes: 0,
        })
    }

    /// Appends `bytes`. What the disk does not take is counted in [`ConsoleLog::lost_bytes`]; the
    /// first loss is reported.
    pub fn append(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.append_some(rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.lose(rest, &error),
            }
        }
    }

    /// Bytes that could not be written since the log was opened.
    pub fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    /// Writes as much as fits into the current file, and returns how much that was, at least 1.
    fn append_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.len >= self.max {
            self.rotate()?;
        }
        let room = usize::try_from(self.max - self.len).unwrap_or(usize::MAX);
        let fits = bytes.get(..room).unwrap_or(bytes);
        let written = self.file.write(fits)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        // A usize has at most 64 bits.
        self.len += written as u64;
        Ok(written)
    }

    /// Makes the current file the older one. Killed in between, there is an older file alone, which
    /// is a log like any other.
    fn rotate(&mut self) -> io::Result<()> {
        match std::fs::rename(&self.path, older(&self.path)) {
            // Renamed by an attempt that failed below, or deleted by the user.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
        self.file = open_for_append(&self.path)?;
        self.len = self.file.metadata()?.len();
        Ok(())
    }

    fn lose(&mut self, bytes: &[u8], error: &io::Error) {
        if self.lost_bytes == 0 {
            let path = self.path.display();
            tracing::warn!(%path, %error, "the console log cannot be written; output is left out");
        }
        self.lost_bytes += bytes.len() as u64;
    }
}

/// The file that holds what came before the log at `path`.
pub fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// The last bytes, at most `max`, of the log at `path`; nothing if there is none. May run beside
/// the writer.
///
/// # Errors
/// A file of the log exists but cannot be read.
pub fn tail(path: &Path, max: usize) -> Result<Vec<u8>, LogError> {
    let mut last = Vec::new();
    for _ in 0..TAIL_ATTEMPTS {
        let (bytes, rotated) = try_tail(path, max).map_err(|source| LogError::Read {
            path: path.to_owned(),
            source,
        })?;
        last = bytes;
        if !rotated {
            break;
        }
    }
    Ok(last)
}

/// The tail, and whether the log was rotated while the two files were being opened, in which case
/// bytes may be missing or doubled.
fn try_tail(path: &Path, max: usize) -> io::Result<(Vec<u8>, bool)> {
    let newer_file = open_if_there(path)?;
    let older_file = open_if_there(&older(path))?;
    let now = match std::fs::metadata(path) {
        Ok(metadata) => Some(metadata.ino()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let opened = match &newer_file {
        Some(file) => Some(file.metadata()?.ino()),
        None => None,
    };
    let newer = read_end(newer_file, max)?;
    let mut bytes = read_end(older_file, max - newer.len())?;
    bytes.extend_from_slice(&newer);
    Ok((bytes, now != opened))
}

/// The last bytes, at most `max`, of a file that may grow meanwhile.
fn read_end(file: Option<File>, max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut file) = file {
        let len = file.metadata()?.len();
        let wanted = len.min(max as u64);
        file.seek(SeekFrom::Start(len - wanted))?;
        file.take(wanted).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn open_if_there(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn open_for_append(path: &Path) -> io::Result<File> {
    // A console prints passwords now and then, hence the mode.
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: usize = 4096;

    fn open(path: &Path) -> ConsoleLog {
        ConsoleLog::open(path, ByteSize::from_bytes(MAX as u64)).unwrap()
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..=250).cycle().take(len).collect()
    }

    #[test]
    fn a_log_goes_on_after_the_process_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        open(&path).append(b"one\0\xff\n");
        open(&path).append(b"two\n");
        assert_eq!(tail(&path, 100).unwrap(), b"one\0\xff\ntwo\n");
        assert_eq!(tail(&path, 3).unwrap(), b"wo\n");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_log_that_never_was_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(tail(&dir.path().join("x"), 100).unwrap(), b"");
    }

    #[test]
    fn a_full_disk_costs_log_and_nothing_else() {
        let mut log = open(Path::new("/dev/full"));
        log.append(b"four");
        log.append(b"five5");
        assert_eq!(log.lost_bytes(), 9);
    }

    #[test]
    fn a_log_whose_rotation_fails_stays_bounded_and_recovers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        // A folder that is not empty cannot be replaced by a file, whoever tries.
        std::fs::create_dir_all(older(&path).join("in the way")).unwrap();
        let mut log = open(&path);
        log.append(&pattern(MAX + 10));
        assert_eq!(log.lost_bytes(), 10);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), MAX as u64);
        std::fs::remove_dir_all(older(&path)).unwrap();
        log.append(b"back");
        assert_eq!(
            tail(&path, 6).unwrap(),
            [&pattern(MAX)[MAX - 2..], b"back"].concat()
        );
    }

    #[test]
    fn a_rotation_that_was_cut_short_is_finished_by_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = open(&path);
        log.append(&pattern(MAX));
        std::fs::rename(&path, older(&path)).unwrap();
        assert_eq!(tail(&path, MAX).unwrap(), pattern(MAX));
        log.append(b"more");
        assert_eq!(std::fs::read(&path).unwrap(), b"more");
        assert_eq!(log.lost_bytes(), 0);
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert!(ConsoleLog::open(&path, DEFAULT_MAX).is_err());
    }

    #[test]
    fn a_reader_beside_the_writer_never_sees_a_gap_or_a_repeat() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = open(&path);
        let writer = std::thread::spawn(move || {
            for number in 0..20_000u32 {
                log.append(&number.to_be_bytes());
            }
        });
        while !writer.is_finished() {
            let bytes = tail(&path, 1024).unwrap();
            let whole = &bytes[..bytes.len() / 4 * 4];
            let numbers: Vec<u32> = whole
                .chunks(4)
                .map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
            assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "{numbers:?}");
        }
        writer.join().unwrap();
    }

    proptest! {
        #[test]
        fn the_last_bytes_are_always_there_and_never_more_than_two_files(
            sizes in proptest::collection::vec(0usize..3000, 0..20)
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("console.log");
            let all = pattern(sizes.iter().sum());
            let mut log = open(&path);
            let mut done = 0;
            for size in sizes {
                log.append(&all[done..done + size]);
                done += size;
            }
            let kept = tail(&path, usize::MAX).unwrap();
            prop_assert!(kept.len() >= all.len().min(MAX) && kept.len() <= 2 * MAX);
            prop_assert_eq!(&kept[..], &all[all.len() - kept.len()..]);
            let last = all.len().min(MAX);
            prop_assert_eq!(tail(&path, last).unwrap(), &all[all.len() - last..]);
        }
    }
}
