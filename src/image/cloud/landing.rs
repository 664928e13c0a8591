//! The file that a transfer fills: what arrives is written where it belongs, and hashed when all before it is
//! there.
//!
//! Invariant: what the first bytes show to be no disk is given up at once, and not after it has all come.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::content::{self, HEAD, Sniffed};
use super::error::CloudError;
use super::follower::Follower;
use super::pieces::Pieces;
use super::unpack::write_sparse;
use crate::image::progress::{DiskStep, Progress, PullEvent};
use crate::units::Digest;

/// A file that is being filled.
pub(super) struct Landing<'a> {
    what: &'a str,
    file: &'a File,
    progress: &'a dyn Progress,
    /// Bytes of the whole, if that is known.
    size: Option<u64>,
    pieces: RefCell<Pieces>,
    follower: Follower,
    is_looked_at: Cell<bool>,
}

impl<'a> Landing<'a> {
    /// Begins to fill `file`, which is emptied; it will be asked for in pieces of so many bytes.
    pub(super) fn begin(
        what: &'a str,
        file: &'a File,
        progress: &'a dyn Progress,
        size: Option<u64>,
        piece: u64,
    ) -> Result<Self, CloudError> {
        let emptied = file
            .set_len(0)
            .and_then(|()| file.set_len(size.unwrap_or(0)));
        let follower = emptied.and_then(|()| Follower::start(file));
        progress.event(PullEvent::DiskStep {
            step: DiskStep::Fetching,
            total: size,
        });
        Ok(Self {
            what,
            file,
            progress,
            size,
            pieces: RefCell::new(Pieces::new(size.unwrap_or(u64::MAX), piece)),
            follower: follower.map_err(|source| cannot_keep(what, source))?,
            is_looked_at: Cell::new(false),
        })
    }

    /// The bytes that are to be asked for next.
    pub(super) fn take(&self) -> Option<Range<u64>> {
        self.pieces.borrow_mut().take()
    }

    /// Somebody else is to ask for these.
    pub(super) fn give_back(&self, range: Range<u64>) {
        self.pieces.borrow_mut().give_back(range);
    }

    /// Whether all has come.
    pub(super) fn is_whole(&self) -> bool {
        self.pieces.borrow().is_whole()
    }

    /// These bytes have come.
    pub(super) fn land(&self, at: u64, bytes: &[u8]) -> Result<(), CloudError> {
        let failed = |source| cannot_keep(self.what, source);
        let end = at + bytes.len() as u64;
        if self.size.is_none() {
            // Zeros are not written, and the follower reads up to here.
            self.file.set_len(end).map_err(failed)?;
        }
        write_sparse(self.file, at, bytes).map_err(failed)?;
        let prefix = self.pieces.borrow_mut().landed(at..end);
        if prefix >= HEAD as u64 && !self.is_looked_at.replace(true) {
            self.look()?;
        }
        self.follower.advance(prefix);
        self.progress.event(PullEvent::DiskAdvanced {
            bytes: bytes.len() as u64,
        });
        Ok(())
    }

    /// The digest of all that has come.
    pub(super) fn finish(self) -> Result<Digest, CloudError> {
        if !self.is_looked_at.get() {
            self.look()?;
        }
        let what = self.what;
        self.follower
            .finish()
            .map_err(|source| cannot_read(what, source))
    }

    fn look(&self) -> Result<(), CloudError> {
        let head = head_of(self.file).map_err(|source| cannot_read(self.what, source))?;
        match content::sniff(&head) {
            Sniffed::Foreign(found) => Err(CloudError::Foreign {
                what: self.what.to_owned(),
                depth: 0,
                found,
            }),
            _ => Ok(()),
        }
    }
}

/// The first bytes of a file, by which it is known.
pub(super) fn head_of(file: &File) -> io::Result<Vec<u8>> {
    let size = usize::try_from(file.metadata()?.len()).unwrap_or(HEAD);
    let mut head = vec![0; size.min(HEAD)];
    file.read_exact_at(&mut head, 0)?;
    Ok(head)
}

pub(super) fn cannot_keep(what: &str, source: io::Error) -> CloudError {
    let what = what.to_owned();
    CloudError::Write { what, source }
}

pub(super) fn cannot_read(what: &str, source: io::Error) -> CloudError {
    let what = what.to_owned();
    CloudError::Read { what, source }
}
