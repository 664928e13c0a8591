//! A thread that hashes a file while it arrives, close behind what is complete of it.
//!
//! ```text
//!   connections ─▶ file ─▶ prefix moves ─▶ [ follower ]  reads up to it, hashes, waits
//! ```
//! So a file is hashed when it is there, in bounded memory, and what is read was written a moment ago.
//!
//! Invariant: dropping a follower ends its thread before the file goes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use sha2::{Digest as _, Sha256};

use crate::units::Digest;

/// Bytes that are read and hashed at once.
const BUFFER: usize = 1 << 20;

/// How far the file is complete, and whether that is all.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    ready: u64,
    end: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Whole,
    GivenUp,
}

#[derive(Debug, Default)]
struct Shared {
    mark: Mutex<Mark>,
    moved: Condvar,
}

/// The hasher of one file.
#[derive(Debug)]
pub(super) struct Follower {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<Digest>>>,
}

impl Follower {
    /// Begins to follow `file` from its beginning, of which nothing is there yet.
    pub(super) fn start(file: &File) -> io::Result<Self> {
        let (file, shared) = (file.try_clone()?, Arc::new(Shared::default()));
        let followed = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("disk-sha256".to_owned())
            .spawn(move || followed.hash(&file))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// The file is complete up to here.
    pub(super) fn advance(&self, ready: u64) {
        self.shared.set(|mark| mark.ready = ready);
    }

    /// The digest of what is there, which is all.
    pub(super) fn finish(mut self) -> io::Result<Digest> {
        self.end(End::Whole)
    }

    fn end(&mut self, end: End) -> io::Result<Digest> {
        self.shared.set(|mark| mark.end = Some(end));
        let thread = self.thread.take();
        let done = thread.and_then(|thread| thread.join().ok());
        done.unwrap_or_else(|| Err(io::Error::other("the hashing thread ended")))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if self.thread.is_some() {
            // Nobody wants its digest.
            let _ = self.end(End::GivenUp);
        }
    }
}

impl Shared {
    fn set(&self, change: impl FnOnce(&mut Mark)) {
        change(&mut self.mark.lock().unwrap_or_else(PoisonError::into_inner));
        self.moved.notify_one();
    }

    /// Waits until there is more than `done`, or an end.
    fn wait(&self, done: u64) -> Mark {
        let mark = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
        *self
            .moved
            .wait_while(mark, |mark| mark.ready <= done && mark.end.is_none())
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn hash(&self, file: &File) -> io::Result<Digest> {
        let (mut hasher, mut done) = (Sha256::new(), 0);
        let mut buffer = vec![0; BUFFER];
        loop {
            let mark = self.wait(done);
            if mark.end == Some(End::GivenUp) {
                return Err(io::Error::other("given up"));
            }
            if mark.ready <= done {
                return Ok(Digest::finish(hasher));
            }
            let count = usize::try_from(mark.ready - done).unwrap_or(BUFFER);
            let bytes = &mut buffer[..count.min(BUFFER)];
            file.read_exact_at(bytes, done)?;
            hasher.update(&*bytes);
            done += bytes.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fixture::noise;

    #[test]
    fn the_digest_is_that_of_the_file_however_it_came() {
        let content = noise(1, 3 * BUFFER + 17);
        for step in [1 << 16, BUFFER, content.len()] {
            let file = tempfile::tempfile().unwrap();
            let follower = Follower::start(&file).unwrap();
            let mut at = 0;
            for part in content.chunks(step) {
                file.write_all_at(part, at).unwrap();
                at += part.len() as u64;
                follower.advance(at);
            }
            assert_eq!(follower.finish().unwrap(), Digest::of(&content));
        }
        let nothing = Follower::start(&tempfile::tempfile().unwrap()).unwrap();
        assert_eq!(nothing.finish().unwrap(), Digest::of(b""));
    }

    #[test]
    fn a_follower_that_is_dropped_waits_for_nothing_more() {
        let file = tempfile::tempfile().unwrap();
        let follower = Follower::start(&file).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        follower.advance(1);
        drop(follower);
    }

    #[test]
    fn a_file_that_is_shorter_than_was_said_is_an_error() {
        let follower = Follower::start(&tempfile::tempfile().unwrap()).unwrap();
        follower.advance(1);
        assert!(follower.finish().is_err());
    }
}
