//! Records of virtual machines: rows of `vms` and `vm_blobs`.
//!
//! Invariants: a VM is reserved before anything of it is made, so a folder without a row is
//! garbage, and a row in `creating` or `removing` whose lock is free is what a crash left.
//! Only the VM process that a row's `run` names may say that the VM runs or has stopped; a VM in
//! `creating` stays so, whatever its process says, until its maker says that it is complete.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::de::DeserializeOwned;

use super::{VmConfig, VmState};
use crate::store::db::{DatabaseError, parse, statement};
use crate::store::lock::VmLock;
use crate::store::rows::{self, Meant};
use crate::units::{Digest, RunId, VmId, VmName};

/// One VM, as recorded; of its configuration, what `C` takes of a [`VmConfig`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the times are their own names")]
pub struct VmRecord<C = VmConfig> {
    /// Identifies it for its whole life.
    pub id: VmId,
    /// Unique among VMs.
    pub name: VmName,
    /// As recorded; see [`VmState::observed`].
    pub state: VmState,
    /// Why it is stopped or in error.
    pub reason: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub stopped_at: Option<Timestamp>,
    /// When its guest had booted for the first time, to the end, as far as is known: cloud-init is not asked
    /// again then.
    pub first_booted_at: Option<Timestamp>,
    /// What was asked for, and what that meant when it was created.
    pub config: C,
}

/// Why a VM cannot be reserved or found.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// Another VM has the name.
    #[error("the name {name} is taken by VM {holder}")]
    NameTaken {
        /// The name.
        name: VmName,
        /// Who has it.
        holder: VmId,
    },
    /// There is no such VM.
    #[error("no VM is called {reference:?}, and no id begins with it")]
    NotFound {
        /// What was asked for.
        reference: String,
        /// The name that is most like it.
        near: Option<String>,
    },
    /// Several ids begin with the text.
    #[error("{reference:?} fits several VMs: {}", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        reference: String,
        /// The VMs that it fits, as `id (name)`.
        candidates: Vec<String>,
    },
}

impl RecordError {
    /// What was found before is there no more.
    pub fn gone(reference: impl std::fmt::Display) -> Self {
        Self::NotFound {
            reference: reference.to_string(),
            near: None,
        }
    }
}

const COLUMNS: &str = "id, name, state, reason, created_at, updated_at, started_at, stopped_at, config, first_booted_at";

/// Reserves a VM: its row in state `creating`, its name, and its pins on blobs.
///
/// # Errors
/// The name is taken, or the database failed; nothing is reserved then.
pub fn reserve(
    tx: &Transaction<'_>,
    lock: &VmLock,
    name: &VmName,
    config: &VmConfig,
    now: Timestamp,
) -> Result<(), RecordError> {
    if let Some(holder) = holder_of(tx, name)? {
        return Err(RecordError::NameTaken {
            name: name.clone(),
            holder,
        });
    }
    let id = lock.id().to_string();
    let now = now.to_string();
    tx.execute(
        "INSERT INTO vms (id, name, state, created_at, updated_at, config) VALUES (?1, ?2, 'creating', ?3, ?3, ?4)",
        params![id, name.as_str(), now, to_json(config)?],
    )
    .map_err(statement("reserve a VM"))?;
    for digest in config.blobs() {
        tx.execute(
            "INSERT OR IGNORE INTO vm_blobs VALUES (?1, ?2)",
            params![id, digest.to_string()],
        )
        .map_err(statement("pin the blobs of a VM"))?;
    }
    Ok(())
}

/// The VM that has this name.
///
/// # Errors
/// The database failed.
pub fn holder_of(tx: &Transaction<'_>, name: &VmName) -> Result<Option<VmId>, DatabaseError> {
    let id: Option<String> = tx
        .query_row(
            "SELECT id FROM vms WHERE name = ?1",
            [name.as_str()],
            |row| row.get(0),
        )
        .optional()
        .map_err(statement("look up a VM's name"))?;
    id.map(|id| parse("VM id", &id)).transpose()
}

