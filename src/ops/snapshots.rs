//! Snapshots on this host: finding, listing, inspecting and removing them.

use serde_json::{Value, json};

use super::{Error, Host, each_once, require_root};
use crate::snapshot::manifest::Depth;
use crate::snapshot::records::{self, SnapshotRecord, SnapshotRecordError};
use crate::snapshot::{Manifest, ManifestError, SnapshotState};
use crate::store::Durability;
use crate::store::lock::{SnapshotLock, SnapshotUse};
use crate::sys::failpoint;
use crate::units::{SnapshotId, VmId};
use crate::vm::records::RecordError;

/// Every snapshot that may be used, the oldest first.
///
/// # Errors
/// The database failed.
pub fn list(host: &Host) -> Result<Vec<SnapshotRecord>, Error> {
    let mut found = host.database()?.read(records::list)?;
    found.retain(|snapshot| snapshot.state == SnapshotState::Ready);
    Ok(found)
}

/// Those of [`list`] that were saved of the VM that a user means, which may be gone by now.
///
/// # Errors
/// There is neither such a VM nor a snapshot of one, or the database failed.
pub fn list_of_vm(host: &Host, reference: &str) -> Result<Vec<SnapshotRecord>, Error> {
    let mut found = list(host)?;
    let vm: VmId = match host.resolve(reference) {
        Ok(vm) => vm,
        Err(error @ Error::Record(RecordError::NotFound { .. })) => {
            let is_meant = |snapshot: &&SnapshotRecord| {
                snapshot.vm.to_string() == reference || snapshot.vm_name.as_str() == reference
            };
            found.iter().rfind(is_meant).ok_or(error)?.vm
        }
        Err(error) => return Err(error),
    };
    found.retain(|snapshot| snapshot.vm == vm);
    Ok(found)
}

/// The snapshot that a user means.
///
/// # Errors
/// It is unknown or ambiguous.
pub fn resolve(host: &Host, reference: &str) -> Result<SnapshotId, Error> {
    Ok(host
        .database()?
        .read(|tx| records::resolve(tx, reference))?)
}

/// The snapshots that a user means, each once, in the order and by the name of first mention.
///
/// # Errors
/// Any of them is unknown or ambiguous: then nothing should be done to the others either.
pub fn resolve_all<'a>(
    host: &Host,
    references: &'a [String],
) -> Result<Vec<(SnapshotId, &'a str)>, Error> {
    host.database()?
        .read(|tx| each_once(references, |reference| Ok(records::resolve(tx, reference)?)))
}

/// One snapshot, in whatever state.
///
/// # Errors
/// There is none with this id any more, or the database failed.
pub fn get(host: &Host, id: SnapshotId) -> Result<SnapshotRecord, Error> {
    let found = host.database()?.read(|tx| records::get(tx, id))?;
    Ok(found.ok_or_else(|| SnapshotRecordError::gone(id))?)
}

/// Keeps a snapshot from being removed while its files are opened or copied.
///
/// # Errors
/// There is none any more, or it is being removed.
pub fn open(host: &Host, id: SnapshotId) -> Result<(SnapshotUse, SnapshotRecord), Error> {
    let held = SnapshotUse::share(&host.layout, id)?;
    let record = match get(host, id) {
        Ok(record) => record,
        Err(error) => {
            // The lock's file was made by looking for it.
            drop(held);
            if let Some(lock) = SnapshotLock::take(&host.layout, id)? {
                lock.retire()?;
            }
            return Err(error);
        }
    };
    match record.state {
        SnapshotState::Ready => Ok((held, record)),
        state => Err(Error::SnapshotState {
            snapshot: record.label(),
            state,
        }),
    }
}

/// Describes a snapshot, and says what is wrong with its files, if anything is.
///
/// # Errors
/// There is no such snapshot, or the database failed.
pub fn inspect(
    host: &Host,
    id: SnapshotId,
    depth: Depth,
    go_on: &dyn Fn() -> bool,
) -> Result<(Value, Result<(), ManifestError>), Error> {
    let (_held, record) = open(host, id)?;
    let folder = host.layout.snapshot(id).folder();
    let mut object = summary(&record);
    object["path"] = json!(folder.path());
    let checked = Manifest::read(&folder).and_then(|manifest| {
        object["engine_version"] = json!(manifest.engine_version);
        object["host_cpu"] = json!(manifest.cpu);
        object["disks"] = json!(manifest.disks);
        object["files"] = json!(manifest.files);
        manifest.check(&folder, depth, go_on)
    });
    object["damage"] = json!(checked.as_ref().err().map(ToString::to_string));
    Ok((object, checked))
}

/// Describes a snapshot by its record alone, as `snapshot list` does. The keys are those of the Go
/// cocoon's object, and cocoon's own beside them.
pub fn summary(record: &SnapshotRecord) -> Value {
    let config = &record.config;
    let blobs = config.blobs().iter().map(|blob| (blob.hex(), json!({})));
    json!({
        "id": record.id,
        "name": record.name,
        "description": record.description,
        "image": config.image,
        "image_digest": config.image_digest,
        "image_blob_ids": blobs.collect::<serde_json::Map<_, _>>(),
        "cpu": config.cpu,
        "memory": config.memory,
        "storage": config.storage,
        "nics": config.nics,
        "created_at": record.created_at,
        "vm_id": record.vm,
        "vm_name": record.vm_name,
        "engine": config.engine,
        "state": record.state,
        "size": record.size,
    })
}

/// Removes a snapshot, once nobody makes or reads it. VMs that were cloned from it go on: what they
/// still read of it, they hold open.
///
/// # Errors
/// Something of it cannot be removed; then it stays in state `removing`, and another `rm` or `gc` goes
/// on.
pub fn remove(host: &Host, id: SnapshotId) -> Result<(), Error> {
    require_root()?;
    let lock = SnapshotLock::wait(&host.layout, id)?;
    match get(host, id) {
        Ok(_) => finish_removal(host, lock),
        Err(error) => {
            lock.retire()?;
            Err(error)
        }
    }
}

/// Removes what there is of a snapshot, its row last.
///
/// # Errors
/// Something cannot be removed; the row stays.
pub(super) fn finish_removal(host: &Host, lock: SnapshotLock) -> Result<(), Error> {
    let mut db = host.database()?;
    db.write(Durability::Full, |tx| records::doom(tx, &lock))?;
    failpoint::reach("snapshot rm: recorded as being removed");
    host.layout.snapshot(lock.id()).remove()?;
    failpoint::reach("snapshot rm: folders gone");
    db.write(Durability::Full, |tx| records::delete(tx, &lock))?;
    failpoint::reach("snapshot rm: row gone");
    lock.retire()?;
    failpoint::reach("snapshot rm: lock gone");
    Ok(())
}

#[cfg(test)]
mod tests;
