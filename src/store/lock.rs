//! The locks between commands, and their order.
//!
//! ```text
//! order   lock                         held by                          for how long
//! 1       <root>/locks/vm-<id>.lock    whoever changes that VM          the whole verb
//! 2       <root>/locks/references.lock shared: who makes references     the whole verb
//!                                      exclusive, never waiting: gc
//! 3       <root>/locks/database.lock   writers of the database          one transaction
//! ```
//!
//! A lock is taken only while none of a later number is held. `gc` takes number 2 first and then
//! *tries* number 1, so it never waits and cannot deadlock. Nobody waits for a guest or the network
//! while holding number 3.
//!
//! Lock files of VMs are removed by whoever removes the VM's row, while holding the lock. Who was
//! waiting then finds no row, and says so.

use std::io;
use std::path::PathBuf;

use super::layout::Layout;
use crate::sys::flock::FileLock;
use crate::units::VmId;

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
        match std::fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LockError {
                path: self.path,
                source,
            }),
            _ => Ok(()),
        }
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