/// Records that creation is complete, or that removal has begun.
///
/// # Errors
/// The database failed.
pub fn set_state(
    tx: &Transaction<'_>,
    lock: &VmLock,
    state: VmState,
    now: Timestamp,
) -> Result<(), DatabaseError> {
    tx.execute(
        "UPDATE vms SET state = ?2, reason = NULL, updated_at = ?3 WHERE id = ?1",
        params![lock.id().to_string(), state.as_str(), now.to_string()],
    )
    .map(drop)
    .map_err(statement("record a VM's state"))
}

/// Records that a VM has another configuration, with the same layers.
///
/// # Errors
/// The database failed.
pub fn set_config(
    tx: &Transaction<'_>,
    lock: &VmLock,
    config: &VmConfig,
    now: Timestamp,
) -> Result<(), DatabaseError> {
    tx.execute(
        "UPDATE vms SET config = ?2, updated_at = ?3 WHERE id = ?1",
        params![lock.id().to_string(), to_json(config)?, now.to_string()],
    )
    .map(drop)
    .map_err(statement("record a VM's configuration"))
}

/// Records that a VM whose process runs already is complete: a clone, when it may be used.
///
/// # Errors
/// The database failed.
pub fn complete(tx: &Transaction<'_>, lock: &VmLock, now: Timestamp) -> Result<(), DatabaseError> {
    tx.execute(
        "UPDATE vms SET state = 'running', updated_at = ?2 WHERE id = ?1 AND state = 'creating'",
        params![lock.id().to_string(), now.to_string()],
    )
    .map(drop)
    .map_err(statement("record that a VM is complete"))
}

/// Records that a start has failed, unless it was part of a creation, which is no VM yet.
///
/// # Errors
/// The database failed.
pub fn start_failed(
    tx: &Transaction<'_>,
    lock: &VmLock,
    reason: &str,
    now: Timestamp,
) -> Result<(), DatabaseError> {
    tx.execute(
        "UPDATE vms SET state = 'error', reason = ?2, updated_at = ?3
         WHERE id = ?1 AND state <> 'creating'",
        params![lock.id().to_string(), reason, now.to_string()],
    )
    .map(drop)
    .map_err(statement("record that a VM did not start"))
}

/// Records when the guest had booted for the first time, to the end; or that it has not.
///
/// # Errors
/// The database failed.
pub fn set_first_boot(
    tx: &Transaction<'_>,
    lock: &VmLock,
    when: Option<Timestamp>,
) -> Result<(), DatabaseError> {
    tx.execute(
        "UPDATE vms SET first_booted_at = ?2 WHERE id = ?1",
        params![lock.id().to_string(), when.map(|time| time.to_string())],
    )
    .map(drop)
    .map_err(statement("record a VM's first boot"))
}

/// Names the run that is about to begin; only the process that knows the name may report on it.
///
/// # Errors
/// The database failed.
pub fn begin_run(tx: &Transaction<'_>, lock: &VmLock, run: RunId) -> Result<(), DatabaseError> {
    tx.execute(
        "UPDATE vms SET run = ?2 WHERE id = ?1",
        params![lock.id().to_string(), run.to_string()],
    )
    .map(drop)
    .map_err(statement("record the run of a VM"))
}

/// Says, as the VM process of `run`, that the VM runs. One that is still being created stays so.
///
/// # Errors
/// The database failed.
pub fn report_running(
    tx: &Transaction<'_>,
    id: VmId,
    run: RunId,
    now: Timestamp,
) -> Result<(), DatabaseError> {
    tx.execute(
        "UPDATE vms SET state = CASE state WHEN 'creating' THEN state ELSE 'running' END,
             reason = NULL, started_at = ?3, stopped_at = NULL, updated_at = ?3
         WHERE id = ?1 AND run = ?2 AND state <> 'removing'",
        params![id.to_string(), run.to_string(), now.to_string()],
    )
    .map(drop)
    .map_err(statement("record that a VM runs"))
}

