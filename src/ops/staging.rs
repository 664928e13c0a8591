//! A snapshot that is being made, by a save or an import.
//!
//! ```text
//! begin ──▶ row: saving, name, pins ──▶ .staged-<id>/ ── filled by the caller ──▶ finish
//!                                            │                                     │ manifest, synced
//!                               discard ◀────┘                  rename, row: ready ◀┘
//! ```
//! Invariant: killed anywhere, it leaves a row in state `saving` whose lock is free once the VM process
//! has let go of it, too; `gc` removes the row and both folders. A name that such a row holds is free
//! after that.

use super::{Error, Host, gc, snapshots};
use crate::snapshot::Manifest;
use crate::snapshot::records::{self, Reservation};
use crate::store::layout::SnapshotFolder;
use crate::store::lock::{ReferencesLock, SnapshotLock, SnapshotUse};
use crate::store::{Durability, atomic};
use crate::sys::failpoint;
use crate::units::{ByteSize, SnapshotId};

/// A snapshot that is reserved and has a folder.
#[derive(Debug)]
pub(super) struct Staging<'a> {
    host: &'a Host,
    maker: SnapshotUse,
    folder: SnapshotFolder,
    _references: ReferencesLock,
}

impl<'a> Staging<'a> {
    /// Reserves a new snapshot, and makes its folder.
    ///
    /// # Errors
    /// The name is taken, or the folder cannot be made; nothing is left then.
    pub(super) fn begin(host: &'a Host, new: &Reservation<'_>) -> Result<Self, Error> {
        let id = SnapshotId::random().map_err(Error::Random)?;
        // Before the other one, whose file `gc` would take for one that was left.
        let references = ReferencesLock::share(&host.layout)?;
        let maker = SnapshotUse::share(&host.layout, id)?;
        failpoint::reach("snapshot: its lock made");
        let staging = Self {
            host,
            maker,
            folder: host.layout.snapshot(id).staged(),
            _references: references,
        };
        match staging.reserve(new) {
            Ok(()) => Ok(staging),
            Err(error) => Err(error.and_not_undone(staging.discard())),
        }
    }

    fn reserve(&self, new: &Reservation<'_>) -> Result<(), Error> {
        self.host.database()?.write(Durability::UntilReboot, |tx| {
            records::reserve(tx, &self.maker, new)
        })?;
        failpoint::reach("snapshot: reserved");
        self.folder.prepare()?;
        failpoint::reach("snapshot: folder made");
        Ok(())
    }

    /// The new snapshot.
    pub(super) fn id(&self) -> SnapshotId {
        self.maker.id()
    }

    /// The folder to fill.
    pub(super) fn folder(&self) -> &SnapshotFolder {
        &self.folder
    }

    /// Completes the snapshot, whose files are those that `manifest` describes.
    ///
    /// # Errors
    /// Something cannot be written; nothing of the snapshot is left then.
    pub(super) fn finish(self, manifest: &Manifest) -> Result<SnapshotId, Error> {
        match self.publish(manifest) {
            Ok(()) => Ok(self.id()),
            Err(error) => Err(error.and_not_undone(self.discard())),
        }
    }

    fn publish(&self, manifest: &Manifest) -> Result<(), Error> {
        manifest.write(&self.folder)?;
        failpoint::reach("snapshot: manifest written");
        let size = ByteSize::from_bytes(gc::bytes_in(self.folder.path()));
        let place = self.host.layout.snapshot(self.id()).folder();
        atomic::publish(self.folder.path(), place.path()).map_err(|source| Error::File {
            action: "publish the snapshot",
            path: place.path().to_owned(),
            source,
        })?;
        failpoint::reach("snapshot: folder published");
        self.host.database()?.write(Durability::Full, |tx| {
            records::commit(tx, &self.maker, size)
        })?;
        failpoint::reach("snapshot: recorded as ready");
        Ok(())
    }

    /// Removes what has been made, once the VM process writes no more of it. Returns what fails.
    pub(super) fn discard(self) -> Vec<Error> {
        let (host, id) = (self.host, self.id());
        // In the order of locks; a `gc` that comes between does the same as what follows.
        drop(self);
        SnapshotLock::wait(&host.layout, id)
            .map_err(Error::from)
            .and_then(|lock| snapshots::finish_removal(host, lock))
            .err()
            .into_iter()
            .collect()
    }
}

/// What a failed check or copy was: the user's wish, or a failure.
pub(super) fn unless_interrupted(error: Error, is_raised: bool) -> Error {
    if is_raised { Error::Interrupted } else { error }
}
