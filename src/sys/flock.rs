//! Advisory locks on files, by flock(2). The kernel drops a lock with the last descriptor of its
//! open file, so a killed process never leaves one behind; the files themselves stay for ever.
//!
//! A process may hold on what another has taken: [`FileLock::into_stdin`] and [`FileLock::from_stdin`].
//! There is no moment in between at which nobody holds it, whichever of the two is killed.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

/// Between two tries for a lock: flock(2) knows no wait that ends.
const TRY_AGAIN: Duration = Duration::from_millis(5);

/// A held lock; dropping it releases it.
#[derive(Debug)]
pub struct FileLock {
    file: File,
}

impl FileLock {
    /// Waits until no one else holds the lock of `path`, then holds it alone.
    ///
    /// # Errors
    /// The file cannot be opened or created, or the wait was interrupted by a signal.
    pub fn exclusive(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        file.lock()?;
        Ok(Self { file })
    }

    /// Waits until no one holds the lock of `path` alone, then holds it beside other sharers.
    ///
    /// # Errors
    /// As [`FileLock::exclusive`].
    pub fn shared(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        file.lock_shared()?;
        Ok(Self { file })
    }

    /// Holds the lock of `path` alone, or returns `None` at once if anyone else holds it.
    ///
    /// # Errors
    /// The file cannot be opened or created.
    pub fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        Self::try_on(open(path)?)
    }

    /// As [`FileLock::try_exclusive`], but gives others some time to let go of it.
    ///
    /// # Errors
    /// As [`FileLock::try_exclusive`].
    pub fn exclusive_within(path: &Path, patience: Duration) -> io::Result<Option<Self>> {
        let deadline = Instant::now() + patience;
        loop {
            match Self::try_exclusive(path)? {
                None if Instant::now() < deadline => thread::sleep(TRY_AGAIN),
                held => return Ok(held),
            }
        }
    }

    /// The lock as the standard input of a process that is to hold it on.
    pub fn into_stdin(self) -> Stdio {
        self.file.into()
    }

    /// Holds on the lock of `path` that this process was given as its standard input, which is empty from
    /// now on. If nobody has taken it before, it is taken; `None` if somebody else holds it.
    ///
    /// # Errors
    /// Standard input is another file.
    pub fn from_stdin(path: &Path) -> io::Result<Option<Self>> {
        let file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let (given, wanted) = (file.metadata()?, std::fs::metadata(path)?);
        if (given.dev(), given.ino()) != (wanted.dev(), wanted.ino()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        Self::try_on(file)
    }

    fn try_on(file: File) -> io::Result<Option<Self>> {
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Whether anyone holds the lock of `path`. A file that does not exist is locked by no one.
    ///
    /// # Errors
    /// The file exists but cannot be opened.
    pub fn is_held(path: &Path) -> io::Result<bool> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        // A shared attempt disturbs no other prober, only the holder would refuse it.
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// The locked file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_excludes_others_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.lock");
        assert!(!FileLock::is_held(&path).unwrap());
        let held = FileLock::exclusive(&path).unwrap();
        assert!(FileLock::is_held(&path).unwrap());
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
        drop(held);
        assert!(!FileLock::is_held(&path).unwrap());
        assert!(FileLock::try_exclusive(&path).unwrap().is_some());
    }

    #[test]
    fn a_patient_one_waits_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.lock");
        let held = FileLock::shared(&path).unwrap();
        let wait = |patience| FileLock::exclusive_within(&path, patience).unwrap();
        assert!(wait(Duration::from_millis(20)).is_none());
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(20));
                drop(held);
            });
            assert!(wait(Duration::from_secs(60)).is_some());
        });
    }

    #[test]
    fn sharers_keep_an_exclusive_holder_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.lock");
        let _one = FileLock::shared(&path).unwrap();
        let _two = FileLock::shared(&path).unwrap();
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
    }
}
