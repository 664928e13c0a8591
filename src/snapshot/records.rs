//! Records of snapshots: rows of `snapshots` and `snapshot_blobs`.
//!
//! ```text
//!   saving ──▶ ready ──▶ removing ──▶ (no row)
//!      └─────────────────────▲
//! ```
//! Invariants: a snapshot is reserved, with its name and its pins, before anything of it is made; so a
//! row in `saving` or `removing` whose lock is free is what a crash left. Only a `ready` one may be
//! used; one in `saving` is known to nobody but its maker, and by its name.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::Serialize;

use crate::store::db::{DatabaseError, parse, statement};
use crate::store::lock::{SnapshotLock, SnapshotUse};
use crate::store::rows::{self, Meant};
use crate::units::{ByteSize, Digest, SnapshotId, SnapshotName, VmId, VmName};
use crate::vm::VmConfig;
use crate::vm::records::{from_json, to_json};

/// One snapshot, as recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Identifies it for its whole life.
    pub id: SnapshotId,
    /// Unique among snapshots, where it has one.
    pub name: Option<SnapshotName>,
    /// What its maker wanted to say of it.
    pub description: String,
    /// The VM that was saved; it may be gone by now.
    pub vm: VmId,
    /// That VM's name then.
    pub vm_name: VmName,
    /// As recorded.
    pub state: SnapshotState,
    /// Bytes on disk when it was made; nothing while it is.
    pub size: ByteSize,
    /// When the VM was saved.
    pub created_at: Timestamp,
    /// The VM's configuration, engine included, as it was.
    pub config: VmConfig,
}

impl SnapshotRecord {
    /// What people call it: its name, or its id.
    pub fn label(&self) -> String {
        label(self.name.as_ref(), self.id)
    }
}

fn label(name: Option<&SnapshotName>, id: SnapshotId) -> String {
    name.map_or_else(|| id.to_string(), ToString::to_string)
}

/// The state of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotState {
    /// Reserved; it is being made.
    Saving,
    /// Whole.
    Ready,
    /// It is being removed; only removal can go on from here.
    Removing,
}

impl SnapshotState {
    /// The state's name, as records have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Saving => "saving",
            Self::Ready => "ready",
            Self::Removing => "removing",
        }
    }
}

impl fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that names no state.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no state of a snapshot")]
pub struct UnknownState(String);

impl FromStr for SnapshotState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        [Self::Saving, Self::Ready, Self::Removing]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownState(text.to_owned()))
    }
}

/// Why a snapshot cannot be reserved or found.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotRecordError {
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// Another snapshot has the name.
    #[error("the name {name} is taken by snapshot {holder}")]
    NameTaken {
        /// The name.
        name: SnapshotName,
        /// Who has it.
        holder: SnapshotId,
    },
    /// There is no such snapshot.
    #[error("no snapshot is called {reference:?}, and no id begins with it")]
    NotFound {
        /// What was asked for.
        reference: String,
        /// The name that is most like it.
        near: Option<String>,
    },
    /// Several ids begin with the text.
    #[error("{reference:?} fits several snapshots: {}", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        reference: String,
        /// The snapshots that it fits, as `id (name)`.
        candidates: Vec<String>,
    },
}

impl SnapshotRecordError {
    /// What was found before is there no more.
    pub fn gone(reference: impl std::fmt::Display) -> Self {
        Self::NotFound {
            reference: reference.to_string(),
            near: None,
        }
    }
}

const COLUMNS: &str = "id, name, description, vm, vm_name, state, size, created_at, config";

/// What is known of a snapshot before it is made.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is that of SnapshotRecord")]
pub struct Reservation<'a> {
    pub name: Option<&'a SnapshotName>,
    pub description: &'a str,
    pub vm: VmId,
    pub vm_name: &'a VmName,
    pub config: &'a VmConfig,
    pub created_at: Timestamp,
}