/// Says, as the VM process of `run`, that the guest was halted, or goes on.
///
/// # Errors
/// The database failed.
pub fn report_paused(
    tx: &Transaction<'_>,
    id: VmId,
    run: RunId,
    paused: bool,
    now: Timestamp,
) -> Result<(), DatabaseError> {
    let state = if paused {
        VmState::Paused
    } else {
        VmState::Running
    };
    tx.execute(
        "UPDATE vms SET state = ?3, updated_at = ?4
         WHERE id = ?1 AND run = ?2 AND state IN ('running', 'paused')",
        params![
            id.to_string(),
            run.to_string(),
            state.as_str(),
            now.to_string()
        ],
    )
    .map(drop)
    .map_err(statement("record that a VM is paused"))
}

/// The run that began last.
///
/// # Errors
/// The database failed.
pub fn run_of(tx: &Transaction<'_>, id: VmId) -> Result<Option<RunId>, DatabaseError> {
    let (action, query) = (
        "read a VM's run",
        "SELECT run FROM vms WHERE id = ?1 AND run IS NOT NULL",
    );
    rows::first(tx, action, (query, [id.to_string()]), |row| {
        parse("run", rows::text(row, 0, action)?)
    })
}

/// Says, of this `run`, that the guest has booted for the first time, to the end.
///
/// # Errors
/// The database failed.
pub fn report_first_boot(
    tx: &Transaction<'_>,
    id: VmId,
    run: RunId,
    now: Timestamp,
) -> Result<(), DatabaseError> {
    tx.execute(
        "UPDATE vms SET first_booted_at = ?3, updated_at = ?3
         WHERE id = ?1 AND run = ?2 AND first_booted_at IS NULL",
        params![id.to_string(), run.to_string(), now.to_string()],
    )
    .map(drop)
    .map_err(statement("record a VM's first boot"))
}

/// Says, as the VM process of `run`, that the VM has stopped.
///
/// # Errors
/// The database failed.
pub fn report_stopped(
    tx: &Transaction<'_>,
    id: VmId,
    run: RunId,
    reason: &str,
    now: Timestamp,
) -> Result<(), DatabaseError> {
    tx.execute(
        "UPDATE vms SET state = 'stopped', reason = ?3, stopped_at = ?4, updated_at = ?4
         WHERE id = ?1 AND run = ?2 AND state IN ('running', 'paused')",
        params![id.to_string(), run.to_string(), reason, now.to_string()],
    )
    .map(drop)
    .map_err(statement("record that a VM has stopped"))
}

/// Says of a VM that is recorded as running or paused, and whose process is gone, that it has stopped.
/// `updated_at` tells whether the record is still the one that was looked at.
///
/// # Errors
/// The database failed.
pub fn report_died<C>(
    tx: &Transaction<'_>,
    seen: &VmRecord<C>,
    reason: &str,
    now: Timestamp,
) -> Result<(), DatabaseError> {
    tx.execute(
        "UPDATE vms SET state = 'stopped', reason = ?3, stopped_at = ?4, updated_at = ?4
         WHERE id = ?1 AND state IN ('running', 'paused') AND updated_at = ?2",
        params![
            seen.id.to_string(),
            seen.updated_at.to_string(),
            reason,
            now.to_string()
        ],
    )
    .map(drop)
    .map_err(statement("record that a VM has died"))
}

/// Deletes a VM's row, its pins and its network record.
///
/// # Errors
/// The database failed.
pub fn delete(tx: &Transaction<'_>, lock: &VmLock) -> Result<(), DatabaseError> {
    tx.execute("DELETE FROM vms WHERE id = ?1", [lock.id().to_string()])
        .map(drop)
        .map_err(statement("delete a VM"))
}

/// Every VM, the oldest first.
///
/// # Errors
/// The database failed or holds what no VM is.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<VmRecord>, DatabaseError> {
    list_as(tx)
}

