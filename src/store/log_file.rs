//! The log of all commands: one file, which many processes write to at once, and which stays bounded.
//!
//! ```text
//! cocoon.log                              what is written to now
//! cocoon-2026-11-28T20-31-07.123456.log   what was, until that; the newest few are kept
//! ```
//! Invariants: a line is one write(2) at the end of the file, so lines of several processes do not mix; a
//! line goes into the file that is turned away or into its successor, and never gets lost in between. Who
//! turns it holds its flock(2), for which nobody waits: the others go on with the old file meanwhile.
//! A log that cannot be turned grows on: too long is better than lost.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::units::ByteSize;

/// When a file was turned away, in UTC, as it stands in its name.
const STAMP: &str = "%Y-%m-%dT%H-%M-%S.%6f";

/// A thousand years: times further back than that cannot be reckoned with.
const MAX_AGE_HOURS: i64 = 1000 * 365 * 24;

/// What is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A file is turned away before it is longer than this, but for what others write meanwhile.
    pub size: ByteSize,
    /// Days after which what was turned away goes; 0: never.
    pub age_days: u64,
    /// How many files that were turned away are kept; 0: all.
    pub backups: u64,
}

/// The log, as one process has it open.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    limits: Limits,
    file: File,
}

impl LogFile {
    /// Opens the log at `path`, and goes on where it ended.
    ///
    /// # Errors
    /// The file cannot be opened or created.
    pub fn open(path: &Path, limits: Limits) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            limits,
            file: open(path)?,
        })
    }

    /// Sees to it that a line of so many bytes goes where it should.
    fn make_ready(&mut self, line: usize) -> io::Result<()> {
        let ours = self.file.metadata()?;
        if !ours.is_file() {
            // A terminal or a pipe has no length.
            return Ok(());
        }
        let is_ours =
            |there: std::fs::Metadata| (there.dev(), there.ino()) == (ours.dev(), ours.ino());
        if !std::fs::metadata(&self.path).is_ok_and(is_ours) {
            // Somebody has turned it away, or removed it.
            self.file = open(&self.path)?;
        } else if ours.len() > 0
            && ours.len().saturating_add(line as u64) > self.limits.size.bytes()
        {
            self.turn(&is_ours)?;
        }
        Ok(())
    }

    fn turn(&mut self, is_ours: &dyn Fn(std::fs::Metadata) -> bool) -> io::Result<()> {
        if self.file.try_lock().is_err() {
            return Ok(());
        }
        // It may have been turned away before the lock was free.
        if std::fs::metadata(&self.path).is_ok_and(is_ours) {
            let now = Timestamp::now();
            let old = self.old(now);
            renameat_with(CWD, &self.path, CWD, old, RenameFlags::NOREPLACE)?;
            self.prune(now);
        }
        // The lock goes with the old file.
        self.file = open(&self.path)?;
        Ok(())
    }

    /// What the file is called when it is turned away.
    fn old(&self, now: Timestamp) -> PathBuf {
        let mut name = self.path.file_stem().unwrap_or_default().to_owned();
        name.push(format!("-{}", now.strftime(STAMP)));
        if let Some(extension) = self.path.extension() {
            name.push(".");
            name.push(extension);
        }
        self.path.with_file_name(name)
    }

    /// Removes what is too old or too much. What cannot be removed is for the next one who turns the log.
    fn prune(&self, now: Timestamp) {
        let folder = self
            .path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let entries = std::fs::read_dir(folder.unwrap_or(Path::new("."))).into_iter();
        let mut old: Vec<_> = entries
            .flatten()
            .flatten()
            .filter_map(|entry| Some((self.turned_at(&entry.path())?, entry.path())))
            .collect();
        old.sort();
        let kept = match self.limits.backups {
            0 => old.len(),
            backups => usize::try_from(backups).unwrap_or(usize::MAX),
        };
        let too_many = old.len().saturating_sub(kept);
        let age = i64::try_from(self.limits.age_days).unwrap_or(i64::MAX);
        let oldest = now - SignedDuration::from_hours(age.saturating_mul(24).min(MAX_AGE_HOURS));
        for (index, (turned, path)) in old.iter().enumerate() {
            if index < too_many || (age > 0 && *turned < oldest) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// When a file beside the log was turned away, if it is one of that kind.
    fn turned_at(&self, path: &Path) -> Option<Timestamp> {
        let (name, stem) = (
            path.file_name()?.to_str()?,
            self.path.file_stem()?.to_str()?,
        );
        let stamp = name.strip_prefix(stem)?.strip_prefix('-')?;
        let stamp = match self.path.extension() {
            Some(extension) => stamp.strip_suffix(extension.to_str()?)?.strip_suffix('.')?,
            None => stamp,
        };
        let turned = DateTime::strptime(STAMP, stamp).ok()?;
        Some(turned.to_zoned(TimeZone::UTC).ok()?.timestamp())
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Too long is better than lost.
        let _ = self.make_ready(line.len());
        self.file.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        // For those who may read the system's logs.
        .mode(0o640)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn limits(size: u64, backups: u64) -> Limits {
        Limits {
            size: ByteSize::from_bytes(size),
            age_days: 28,
            backups,
        }
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn many_writers_lose_and_mix_no_line_while_the_log_turns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cocoon.log");
        let line = |writer: usize, number: usize| {
            format!("{writer}-{number} {}\n", "x".repeat(writer * 7))
        };
        let write = |writer: usize| {
            // A lock belongs to an open file, not to a process.
            let mut log = LogFile::open(&path, limits(4096, 0)).unwrap();
            for number in 0..500 {
                log.write_all(line(writer, number).as_bytes()).unwrap();
            }
        };
        std::thread::scope(|scope| {
            for writer in 0..8 {
                scope.spawn(move || write(writer));
            }
        });
        let files = files(folder.path());
        assert!(files.len() > 2, "{files:?}");
        let read = |file: &PathBuf| std::fs::read_to_string(file).unwrap();
        let lines: Vec<_> = files
            .iter()
            .flat_map(|file| {
                let text = read(file);
                text.lines()
                    .map(|line| format!("{line}\n"))
                    .collect::<Vec<_>>()
            })
            .collect();
        let wanted: BTreeSet<_> = (0..8)
            .flat_map(|writer| (0..500).map(move |number| line(writer, number)))
            .collect();
        assert_eq!(lines.len(), wanted.len());
        assert_eq!(lines.into_iter().collect::<BTreeSet<_>>(), wanted);
    }

    #[test]
    fn the_newest_few_are_kept_and_what_is_no_log_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for other in [
            "cocoon-2001-01-01T00-00-00.000000.log",
            "cocoon-notes.log",
            "cocoon-2001-01-01T00-00-00.000000.txt",
        ] {
            std::fs::write(path(other), "other").unwrap();
        }
        let mut log = LogFile::open(&path("cocoon.log"), limits(10, 2)).unwrap();
        for number in 0..9 {
            log.write_all(format!("line {number}\n").as_bytes())
                .unwrap();
            // A name tells the microsecond, and there is only one of each.
            let before = Timestamp::now();
            while Timestamp::now().duration_since(before) < SignedDuration::from_micros(2) {}
        }
        let found: Vec<_> = files(folder.path())
            .iter()
            .map(|file| std::fs::read_to_string(file).unwrap())
            .collect();
        assert_eq!(
            found,
            ["other", "line 6\n", "line 7\n", "other", "line 8\n"]
        );
    }

    #[test]
    fn an_old_one_goes_by_its_age() {
        let folder = tempfile::tempdir().unwrap();
        let old = folder.path().join("log-2001-01-01T00-00-00.000000");
        let mut log = LogFile::open(&folder.path().join("log"), limits(10, 0)).unwrap();
        for age_days in [0, 28] {
            std::fs::write(&old, "old").unwrap();
            log.limits.age_days = age_days;
            log.write_all(b"more than ten bytes\n").unwrap();
            log.write_all(b"and again\n").unwrap();
            assert_eq!(old.exists(), age_days == 0);
        }
    }

    #[test]
    fn a_log_that_somebody_took_away_begins_anew_and_a_device_is_never_turned() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cocoon.log");
        let mut log = LogFile::open(&path, limits(100, 1)).unwrap();
        log.write_all(b"one\n").unwrap();
        std::fs::remove_file(&path).unwrap();
        log.write_all(b"two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
        let mut device = LogFile::open(Path::new("/dev/null"), limits(1, 1)).unwrap();
        device.write_all(b"line\n").unwrap();
        assert!(Path::new("/dev/null").exists());
    }
}
