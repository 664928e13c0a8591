//! The locks between commands, and their order.
//!
//! ```text
//! order   lock                         held by                          for how long
//! 1       <root>/locks/vm-<id>.lock    whoever changes that VM          the whole verb
//! 2       <root>/locks/snapshot-<id>.lock
//!                                      shared: who makes or reads it    the whole verb
//!                                      exclusive: who removes it        the whole verb
//! 3       <root>/locks/references.lock shared: who makes references     the whole verb
//!                                      exclusive, never waiting: gc
//! 4       <root>/locks/database.lock   writers of the database          one transaction
//! ```
//!
//! A lock is taken only while none of a later number is held. The one exception is what has only just got its
//! id: its lock is taken after number 3, for nobody else waits for it yet, and `gc` removes lock files
//! that belong to no row. `gc` takes number 3 first and then
//! *tries* numbers 1 and 2, so it cannot deadlock; it gives some time only to a VM process that still
//! writes a snapshot whose command was killed, and that waits for nobody. Nobody waits for a guest or
//! the network while holding number 4.
//!
//! Lock files of VMs and snapshots are removed by whoever removes the row, while holding the lock. Who
//! was waiting then finds no row, and says so.
//!
//! Who makes a snapshot shares its lock with the VM process that writes it, so that the folder is
//! nobody's only after both are done with it. Who reads one (a clone, an export) shares the lock until
//! its files are open or copied, *not* for as long as the clone lives: an engine keeps what it reads
//! lazily open or mapped, and the kernel keeps a file that is open, named or not. So `snapshot rm`
//! takes nothing from the clones; their disk space comes back as they end.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::layout::Layout;
use crate::sys::flock::FileLock;
use crate::units::{SnapshotId, VmId};

/// A lock that could not be taken, or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the lock {}", path.display())]
pub struct LockError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The right to change one VM.
#[derive(Debug)]
pub struct VmLock {
    id: VmId,
    path: PathBuf,
    _held: FileLock,
}

impl VmLock {
    /// Waits for the right to change the VM `id`.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub fn wait(layout: &Layout, id: VmId) -> Result<Self, LockError> {
        let path = vm_lock_path(layout, id);
        let held = FileLock::exclusive(&path).map_err(|source| LockError {
            path: path.clone(),
            source,
        })?;
        Ok(Self {
            id,
            path,
            _held: held,
        })
    }

    /// Takes the right to change the VM `id`, or returns `None` if another command has it.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub fn take(layout: &Layout, id: VmId) -> Result<Option<Self>, LockError> {
        let path = vm_lock_path(layout, id);
        let held = FileLock::try_exclusive(&path).map_err(|source| LockError {
            path: path.clone(),
            source,
        })?;
        Ok(held.map(|held| Self {
            id,
            path,
            _held: held,
        }))
    }

    /// The VM that may be changed.
    pub fn id(&self) -> VmId {
        self.id
    }

    /// Removes the lock's file, after the VM's row is gone.
    ///
    /// # Errors
    /// The file is there but cannot be removed.
    pub fn retire(self) -> Result<(), LockError> {
        remove_file(self.path)
    }
}

fn remove_file(path: PathBuf) -> Result<(), LockError> {
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LockError { path, source }),
        _ => Ok(()),
    }
}

fn vm_lock_path(layout: &Layout, id: VmId) -> PathBuf {
    layout.locks().join(format!("vm-{id}.lock"))
}

/// The VM whose lock file has this name.
pub fn vm_of_lock_file(name: &str) -> Option<VmId> {
    name.strip_prefix("vm-")?
        .strip_suffix(".lock")?
        .parse()
        .ok()
}

/// The right to remove one snapshot: nobody makes or reads it.
#[derive(Debug)]
pub struct SnapshotLock {
    id: SnapshotId,
    path: PathBuf,
    _held: FileLock,
}

impl SnapshotLock {
    /// Waits for the right to remove the snapshot `id`.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub fn wait(layout: &Layout, id: SnapshotId) -> Result<Self, LockError> {
        let path = snapshot_lock_path(layout, id);
        match FileLock::exclusive(&path) {
            Ok(held) => Ok(Self {
                id,
                path,
                _held: held,
            }),
            Err(source) => Err(LockError { path, source }),
        }
    }

    /// Takes the right to remove the snapshot `id`, or returns `None` if someone makes or reads it.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub fn take(layout: &Layout, id: SnapshotId) -> Result<Option<Self>, LockError> {
        Self::take_within(layout, id, Duration::ZERO)
    }

    /// As [`SnapshotLock::take`], but gives others some time to let go of it.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub fn take_within(
        layout: &Layout,
        id: SnapshotId,
        patience: Duration,
    ) -> Result<Option<Self>, LockError> {
        let path = snapshot_lock_path(layout, id);
        match FileLock::exclusive_within(&path, patience) {
            Ok(held) => Ok(held.map(|held| Self {
                id,
                path,
                _held: held,
            })),
            Err(source) => Err(LockError { path, source }),
        }
    }

    /// The snapshot that may be removed.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Removes the lock's file, after the snapshot's row is gone.
    ///
    /// # Errors
    /// The file is there but cannot be removed.
    pub fn retire(self) -> Result<(), LockError> {
        remove_file(self.path)
    }
}

/// Keeps one snapshot from being removed, while it is made or read.
#[derive(Debug)]
pub struct SnapshotUse {
    id: SnapshotId,
    _held: FileLock,
}

impl SnapshotUse {
    /// Joins those who make or read the snapshot `id`. Waits at most for its removal: then there is
    /// no row any more.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub fn share(layout: &Layout, id: SnapshotId) -> Result<Self, LockError> {
        let path = snapshot_lock_path(layout, id);
        match FileLock::shared(&path) {
            Ok(held) => Ok(Self { id, _held: held }),
            Err(source) => Err(LockError { path, source }),
        }
    }

    /// The snapshot that stays.
    pub fn id(&self) -> SnapshotId {
        self.id
    }
}

/// The file that is locked; the VM process that writes a snapshot is told of it.
pub fn snapshot_lock_path(layout: &Layout, id: SnapshotId) -> PathBuf {
    layout.locks().join(format!("snapshot-{id}.lock"))
}

/// The snapshot whose lock file has this name.
pub fn snapshot_of_lock_file(name: &str) -> Option<SnapshotId> {
    name.strip_prefix("snapshot-")?
        .strip_suffix(".lock")?
        .parse()
        .ok()
}

/// Held while references to blobs are being made; keeps `gc` out.
#[derive(Debug)]
pub struct ReferencesLock {
    _held: FileLock,
}

impl ReferencesLock {
    /// Joins those who make references. Waits at most for a running `gc`.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub fn share(layout: &Layout) -> Result<Self, LockError> {
        let path = references_path(layout);
        let held = FileLock::shared(&path).map_err(|source| LockError { path, source })?;
        Ok(Self { _held: held })
    }

    /// Keeps everyone from making references, or returns `None` if someone is at it.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub fn exclude(layout: &Layout) -> Result<Option<Self>, LockError> {
        let path = references_path(layout);
        let held = FileLock::try_exclusive(&path).map_err(|source| LockError { path, source })?;
        Ok(held.map(|held| Self { _held: held }))
    }
}

fn references_path(layout: &Layout) -> PathBuf {
    layout.locks().join("references.lock")
}
