//! Records of virtual machines: rows of `vms` and `vm_blobs`.
//!
//! Invariants: a VM is reserved before anything of it is made, so a folder without a row is
//! garbage, and a row in `creating` or `removing` whose lock is free is what a crash left.
//! Only the VM process that a row's `run` names may say that the VM runs or has stopped; a VM in
//! `creating` stays so, whatever its process says, until its maker says that it is complete.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use super::VmState;
use crate::store::db::{DatabaseError, parse, statement};
use crate::store::lock::VmLock;
use crate::units::id::SHORTEST_PREFIX;
use crate::units::{ByteSize, Digest, EngineName, RunId, VmId, VmName};

/// One VM, as recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the times are their own names")]
pub struct VmRecord {
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
    /// What was asked for, and what that meant when it was created.
    pub config: VmConfig,
}

/// What was asked for, and what that meant when the VM was created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// The engine that runs it.
    pub engine: EngineName,
    /// Virtual CPUs.
    pub cpu: u32,
    /// Guest RAM.
    pub memory: ByteSize,
    /// Size of the VM's own disk.
    pub storage: ByteSize,
    /// Network interfaces.
    pub nics: u16,
    /// Whether huge pages back its RAM.
    pub hugepages: Hugepages,
    /// Name servers given to the guest.
    pub dns: Vec<Ipv4Addr>,
    /// Normalised reference of its image.
    pub image: String,
    /// Digest of that image's manifest when the VM was created.
    pub image_digest: Digest,
    /// The image's layers, bottom first.
    pub layers: Vec<Digest>,
    /// The layer that holds its kernel.
    pub kernel_layer: Digest,
    /// The layer that holds its initial RAM disk.
    pub initrd_layer: Digest,
}

/// Whether huge pages back a VM's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Hugepages {
    /// When enough of them are free at start.
    Auto,
    /// Always; the start fails where there are not enough.
    On,
    /// Never.
    Off,
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
    #[error("no VM is called {0:?}, and no id begins with it")]
    NotFound(String),
    /// Several ids begin with the text.
    #[error("{reference:?} fits several VMs: {}", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        reference: String,
        /// The VMs that it fits, as `id (name)`.
        candidates: Vec<String>,
    },
}

const COLUMNS: &str =
    "id, name, state, reason, created_at, updated_at, started_at, stopped_at, config";

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
    for digest in &config.layers {
        tx.execute(
            "INSERT OR IGNORE INTO vm_blobs VALUES (?1, ?2)",
            params![id, digest.to_string()],
        )
        .map_err(statement("pin the layers of a VM"))?;
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
pub fn report_died(
    tx: &Transaction<'_>,
    seen: &VmRecord,
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
    let query = format!("SELECT {COLUMNS} FROM vms ORDER BY created_at, id");
    let mut statement_ = tx.prepare(&query).map_err(statement("list VMs"))?;
    let rows = statement_
        .query_map([], |row| Ok(from_row(row)))
        .map_err(statement("list VMs"))?;
    rows.map(|row| row.map_err(statement("list VMs"))?)
        .collect()
}

/// The VM with this id.
///
/// # Errors
/// The database failed or holds what no VM is.
pub fn get(tx: &Transaction<'_>, id: VmId) -> Result<Option<VmRecord>, DatabaseError> {
    let query = format!("SELECT {COLUMNS} FROM vms WHERE id = ?1");
    tx.query_row(&query, [id.to_string()], |row| Ok(from_row(row)))
        .optional()
        .map_err(statement("read a VM"))?
        .transpose()
}

/// The VM that a user means: exact id, then exact name, then the beginning of an id.
///
/// # Errors
/// No VM fits, or several do, or the database failed.
pub fn resolve(tx: &Transaction<'_>, reference: &str) -> Result<VmId, RecordError> {
    let query = "SELECT id, name FROM vms WHERE id = ?1 OR name = ?1 OR (?2 AND substr(id, 1, length(?1)) = ?1)";
    let prefix_allowed = reference.len() >= SHORTEST_PREFIX;
    let mut statement_ = tx.prepare(query).map_err(statement("look up a VM"))?;
    let rows = statement_
        .query_map(params![reference, prefix_allowed], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })
        .map_err(statement("look up a VM"))?;
    let found = rows
        .collect::<Result<Vec<_>, _>>()
        .map_err(statement("look up a VM"))?;
    let exact = found
        .iter()
        .find(|(id, _)| id == reference)
        .or_else(|| found.iter().find(|(_, name)| name == reference));
    match (exact, found.as_slice()) {
        (Some((id, _)), _) | (None, [(id, _)]) => Ok(parse("VM id", id)?),
        (None, []) => Err(RecordError::NotFound(reference.to_owned())),
        (None, many) => Err(RecordError::Ambiguous {
            reference: reference.to_owned(),
            candidates: many
                .iter()
                .map(|(id, name)| format!("{id} ({name})"))
                .collect(),
        }),
    }
}