/// Reserves a snapshot: its row in state `saving`, its name, and its pins on blobs.
///
/// # Errors
/// The name is taken, or the database failed; nothing is reserved then.
pub fn reserve(
    tx: &Transaction<'_>,
    maker: &SnapshotUse,
    new: &Reservation<'_>,
) -> Result<(), SnapshotRecordError> {
    if let Some(name) = new.name
        && let Some(holder) = holder_of(tx, name)?
    {
        return Err(SnapshotRecordError::NameTaken {
            name: name.clone(),
            holder,
        });
    }
    let id = maker.id().to_string();
    tx.execute(
        &format!(
            "INSERT INTO snapshots ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, 'saving', 0, ?6, ?7)"
        ),
        params![
            id,
            new.name.map(VmName::as_str),
            new.description,
            new.vm.to_string(),
            new.vm_name.as_str(),
            new.created_at.to_string(),
            to_json(new.config)?,
        ],
    )
    .map_err(statement("reserve a snapshot"))?;
    for digest in new.config.blobs() {
        tx.execute(
            "INSERT OR IGNORE INTO snapshot_blobs VALUES (?1, ?2)",
            params![id, digest.to_string()],
        )
        .map_err(statement("pin the blobs of a snapshot"))?;
    }
    Ok(())
}

/// The snapshot that has this name, in whatever state.
///
/// # Errors
/// The database failed.
pub fn holder_of(
    tx: &Transaction<'_>,
    name: &SnapshotName,
) -> Result<Option<SnapshotId>, DatabaseError> {
    let id: Option<String> = tx
        .query_row(
            "SELECT id FROM snapshots WHERE name = ?1",
            [name.as_str()],
            |row| row.get(0),
        )
        .optional()
        .map_err(statement("look up a snapshot's name"))?;
    id.map(|id| parse("snapshot id", &id)).transpose()
}

/// Records that a snapshot is whole, under its final name.
///
/// # Errors
/// The database failed.
pub fn commit(
    tx: &Transaction<'_>,
    maker: &SnapshotUse,
    size: ByteSize,
) -> Result<(), DatabaseError> {
    // SQLite counts in i64, and no host has 8 EiB of disk.
    let size = i64::try_from(size.bytes()).unwrap_or(i64::MAX);
    tx.execute(
        "UPDATE snapshots SET state = 'ready', size = ?2 WHERE id = ?1",
        params![maker.id().to_string(), size],
    )
    .map(drop)
    .map_err(statement("record that a snapshot is whole"))
}

/// Records that removal has begun: nobody may use the snapshot any more.
///
/// # Errors
/// The database failed.
pub fn doom(tx: &Transaction<'_>, lock: &SnapshotLock) -> Result<(), DatabaseError> {
    tx.execute(
        "UPDATE snapshots SET state = 'removing' WHERE id = ?1",
        [lock.id().to_string()],
    )
    .map(drop)
    .map_err(statement("record a snapshot's removal"))
}

/// Deletes a snapshot's row, and with it its name and its pins.
///
/// # Errors
/// The database failed.
pub fn delete(tx: &Transaction<'_>, lock: &SnapshotLock) -> Result<(), DatabaseError> {
    tx.execute(
        "DELETE FROM snapshots WHERE id = ?1",
        [lock.id().to_string()],
    )
    .map(drop)
    .map_err(statement("delete a snapshot"))
}

/// Every snapshot in whatever state, the oldest first.
///
/// # Errors
/// The database failed or holds what no snapshot is.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<SnapshotRecord>, DatabaseError> {
    let query = format!("SELECT {COLUMNS} FROM snapshots ORDER BY created_at, id");
    rows::all(tx, "list snapshots", (&query, []), from_row)
}

/// The snapshot with this id, in whatever state.
///
/// # Errors
/// The database failed or holds what no snapshot is.
pub fn get(tx: &Transaction<'_>, id: SnapshotId) -> Result<Option<SnapshotRecord>, DatabaseError> {
    let query = format!("SELECT {COLUMNS} FROM snapshots WHERE id = ?1");
    rows::first(tx, "read a snapshot", (&query, [id.to_string()]), from_row)
}

