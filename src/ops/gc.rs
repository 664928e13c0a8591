//! `gc`: brings the host back to exactly what the records say.
//!
//! ```text
//! VM rows in `creating`, `removing`, lock free   ─▶ network, folders, row, lock file
//! VM rows in `running`, process dead             ─▶ recorded as stopped
//! snapshot rows in `saving`, `removing`, lock free ─▶ folders, row, lock file
//! restores and writes that were cut off          ─▶ see `leftover`
//! folders and lock files without a row           ─▶ removed
//! blobs, boot files that nothing refers to       ─▶ removed
//! staging                                        ─▶ emptied
//! ```
//!
//! Invariants: it runs only while nobody makes references, which it checks without waiting; and it
//! never removes what a row in any state refers to. A network needs no search of its own: its row
//! was written before it, and goes after it.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::stop::{self, Manner};
use super::{Error, Host, leftover, list, remove, require_root, snapshots};
use crate::image::records as images;
use crate::snapshot::records as snapshot_records;
use crate::snapshot::{SnapshotRecord, SnapshotState};
use crate::store::layout::snapshot_of_folder;
use crate::store::lock::{
    ReferencesLock, SnapshotLock, VmLock, snapshot_of_lock_file, vm_of_lock_file,
};
use crate::sys::failpoint;
use crate::sys::interrupt::Interrupt;
use crate::units::{Digest, SnapshotId, VmId};
use crate::vm::VmState;
use crate::vm::records;

/// How long a VM process may take to notice that the command of a save has died: it looks up when it
/// has written the guest's memory, and every 16 MiB of a disk.
const GIVES_UP: Duration = Duration::from_secs(10);

/// Something that gc removes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What kind of thing it is.
    pub kind: Kind,
    /// Its path, or the VM's id.
    pub name: String,
    /// Bytes that it occupies on disk, as far as known.
    pub bytes: u64,
}

/// Kinds of things that gc removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A VM whose creation or removal was cut off.
    Vm,
    /// A folder of a VM that is not recorded.
    VmFolder,
    /// A snapshot whose making or removal was cut off.
    Snapshot,
    /// A folder of a snapshot that is not recorded.
    SnapshotFolder,
    /// A lock file of a VM or snapshot that is not recorded.
    Lock,
    /// A layer, or a disk image.
    Blob,
    /// The boot files of a layer.
    BootFiles,
    /// An unfinished download, or what a killed command left in a VM's folder.
    Staged,
}

/// What a collection did.
#[derive(Debug, Default)]
pub struct Collected {
    /// What was removed, or would be.
    pub items: Vec<Item>,
    /// What could not be removed, and why.
    pub failures: Vec<Error>,
}

/// Removes what nothing refers to; with `dry_run` only says what that is.
///
/// # Errors
/// Another command is making references, or what there is cannot be listed. What cannot be removed
/// is among the result's failures.
pub fn collect(host: &Host, dry_run: bool) -> Result<Collected, Error> {
    require_root()?;
    let _references = ReferencesLock::exclude(&host.layout)?.ok_or(Error::Busy)?;
    let mut collected = Collected::default();
    collect_vms(host, dry_run, &mut collected)?;
    collect_leftovers(host, dry_run, &mut collected)?;
    collect_snapshots(host, dry_run, &mut collected)?;
    collect_files(host, dry_run, &mut collected)?;
    Ok(collected)
}

fn collect_vms(host: &Host, dry_run: bool, collected: &mut Collected) -> Result<(), Error> {
    // Listing also writes down which VMs have died.
    for vm in list::list(host)? {
        let record = vm.record;
        if !matches!(record.state, VmState::Creating | VmState::Removing) {
            continue;
        }
        // Whoever holds the lock is still at it.
        let Some(lock) = VmLock::take(&host.layout, record.id)? else {
            continue;
        };
        collected.items.push(Item {
            kind: Kind::Vm,
            name: record.id.to_string(),
            bytes: 0,
        });
        if !dry_run {
            collected.failures.extend(finish_vm(host, lock).err());
        }
    }
    Ok(())
}

fn finish_vm(host: &Host, lock: VmLock) -> Result<(), Error> {
    if list::is_alive(host, lock.id())? {
        stop::stop_locked(
            host,
            &lock,
            Manner::Force,
            &Interrupt::never().map_err(Error::Wait)?,
        )?;
    }
    remove::finish(host, lock)
}

fn collect_leftovers(host: &Host, dry_run: bool, collected: &mut Collected) -> Result<(), Error> {
    for vm in host.database()?.read(records::list)? {
        // The first look spares the locks of VMs on which no command was at work.
        if !leftover::may_be(host, vm.id)? && !list::is_undecided(host, vm.id)? {
            continue;
        }
        let Some(lock) = VmLock::take(&host.layout, vm.id)? else {
            continue;
        };
        list::get_locked(host, &lock)?;
        let left = leftover::find(host, &lock)?;
        collected.items.extend(left.iter().map(|path| Item {
            kind: Kind::Staged,
            name: path.display().to_string(),
            bytes: bytes_in(path),
        }));
        if !dry_run {
            collected
                .failures
                .extend(leftover::put_away(host, &lock).err());
        }
    }
    Ok(())
}

