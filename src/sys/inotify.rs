//! Files that others write, by inotify(7): an event, where polling would find out late or for nothing.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;

/// Room for some hundred events of a file, which have no name.
const EVENTS_BYTES: usize = 4096;

/// A file that is watched.
#[derive(Debug)]
pub struct WrittenFile {
    inotify: OwnedFd,
}

impl WrittenFile {
    /// Watches `path` from now on.
    ///
    /// # Errors
    /// It is not there, may not be read, or the user has no watch left.
    pub fn watch(path: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&inotify, path, WatchFlags::CLOSE_WRITE)?;
        Ok(Self { inotify })
    }

    /// Forgets what has happened so far.
    ///
    /// # Errors
    /// The events cannot be read.
    pub fn forget(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); EVENTS_BYTES];
        let mut events = Reader::new(&self.inotify, &mut buffer);
        loop {
            match events.next() {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for WrittenFile {
    /// Readable once somebody who could write has closed the file.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::fs::File;

    fn has_happened(file: &WrittenFile) -> bool {
        let mut fds = [PollFd::new(file, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
    }

    #[test]
    fn who_could_write_is_noticed_when_he_closes_the_file_and_a_reader_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.lock");
        assert!(WrittenFile::watch(&path).is_err());
        let writer = File::create(&path).unwrap();
        let watched = WrittenFile::watch(&path).unwrap();
        drop(File::open(&path).unwrap());
        assert!(!has_happened(&watched));
        drop(writer);
        assert!(has_happened(&watched));
        for _ in 0..1000 {
            drop(File::options().append(true).open(&path).unwrap());
        }
        watched.forget().unwrap();
        assert!(!has_happened(&watched));
    }
}
