//! What a killed command leaves in the folder of a VM that stays.
//!
//! ```text
//! cow.staged     a disk for a restore that did not get so far      removed
//! cow.before     the VM's own disk: the restored VM never ran      becomes the VM's disk again
//! cow.replaced   the VM's own disk, until the restored VM ran      removed
//! .tmp-*         a file that was being written                     removed
//! ```
//! The names tell all: `restore` calls the VM's disk `before` when it puts it aside, and the VM process
//! calls that one `replaced` when it has said that the restored VM runs.
//!
//! Invariant: while a VM has a process, `cow.before` is left to it.

use std::io;
use std::path::{Path, PathBuf};

use super::{Error, Host, gc, list};
use crate::store::atomic::TEMP_PREFIX;
use crate::store::layout::disk_before;
use crate::store::lock::VmLock;
use crate::units::VmId;

/// Whether the folder of the VM holds any of it, or a command is at work there.
///
/// # Errors
/// The folder cannot be looked at.
pub(super) fn may_be(host: &Host, id: VmId) -> Result<bool, Error> {
    Ok(!of_folder(host, id)?.is_empty())
}

/// What there is of it.
///
/// # Errors
/// The folder or the VM cannot be looked at.
pub(super) fn find(host: &Host, lock: &VmLock) -> Result<Vec<PathBuf>, Error> {
    let mut found = of_folder(host, lock.id())?;
    let before = host.layout.vm(lock.id()).disk_before();
    if found.contains(&before) && list::is_alive(host, lock.id())? {
        found.retain(|path| *path != before);
    }
    Ok(found)
}

fn of_folder(host: &Host, id: VmId) -> Result<Vec<PathBuf>, Error> {
    let layout = host.layout.vm(id);
    let disks = [
        layout.staged_disk(),
        layout.disk_before(),
        layout.replaced_disk(),
    ];
    let mut found = gc::entries(layout.folder())?;
    let is_unfinished =
        |path: &PathBuf| gc::name_of(path).is_some_and(|name| name.starts_with(TEMP_PREFIX));
    found.retain(|path| disks.contains(path) || is_unfinished(path));
    Ok(found)
}

/// Puts it away.
///
/// # Errors
/// The VM's own disk cannot take its place again, or a file cannot be removed.
pub(super) fn put_away(host: &Host, lock: &VmLock) -> Result<(), Error> {
    let before = host.layout.vm(lock.id()).disk_before();
    for path in find(host, lock)? {
        if path == before {
            tracing::info!(vm = %lock.id(), "a restore was cut off; the VM has its own disk again");
            take_back(&host.layout.vm(lock.id()).cow_disk())?;
        } else {
            gc::remove_path(&path)?;
        }
    }
    Ok(())
}

/// The VM whose disk is `own`, and whose restored self never ran, has its own disk again.
///
/// # Errors
/// It is there, but cannot take its place.
pub(super) fn take_back(own: &Path) -> Result<(), Error> {
    match rename(&disk_before(own), own) {
        Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Gives a disk another name, which may be that of one that goes.
///
/// # Errors
/// There is no such disk, or it cannot be renamed.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::rename(from, to).map_err(|source| Error::File {
        action: "give another name to",
        path: from.to_owned(),
        source,
    })
}