fn collect_snapshots(host: &Host, dry_run: bool, collected: &mut Collected) -> Result<(), Error> {
    let mut cut_off = host.database()?.read(snapshot_records::list)?;
    cut_off.retain(|snapshot| snapshot.state != SnapshotState::Ready);
    for SnapshotRecord { id, state, .. } in cut_off {
        // No command makes one now; the VM process that a killed one has asked gives it up by itself.
        let patience = match state {
            SnapshotState::Saving if !dry_run => GIVES_UP,
            _ => Duration::ZERO,
        };
        // Whoever holds the lock then is still at it.
        let Some(lock) = SnapshotLock::take_within(&host.layout, id, patience)? else {
            continue;
        };
        let layout = host.layout.snapshot(id);
        collected.items.push(Item {
            kind: Kind::Snapshot,
            name: id.to_string(),
            bytes: bytes_in(layout.staged().path()) + bytes_in(layout.folder().path()),
        });
        if !dry_run {
            let removed = snapshots::finish_removal(host, lock);
            collected.failures.extend(removed.err());
        }
    }
    Ok(())
}

/// Whether a file of this name is referred to.
type IsReferred<'a> = &'a dyn Fn(&str) -> bool;

/// What the records refer to.
struct Referred {
    vms: HashSet<VmId>,
    snapshots: HashSet<SnapshotId>,
    blobs: HashSet<Digest>,
}

fn collect_files(host: &Host, dry_run: bool, collected: &mut Collected) -> Result<(), Error> {
    let referred = host.database()?.read(|tx| {
        let vms = records::list(tx)?.into_iter().map(|vm| vm.id).collect();
        let blobs = images::needed_blobs(tx)?
            .into_iter()
            .chain(records::pinned_blobs(tx)?)
            .chain(snapshot_records::pinned_blobs(tx)?)
            .collect();
        let snapshots = snapshot_records::list(tx)?;
        Ok::<_, Error>(Referred {
            vms,
            snapshots: snapshots.into_iter().map(|one| one.id).collect(),
            blobs,
        })
    })?;
    let layout = &host.layout;
    let is_vm = |name: &str| name.parse().is_ok_and(|id| referred.vms.contains(&id));
    let is_snapshot =
        |name: &str| snapshot_of_folder(name).is_some_and(|id| referred.snapshots.contains(&id));
    let is_lock = |name: &str| {
        vm_of_lock_file(name).is_none_or(|id| referred.vms.contains(&id))
            && snapshot_of_lock_file(name).is_none_or(|id| referred.snapshots.contains(&id))
    };
    let is_layer = |hex: &str| {
        format!("sha256:{hex}")
            .parse()
            .is_ok_and(|digest| referred.blobs.contains(&digest))
    };
    let is_blob = |name: &str| {
        let hex = name.strip_suffix(".erofs");
        hex.or_else(|| name.strip_suffix(".qcow2"))
            .is_some_and(is_layer)
    };
    let places: [(PathBuf, Kind, IsReferred<'_>); 7] = [
        (layout.vms(), Kind::VmFolder, &is_vm),
        (layout.vm_logs(), Kind::VmFolder, &is_vm),
        (layout.snapshots(), Kind::SnapshotFolder, &is_snapshot),
        (layout.locks(), Kind::Lock, &is_lock),
        (layout.blobs(), Kind::Blob, &is_blob),
        (layout.boot(), Kind::BootFiles, &is_layer),
        (layout.staging(), Kind::Staged, &|_| false),
    ];
    for (folder, kind, is_referred) in places {
        for path in entries(&folder)?
            .into_iter()
            .filter(|path| !name_of(path).is_some_and(is_referred))
        {
            collected.items.push(Item {
                kind,
                name: path.display().to_string(),
                bytes: bytes_in(&path),
            });
            if !dry_run {
                collected.failures.extend(remove_path(&path).err());
                failpoint::reach("gc: file or folder removed");
            }
        }
    }
    Ok(())
}

pub(super) fn name_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// What a folder holds, sorted; nothing for a folder that does not exist.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::File {
        action: "list",
        path: folder.to_owned(),
        source,
    };
    let found = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found.map_err(failed)?,
    };
    let mut paths = found
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    paths.sort();
    Ok(paths)
}

pub(super) fn remove_path(path: &Path) -> Result<(), Error> {
    let is_folder = path.symlink_metadata().is_ok_and(|file| file.is_dir());
    let removed = if is_folder {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    };
    match removed {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::File {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Bytes that a file or a folder occupies; what cannot be looked at counts as nothing.
pub(super) fn bytes_in(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = path.symlink_metadata() else {
        return 0;
    };
    if !metadata.is_dir() {
        return metadata.blocks() * 512; // st_blocks counts 512-byte units, see stat(2)
    }
    let inner = std::fs::read_dir(path).into_iter().flatten().flatten();
    inner.map(|entry| bytes_in(&entry.path())).sum()
}