/// The snapshot that a user means: exact id, then exact name, then the beginning of an id. One that is
/// still being made is not found.
///
/// # Errors
/// No snapshot fits, or several do, or the database failed.
pub fn resolve(tx: &Transaction<'_>, reference: &str) -> Result<SnapshotId, SnapshotRecordError> {
    let made = "SELECT id, name FROM snapshots WHERE state <> 'saving'";
    match rows::meant(tx, "look up a snapshot", made, reference)? {
        Meant::One(id) => Ok(parse("snapshot id", &id)?),
        Meant::None { near } => Err(SnapshotRecordError::NotFound {
            reference: reference.to_owned(),
            near,
        }),
        Meant::Several(candidates) => Err(SnapshotRecordError::Ambiguous {
            reference: reference.to_owned(),
            candidates,
        }),
    }
}

/// Every layer that some snapshot needs.
///
/// # Errors
/// The database failed.
pub fn pinned_blobs(tx: &Transaction<'_>) -> Result<Vec<Digest>, DatabaseError> {
    rows::digests(
        tx,
        "list pins of snapshots",
        "SELECT DISTINCT digest FROM snapshot_blobs",
    )
}

/// The snapshots of VMs that were created from the image `name`, as people call them.
///
/// # Errors
/// The database failed.
pub fn users_of_image(tx: &Transaction<'_>, name: &str) -> Result<Vec<String>, DatabaseError> {
    let action = "list the snapshots that use an image";
    let query = "SELECT coalesce(name, id) AS label FROM snapshots
         WHERE json_extract(config, '$.image') = ?1 ORDER BY label";
    rows::all(tx, action, (query, [name]), |row| {
        row.get(0).map_err(statement(action))
    })
}