/// Every layer that some VM needs.
///
/// # Errors
/// The database failed.
pub fn pinned_blobs(tx: &Transaction<'_>) -> Result<Vec<Digest>, DatabaseError> {
    let mut statement_ = tx
        .prepare("SELECT DISTINCT digest FROM vm_blobs")
        .map_err(statement("list pins"))?;
    let rows = statement_
        .query_map([], |row| row.get::<_, String>(0))
        .map_err(statement("list pins"))?;
    rows.map(|row| parse("digest", &row.map_err(statement("list pins"))?))
        .collect()
}

/// The VMs that were created from the image `name`, or still need layers of it.
///
/// # Errors
/// The database failed.
pub fn users_of_image(tx: &Transaction<'_>, name: &str) -> Result<Vec<VmName>, DatabaseError> {
    let query = "SELECT name FROM vms WHERE json_extract(config, '$.image') = ?1 ORDER BY name";
    let mut statement_ = tx
        .prepare(query)
        .map_err(statement("list users of an image"))?;
    let rows = statement_
        .query_map([name], |row| row.get::<_, String>(0))
        .map_err(statement("list users of an image"))?;
    rows.map(|row| {
        parse(
            "VM name",
            &row.map_err(statement("list users of an image"))?,
        )
    })
    .collect()
}

fn from_row(row: &Row<'_>) -> Result<VmRecord, DatabaseError> {
    let text = |index| row.get::<_, String>(index).map_err(statement("read a VM"));
    let optional = |index| {
        row.get::<_, Option<String>>(index)
            .map_err(statement("read a VM"))
    };
    let time = |index| {
        optional(index)?
            .map(|time| parse("time", &time))
            .transpose()
    };
    Ok(VmRecord {
        id: parse("VM id", &text(0)?)?,
        name: parse("VM name", &text(1)?)?,
        state: parse("VM state", &text(2)?)?,
        reason: optional(3)?,
        created_at: parse("time", &text(4)?)?,
        updated_at: parse("time", &text(5)?)?,
        started_at: time(6)?,
        stopped_at: time(7)?,
        config: from_json(text(8)?)?,
    })
}

fn to_json(config: &VmConfig) -> Result<String, DatabaseError> {
    serde_json::to_string(config).map_err(|error| DatabaseError::Value {
        what: "VM configuration",
        value: error.to_string(),
    })
}