/// Every VM, the oldest first, with what `C` takes of its configuration.
///
/// # Errors
/// As [`list`].
pub fn list_as<C: DeserializeOwned>(
    tx: &Transaction<'_>,
) -> Result<Vec<VmRecord<C>>, DatabaseError> {
    let query = format!("SELECT {COLUMNS} FROM vms");
    let mut vms = rows::all(tx, "list VMs", (&query, []), from_row)?;
    // SQLite would copy every row to sort them.
    vms.sort_by_cached_key(|vm: &VmRecord<C>| (vm.created_at, vm.id));
    Ok(vms)
}

/// The VM with this id.
///
/// # Errors
/// The database failed or holds what no VM is.
pub fn get(tx: &Transaction<'_>, id: VmId) -> Result<Option<VmRecord>, DatabaseError> {
    get_as(tx, id)
}

/// The VM with this id, with what `C` takes of its configuration.
///
/// # Errors
/// As [`get`].
pub fn get_as<C: DeserializeOwned>(
    tx: &Transaction<'_>,
    id: VmId,
) -> Result<Option<VmRecord<C>>, DatabaseError> {
    let query = format!("SELECT {COLUMNS} FROM vms WHERE id = ?1");
    rows::first(tx, "read a VM", (&query, [id.to_string()]), from_row)
}

/// The VM that a user means: exact id, then exact name, then the beginning of an id.
///
/// # Errors
/// No VM fits, or several do, or the database failed.
pub fn resolve(tx: &Transaction<'_>, reference: &str) -> Result<VmId, RecordError> {
    let all = "SELECT id, name FROM vms";
    match rows::meant(tx, "look up a VM", all, reference)? {
        Meant::One(id) => Ok(parse("VM id", &id)?),
        Meant::None { near } => Err(RecordError::NotFound {
            reference: reference.to_owned(),
            near,
        }),
        Meant::Several(candidates) => Err(RecordError::Ambiguous {
            reference: reference.to_owned(),
            candidates,
        }),
    }
}

/// Every blob that some VM needs.
///
/// # Errors
/// The database failed.
pub fn pinned_blobs(tx: &Transaction<'_>) -> Result<Vec<Digest>, DatabaseError> {
    rows::digests(tx, "list pins", "SELECT DISTINCT digest FROM vm_blobs")
}

/// The VMs that were created from the image `name`, or still need layers of it.
///
/// # Errors
/// The database failed.
pub fn users_of_image(tx: &Transaction<'_>, name: &str) -> Result<Vec<VmName>, DatabaseError> {
    let action = "list users of an image";
    let query = "SELECT name FROM vms WHERE json_extract(config, '$.image') = ?1 ORDER BY name";
    rows::all(tx, action, (query, [name]), |row| {
        parse(
            "VM name",
            &row.get::<_, String>(0).map_err(statement(action))?,
        )
    })
}

fn from_row<C: DeserializeOwned>(row: &Row<'_>) -> Result<VmRecord<C>, DatabaseError> {
    let text = |index| rows::text(row, index, "read a VM");
    let optional = |index| rows::text_or_null(row, index, "read a VM");
    let time = |index| optional(index)?.map(|time| parse("time", time)).transpose();
    Ok(VmRecord {
        id: parse("VM id", text(0)?)?,
        name: parse("VM name", text(1)?)?,
        state: parse("VM state", text(2)?)?,
        reason: optional(3)?.map(str::to_owned),
        created_at: parse("time", text(4)?)?,
        updated_at: parse("time", text(5)?)?,
        started_at: time(6)?,
        stopped_at: time(7)?,
        config: from_json(text(8)?)?,
        first_booted_at: time(9)?,
    })
}

/// A configuration, as records have it.
pub(crate) fn to_json(config: &VmConfig) -> Result<String, DatabaseError> {
    serde_json::to_string(config).map_err(|error| DatabaseError::Value {
        what: "VM configuration",
        value: error.to_string(),
    })
}

/// The reverse of [`to_json`].
pub(crate) fn from_json<C: DeserializeOwned>(text: &str) -> Result<C, DatabaseError> {
    serde_json::from_str(text).map_err(|_| DatabaseError::Value {
        what: "VM configuration",
        value: text.to_owned(),
    })
}

#[cfg(test)]
mod tests;