fn from_row(row: &Row<'_>) -> Result<SnapshotRecord, DatabaseError> {
    let action = "read a snapshot";
    let text = |index| rows::text(row, index, action);
    let name = rows::text_or_null(row, 1, action)?;
    let size: i64 = row.get(6).map_err(statement(action))?;
    Ok(SnapshotRecord {
        id: parse("snapshot id", text(0)?)?,
        name: name.map(|name| parse("snapshot name", name)).transpose()?,
        description: text(2)?.to_owned(),
        vm: parse("VM id", text(3)?)?,
        vm_name: parse("VM name", text(4)?)?,
        state: parse("snapshot state", text(5)?)?,
        size: ByteSize::from_bytes(size.unsigned_abs()),
        created_at: parse("time", text(7)?)?,
        config: from_json(text(8)?)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::manifest::tests::config;
    use crate::store::{Database, Durability, Layout};

    struct Fixture {
        _dir: tempfile::TempDir,
        layout: Layout,
        db: Database,
    }

    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path(), &dir.path().join("run"), &dir.path().join("log"));
        layout.prepare().unwrap();
        let db = Database::open(layout.root()).unwrap();
        Fixture {
            _dir: dir,
            layout,
            db,
        }
    }

    impl Fixture {
        fn reserve(
            &mut self,
            id: &str,
            name: Option<&str>,
        ) -> Result<SnapshotUse, SnapshotRecordError> {
            let maker = SnapshotUse::share(&self.layout, id.parse().unwrap()).unwrap();
            let name: Option<SnapshotName> = name.map(|name| name.parse().unwrap());
            let new = Reservation {
                name: name.as_ref(),
                description: "before the upgrade",
                vm: "00000000000000ff".parse().unwrap(),
                vm_name: &"web".parse().unwrap(),
                config: &config(),
                created_at: Timestamp::UNIX_EPOCH,
            };
            self.db
                .write(Durability::Full, |tx| reserve(tx, &maker, &new))?;
            Ok(maker)
        }

        fn save(&mut self, id: &str, name: Option<&str>) {
            let maker = self.reserve(id, name).unwrap();
            let size = ByteSize::from_mib(3);
            self.db
                .write(Durability::Full, |tx| commit(tx, &maker, size))
                .unwrap();
        }

        fn resolve(&mut self, reference: &str) -> Result<String, SnapshotRecordError> {
            self.db
                .read(|tx| resolve(tx, reference))
                .map(|id| id.to_string())
        }
    }

    #[test]
    fn a_snapshot_reads_back_as_it_was_reserved_and_committed() {
        let mut fixture = fixture();
        fixture.save("00000000000000aa", Some("nightly"));
        fixture.save("00000000000000bb", None);
        let records = fixture.db.read(list).unwrap();
        let seen: Vec<_> = records.iter().map(|one| (one.label(), one.state)).collect();
        let ready = SnapshotState::Ready;
        assert_eq!(
            seen,
            [
                ("nightly".to_owned(), ready),
                ("00000000000000bb".to_owned(), ready)
            ]
        );
        let one = fixture.db.read(|tx| get(tx, records[0].id)).unwrap();
        assert_eq!(one.as_ref(), Some(&records[0]));
        assert_eq!(records[0].config, config());
        assert_eq!(records[0].size, ByteSize::from_mib(3));
        assert_eq!(records[0].description, "before the upgrade");
    }

    #[test]
    fn a_name_is_taken_from_the_moment_a_save_begins() {
        let mut fixture = fixture();
        fixture
            .reserve("00000000000000aa", Some("nightly"))
            .unwrap();
        assert!(matches!(
            fixture.reserve("00000000000000bb", Some("nightly")),
            Err(SnapshotRecordError::NameTaken { .. })
        ));
        for unnamed in ["00000000000000cc", "00000000000000dd"] {
            fixture.reserve(unnamed, None).unwrap();
        }
    }

    #[test]
    fn references_resolve_by_id_then_name_then_prefix_once_the_snapshot_is_whole() {
        let mut fixture = fixture();
        fixture.save("aaa0000000000000", Some("nightly"));
        fixture.save("aaa1000000000000", Some("aaa0"));
        fixture.save("aab0000000000000", None);
        fixture.reserve("ccc0000000000000", Some("half")).unwrap();
        for (reference, id) in [
            ("aaa0000000000000", "aaa0000000000000"),
            ("nightly", "aaa0000000000000"),
            ("aaa0", "aaa1000000000000"),
            ("aab", "aab0000000000000"),
        ] {
            assert_eq!(fixture.resolve(reference).unwrap(), id, "{reference}");
        }
        for absent in ["ccc0000000000000", "ccc", "half", "aa", "%"] {
            let found = fixture.resolve(absent);
            assert!(
                matches!(found, Err(SnapshotRecordError::NotFound { .. })),
                "{absent}"
            );
        }
        let ambiguous = fixture.resolve("aaa").unwrap_err().to_string();
        assert!(
            ambiguous.contains("aaa0000000000000 (nightly)")
                && ambiguous.contains("aaa1000000000000"),
            "{ambiguous}"
        );
    }

    #[test]
    fn a_snapshot_pins_its_layers_until_its_row_is_deleted() {
        let mut fixture = fixture();
        fixture.save("00000000000000aa", Some("nightly"));
        let pinned = fixture.db.read(pinned_blobs).unwrap();
        assert_eq!(pinned, [Digest::of(b"layer")]);
        let users = |tx: &Transaction<'_>| users_of_image(tx, &config().image);
        assert_eq!(fixture.db.read(users).unwrap(), ["nightly"]);
        let id = "00000000000000aa".parse().unwrap();
        let lock = SnapshotLock::wait(&fixture.layout, id).unwrap();
        let write = |db: &mut Database, act: fn(&Transaction<'_>, &SnapshotLock) -> _| {
            db.write::<(), DatabaseError>(Durability::Full, |tx| act(tx, &lock))
        };
        write(&mut fixture.db, doom).unwrap();
        let doomed = fixture.db.read(|tx| get(tx, id)).unwrap().unwrap();
        assert_eq!(doomed.state, SnapshotState::Removing);
        assert_eq!(fixture.db.read(pinned_blobs).unwrap().len(), 1);
        write(&mut fixture.db, delete).unwrap();
        assert!(fixture.db.read(pinned_blobs).unwrap().is_empty());
        fixture.save("00000000000000bb", Some("nightly"));
    }

    #[test]
    fn states_round_trip_through_their_names() {
        for name in ["saving", "ready", "removing"] {
            assert_eq!(name.parse::<SnapshotState>().unwrap().to_string(), name);
        }
        assert!("saved".parse::<SnapshotState>().is_err());
    }
}