fn from_json(text: String) -> Result<VmConfig, DatabaseError> {
    serde_json::from_str(&text).map_err(|_| DatabaseError::Value {
        what: "VM configuration",
        value: text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Database, Durability, Layout};

    struct Fixture {
        _dir: tempfile::TempDir,
        layout: Layout,
        db: Database,
    }

    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let [run, log] = ["run", "log"].map(|name| dir.path().join(name));
        let layout = Layout::new(dir.path(), &run, &log);
        layout.prepare().unwrap();
        let db = Database::open(layout.root()).unwrap();
        Fixture {
            _dir: dir,
            layout,
            db,
        }
    }

    fn config() -> VmConfig {
        let layer = Digest::of(b"layer");
        VmConfig {
            engine: EngineName::CloudHypervisor,
            cpu: 2,
            memory: ByteSize::from_gib(1),
            storage: ByteSize::from_gib(10),
            nics: 1,
            hugepages: Hugepages::Auto,
            dns: vec![Ipv4Addr::LOCALHOST],
            image: "docker.io/library/tiny:latest".into(),
            image_digest: Digest::of(b"image"),
            layers: vec![layer],
            kernel_layer: layer,
            initrd_layer: layer,
        }
    }

    impl Fixture {
        fn reserve(&mut self, id: &str, name: &str) -> Result<VmLock, RecordError> {
            let lock = VmLock::wait(&self.layout, id.parse().unwrap()).unwrap();
            let name = name.parse().unwrap();
            self.db.write(Durability::Full, |tx| {
                reserve(tx, &lock, &name, &config(), Timestamp::now())
            })?;
            Ok(lock)
        }

        fn resolve(&mut self, reference: &str) -> Result<String, RecordError> {
            self.db
                .read(|tx| resolve(tx, reference))
                .map(|id| id.to_string())
        }

        fn get(&mut self, id: &str) -> VmRecord {
            self.db
                .read(|tx| get(tx, id.parse().unwrap()))
                .unwrap()
                .unwrap()
        }
    }

    #[test]
    fn a_reserved_vm_reads_back_as_written() {
        let mut fixture = fixture();
        fixture.reserve("00000000000000aa", "web").unwrap();
        let record = fixture.get("00000000000000aa");
        assert_eq!(
            (record.state, record.name.as_str()),
            (VmState::Creating, "web")
        );
        assert_eq!(record.config, config());
    }

    #[test]
    fn a_vm_has_the_configuration_that_was_recorded_last() {
        let mut fixture = fixture();
        let lock = fixture.reserve("00000000000000aa", "web").unwrap();
        fixture.reserve("00000000000000bb", "db").unwrap();
        let larger = VmConfig { cpu: 4, ..config() };
        fixture
            .db
            .write(Durability::Full, |tx| {
                set_config(tx, &lock, &larger, Timestamp::now())
            })
            .unwrap();
        assert_eq!(fixture.get("00000000000000aa").config, larger);
        assert_eq!(fixture.get("00000000000000bb").config, config());
    }

    #[test]
    fn a_taken_name_is_refused_and_its_holder_keeps_it() {
        let mut fixture = fixture();
        fixture.reserve("00000000000000aa", "web").unwrap();
        assert!(matches!(
            fixture.reserve("00000000000000bb", "web"),
            Err(RecordError::NameTaken { .. })
        ));
        assert_eq!(fixture.resolve("web").unwrap(), "00000000000000aa");
    }

    #[test]
    fn references_resolve_by_id_then_name_then_prefix() {
        let mut fixture = fixture();
        for (id, name) in [
            ("aaa0000000000000", "web"),
            ("aaa1000000000000", "aaa0"),
            ("bbb0000000000000", "db"),
        ] {
            fixture.reserve(id, name).unwrap();
        }
        assert_eq!(
            fixture.resolve("aaa0000000000000").unwrap(),
            "aaa0000000000000"
        );
        assert_eq!(
            fixture.resolve("aaa0").unwrap(),
            "aaa1000000000000",
            "a name goes before a prefix"
        );
        assert_eq!(fixture.resolve("bbb").unwrap(), "bbb0000000000000");
        assert!(
            matches!(fixture.resolve("bb"), Err(RecordError::NotFound(_))),
            "two characters are no prefix"
        );
        assert!(matches!(
            fixture.resolve("%"),
            Err(RecordError::NotFound(_))
        ));
        let ambiguous = fixture.resolve("aaa").unwrap_err().to_string();
        assert!(
            ambiguous.contains("aaa0000000000000 (web)") && ambiguous.contains("aaa1000000000000"),
            "{ambiguous}"
        );
    }

    #[test]
    fn only_the_process_of_the_current_run_may_report() {
        let mut fixture = fixture();
        let lock = fixture.reserve("00000000000000aa", "web").unwrap();
        let now = Timestamp::now();
        let [old, new] = [RunId::random().unwrap(), RunId::random().unwrap()];
        fixture
            .db
            .write(Durability::Full, |tx| {
                set_state(tx, &lock, VmState::Created, now)?;
                begin_run(tx, &lock, new)
            })
            .unwrap();
        fixture
            .db
            .write(Durability::Full, |tx| {
                report_running(tx, lock.id(), old, now)
            })
            .unwrap();
        assert_eq!(fixture.get("00000000000000aa").state, VmState::Created);
        fixture
            .db
            .write(Durability::Full, |tx| {
                report_running(tx, lock.id(), new, now)
            })
            .unwrap();
        assert_eq!(fixture.get("00000000000000aa").state, VmState::Running);
        for (run, paused, state) in [
            (old, true, VmState::Running),
            (new, true, VmState::Paused),
            (old, false, VmState::Paused),
            (new, false, VmState::Running),
        ] {
            fixture
                .db
                .write(Durability::Full, |tx| {
                    report_paused(tx, lock.id(), run, paused, now)
                })
                .unwrap();
            assert_eq!(fixture.get("00000000000000aa").state, state);
        }
        fixture
            .db
            .write(Durability::Full, |tx| {
                report_stopped(tx, lock.id(), old, "x", now)
            })
            .unwrap();
        assert_eq!(fixture.get("00000000000000aa").state, VmState::Running);
    }

    #[test]
    fn a_vm_that_is_being_created_stays_so_until_its_maker_says_that_it_is_complete() {
        let mut fixture = fixture();
        let lock = fixture.reserve("00000000000000aa", "web").unwrap();
        let (now, run) = (Timestamp::now(), RunId::random().unwrap());
        for report in 0..4 {
            fixture
                .db
                .write(Durability::Full, |tx| match report {
                    0 => begin_run(tx, &lock, run),
                    1 => report_running(tx, lock.id(), run, now),
                    2 => start_failed(tx, &lock, "no", now),
                    _ => report_stopped(tx, lock.id(), run, "off", now),
                })
                .unwrap();
            assert_eq!(fixture.get("00000000000000aa").state, VmState::Creating);
        }
        for _ in 0..2 {
            fixture
                .db
                .write(Durability::Full, |tx| complete(tx, &lock, now))
                .unwrap();
            assert_eq!(fixture.get("00000000000000aa").state, VmState::Running);
        }
        fixture
            .db
            .write(Durability::Full, |tx| start_failed(tx, &lock, "no", now))
            .unwrap();
        assert_eq!(fixture.get("00000000000000aa").state, VmState::Error);
    }

    #[test]
    fn deleting_a_vm_frees_its_name_and_its_pins() {
        let mut fixture = fixture();
        let lock = fixture.reserve("00000000000000aa", "web").unwrap();
        assert_eq!(
            fixture.db.read(pinned_blobs).unwrap(),
            [Digest::of(b"layer")]
        );
        fixture
            .db
            .write(Durability::Full, |tx| delete(tx, &lock))
            .unwrap();
        assert!(fixture.db.read(pinned_blobs).unwrap().is_empty());
        fixture.reserve("00000000000000bb", "web").unwrap();
    }
}
