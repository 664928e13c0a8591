//! The database: one SQLite file in WAL mode, shared by every command and VM process.
//!
//! Invariants: a transaction holds no lock across I/O other than SQLite's own; writers queue on
//! `database.lock` (SQLite's busy handler sleeps, and a burst of clones would wait for nothing);
//! a database newer than this program is refused, never migrated down, and an older one is brought
//! up to date by whoever opens it first. The records are `cocoon.db` together with its log, which
//! outlives the command that wrote it: each command is a connection, and to write the log back and
//! make it anew in each of them would be three more waits for the disk in every transaction.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};
use rustix::fs::{FallocateFlags, fallocate};

use super::atomic;
use crate::sys::failpoint;
use crate::sys::flock::FileLock;

/// What made each version of the schema from the one before, the first from nothing. Never changed,
/// only added to.
const STEPS: [&str; 3] = [
    include_str!("schema.sql"),
    include_str!("schema_2.sql"),
    include_str!("schema_3.sql"),
];

/// The newest schema that this program knows.
const SCHEMA_VERSION: i64 = STEPS.len() as i64;

/// "coco" in ASCII: tells a database of cocoon's from any other SQLite file.
const APPLICATION_ID: i64 = 0x636f_636f;

/// How long the log may get before a writer writes it back. Whoever opens the database when nobody
/// else has it open reads all of it.
const LOG_BYTES: u64 = 512 << 10;

/// What the log takes from the disk at once, so that something can be written down when the disk is full: at
/// least that what was begun there is gone, which takes some 20 KiB.
const LOG_ROOM: u64 = 64 << 10;

/// For what is left to wait for beside the queue of writers: a checkpoint, or a crash recovery.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// What a power failure may take back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Nothing: an image, a VM that was created.
    Full,
    /// What a reboot voids anyway: that a VM runs, where its sockets are. And what is only being made, as long as all
    /// of it is in folders where `gc` looks for what has no record: the next full write takes this along.
    UntilReboot,
}

/// An open database. Cheap to open; not shared between threads.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    log: PathBuf,
    queue: PathBuf,
}

/// What goes wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// It cannot be opened.
    #[error("cannot open the database {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// SQLite's reason.
        #[source]
        source: rusqlite::Error,
    },
    /// It cannot be made.
    #[error("cannot make the database {}", path.display())]
    Make {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// An older one cannot be brought up to date.
    #[error("cannot bring the database {} up to date", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// SQLite's reason.
        #[source]
        source: rusqlite::Error,
    },
    /// A newer cocoon has written it.
    #[error("the database {} has version {found}, but this cocoon knows versions up to {SCHEMA_VERSION}", path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// It is some other program's.
    #[error("{} is not a database of cocoon's", .0.display())]
    Foreign(PathBuf),
    /// The queue of writers cannot be joined.
    #[error("cannot wait for other writers at {}", path.display())]
    Queue {
        /// The lock file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A statement failed.
    #[error("cannot {action} in the database")]
    Statement {
        /// What was being done.
        action: &'static str,
        /// SQLite's reason.
        #[source]
        source: rusqlite::Error,
    },
    /// A value in the database is not what this program writes.
    #[error("the database holds an unreadable {what}: {value:?}")]
    Value {
        /// Which kind of value.
        what: &'static str,
        /// What stands there.
        value: String,
    },
}

impl Database {
    /// Opens the database of a root folder, and makes it first where there is none.
    ///
    /// # Errors
    /// It cannot be opened, is newer than this program, or is not cocoon's.
    pub fn open(root: &Path) -> Result<Self, DatabaseError> {
        let path = root.join("cocoon.db");
        let log = root.join("cocoon.db-wal");
        let queue = Self::queue(root);
        if !path.exists() {
            create(&path, &queue)?;
        }
        let mut connection = connect(&path)
            .and_then(keep_log)
            .map_err(cannot_open(&path))?;
        if check(&connection, &path)? < SCHEMA_VERSION {
            migrate(&mut connection, &path, &queue)?;
        }
        Ok(Self {
            connection,
            log,
            queue,
        })
    }

    /// What each writer of the database of a root folder closes when its transaction is over and can be seen. It
    /// is there when the database is.
    pub fn queue(root: &Path) -> PathBuf {
        root.join("locks").join("database.lock")
    }

    /// Runs `body` in a transaction that sees one state of the database and changes nothing.
    ///
    /// # Errors
    /// Those of `body`, or the transaction could not begin.
    pub fn read<T, E: From<DatabaseError>>(
        &mut self,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let transaction = self
            .connection
            .transaction()
            .map_err(statement("begin to read"))?;
        body(&transaction)
    }

    /// Runs `body` in a transaction of its own; an error undoes all of it.
    ///
    /// # Errors
    /// Those of `body`, or the transaction could not begin or commit.
    pub fn write<T, E: From<DatabaseError>>(
        &mut self,
        durability: Durability,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let _turn = join(&self.queue)?;
        let synchronous = match durability {
            Durability::Full => "FULL",
            Durability::UntilReboot => "NORMAL",
        };
        self.connection
            .pragma_update(None, "synchronous", synchronous)
            .map_err(statement("set durability"))?;
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(statement("begin to write"))?;
        let result = body(&transaction)?;
        let committed = transaction.commit();
        let is_full =
            |error: &rusqlite::Error| error.sqlite_error_code() == Some(ErrorCode::DiskFull);
        // Whoever takes back what was begun needs room in the log, too.
        if committed.as_ref().is_err_and(is_full) || self.log_bytes() >= LOG_BYTES {
            self.shorten_log();
        }
        if self.log_bytes() < LOG_ROOM {
            self.make_room_in_log();
        }
        committed.map_err(statement("commit"))?;
        Ok(result)
    }

    fn log_bytes(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |log| log.len())
    }

    /// Takes [`LOG_ROOM`] from the disk, where it has as much. To SQLite a log that is zeros is an empty one.
    fn make_room_in_log(&self) {
        let log = OpenOptions::new().write(true).open(&self.log);
        // Without it all is well until the disk is full.
        let _ = log.map(|log| fallocate(log, FallocateFlags::empty(), 0, LOG_ROOM));
    }

    /// Writes the log back and begins it anew, in a writer's turn. SQLite's own checkpoint leaves that to
    /// the connection's next transaction, and a command's connection has seldom a next one.
    fn shorten_log(&self) {
        // A reader that still needs the log is not waited for, and no failure is the writer's: what it
        // wrote is in the log, and the next writer tries again.
        let _ = self.connection.busy_timeout(Duration::ZERO).and_then(|()| {
            self.connection
                .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        });
        let _ = self.connection.busy_timeout(BUSY_TIMEOUT);
    }
}

/// Makes the database under another name, and gives it its own when it is complete: switching an
/// open database to WAL fails for whoever else has it open.
fn create(path: &Path, queue: &Path) -> Result<(), DatabaseError> {
    let open = cannot_open(path);
    let made = |source| DatabaseError::Make {
        path: path.to_owned(),
        source,
    };
    let _turn = join(queue)?;
    if path.exists() {
        return Ok(()); // Another command made it while this one waited.
    }
    let folder = path.with_file_name("staging");
    std::fs::create_dir_all(&folder).map_err(made)?;
    let folder = tempfile::tempdir_in(folder).map_err(made)?;
    let staged = folder.path().join("cocoon.db");
    let mut connection = connect(&staged).map_err(&open)?;
    connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))
        .map_err(&open)?;
    let transaction = connection.transaction().map_err(&open)?;
    advance(&transaction, 0)
        .and_then(|()| transaction.pragma_update(None, "application_id", APPLICATION_ID))
        .map_err(&open)?;
    transaction.commit().map_err(&open)?;
    // The last connection that closes writes the log back, so the file alone is the database.
    connection.close().map_err(|(_, source)| open(source))?;
    failpoint::reach("database: made under another name");
    // The log of a database that somebody has removed would be read into this one.
    for of_another in ["cocoon.db-wal", "cocoon.db-shm"] {
        match std::fs::remove_file(path.with_file_name(of_another)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(made(error)),
            _ => {}
        }
    }
    atomic::publish(&staged, path).map_err(made)?;
    failpoint::reach("database: in place");
    Ok(())
}

/// Brings an older database up to date, unless another command has done so meanwhile.
fn migrate(connection: &mut Connection, path: &Path, queue: &Path) -> Result<(), DatabaseError> {
    let failed = |source| DatabaseError::Migrate {
        path: path.to_owned(),
        source,
    };
    let _turn = join(queue)?;
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failed)?;
    let found = check(&transaction, path)?;
    advance(&transaction, found).map_err(failed)?;
    transaction.commit().map_err(failed)
}

/// Takes the steps that a schema of version `found` lacks.
fn advance(transaction: &Transaction<'_>, found: i64) -> rusqlite::Result<()> {
    for (version, step) in (1..).zip(STEPS) {
        if version > found {
            transaction.execute_batch(step)?;
            transaction.pragma_update(None, "user_version", version)?;
        }
    }
    Ok(())
}

/// Waits for a writer's turn.
fn join(queue: &Path) -> Result<FileLock, DatabaseError> {
    FileLock::exclusive(queue).map_err(|source| DatabaseError::Queue {
        path: queue.to_owned(),
        source,
    })
}

/// The version of a database; refuses one that is newer than this program, or not cocoon's.
fn check(connection: &Connection, path: &Path) -> Result<i64, DatabaseError> {
    let pragma = |name| {
        connection
            .pragma_query_value(None, name, |row| row.get::<_, i64>(0))
            .map_err(cannot_open(path))
    };
    if pragma("application_id")? != APPLICATION_ID {
        return Err(DatabaseError::Foreign(path.to_owned()));
    }
    match pragma("user_version")? {
        found if found > SCHEMA_VERSION => Err(DatabaseError::TooNew {
            path: path.to_owned(),
            found,
        }),
        found => Ok(found),
    }
}

fn cannot_open(path: &Path) -> impl Fn(rusqlite::Error) -> DatabaseError {
    move |source| DatabaseError::Open {
        path: path.to_owned(),
        source,
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(connection)
}

/// Lets the log outlive the connection; [`Database::shorten_log`] keeps it short.
fn keep_log(connection: Connection) -> rusqlite::Result<Connection> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    Ok(connection)
}

/// Names what a statement was for, in the error that it may cause.
pub fn statement(action: &'static str) -> impl Fn(rusqlite::Error) -> DatabaseError {
    move |source| DatabaseError::Statement { action, source }
}

/// Reads back a value that was stored as text.
///
/// # Errors
/// The text is not one of that type.
pub fn parse<T: std::str::FromStr>(what: &'static str, text: &str) -> Result<T, DatabaseError> {
    text.parse().map_err(|_| DatabaseError::Value {
        what,
        value: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("locks")).unwrap();
        dir
    }

    fn write_vm(db: &mut Database, id: &str) {
        db.write(Durability::Full, |tx| {
            let insert = "INSERT INTO vms (id,name,state,created_at,updated_at,config) VALUES (?1,?1,'created','','','{}')";
            tx.execute(insert, [id]).map_err(statement("insert"))
        })
        .unwrap();
    }

    fn count_vms(root: &Path) -> i64 {
        let count = |tx: &Transaction<'_>| {
            tx.query_row("SELECT count(*) FROM vms", [], |row| row.get(0))
                .map_err(statement("count"))
        };
        Database::open(root).unwrap().read(count).unwrap()
    }

    #[test]
    fn many_commands_may_open_a_new_database_at_once() {
        let dir = folder();
        std::thread::scope(|scope| {
            for i in 0..16 {
                let root = dir.path();
                scope.spawn(move || {
                    write_vm(&mut Database::open(root).unwrap(), &i.to_string());
                });
            }
        });
        assert_eq!(count_vms(dir.path()), 16);
    }

    #[test]
    fn a_newer_database_is_refused_and_left_alone() {
        let dir = folder();
        Database::open(dir.path())
            .unwrap()
            .connection
            .pragma_update(None, "user_version", 99)
            .unwrap();
        assert!(matches!(
            Database::open(dir.path()),
            Err(DatabaseError::TooNew { found: 99, .. })
        ));
    }

    /// A database as the first version of this program made it, with a VM in it.
    const VERSION_1: &str = "
        CREATE TABLE images (name TEXT PRIMARY KEY, digest TEXT NOT NULL, size INTEGER NOT NULL,
            architecture TEXT NOT NULL, kernel_layer TEXT NOT NULL, initrd_layer TEXT NOT NULL,
            created_at TEXT NOT NULL, built_at TEXT) STRICT, WITHOUT ROWID;
        CREATE TABLE image_layers (image TEXT NOT NULL REFERENCES images ON DELETE CASCADE,
            position INTEGER NOT NULL, digest TEXT NOT NULL, diff_id TEXT NOT NULL,
            PRIMARY KEY (image, position)) STRICT, WITHOUT ROWID;
        CREATE TABLE vms (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, state TEXT NOT NULL, reason TEXT,
            run TEXT, created_at TEXT NOT NULL, updated_at TEXT NOT NULL, started_at TEXT, stopped_at TEXT,
            config TEXT NOT NULL) STRICT, WITHOUT ROWID;
        CREATE TABLE vm_blobs (vm TEXT NOT NULL REFERENCES vms ON DELETE CASCADE, digest TEXT NOT NULL,
            PRIMARY KEY (vm, digest)) STRICT, WITHOUT ROWID;
        CREATE TABLE networks (vm TEXT PRIMARY KEY REFERENCES vms ON DELETE CASCADE,
            record TEXT NOT NULL) STRICT, WITHOUT ROWID;
        INSERT INTO vms (id,name,state,created_at,updated_at,config) VALUES ('aa','web','created','','','{}');
        PRAGMA application_id = 1668244335;
        PRAGMA user_version = 1;";

    #[test]
    fn a_database_of_version_1_keeps_what_it_holds_and_learns_of_snapshots() {
        let dir = folder();
        let old = connect(&dir.path().join("cocoon.db")).unwrap();
        old.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))
            .unwrap();
        old.execute_batch(VERSION_1).unwrap();
        drop(old);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| Database::open(dir.path()).unwrap());
            }
        });
        let mut db = Database::open(dir.path()).unwrap();
        let seen = db.read(|tx| {
            let version = check(tx, dir.path())?;
            let query = "SELECT name, (SELECT count(*) FROM snapshots) FROM vms";
            let row = tx.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?)));
            let (name, snapshots): (String, i64) = row.map_err(statement("look"))?;
            Ok::<_, DatabaseError>((version, name, snapshots))
        });
        assert_eq!(seen.unwrap(), (SCHEMA_VERSION, "web".to_owned(), 0));
    }

    #[test]
    fn the_log_outlives_who_wrote_it_and_stays_short() {
        let dir = folder();
        let log = dir.path().join("cocoon.db-wal");
        let longest = (0..200).map(|id| {
            write_vm(&mut Database::open(dir.path()).unwrap(), &id.to_string());
            std::fs::metadata(&log).unwrap().len()
        });
        let longest = longest.max().unwrap();
        assert!(longest > LOG_ROOM, "the log was written back at each close");
        assert!(longest < LOG_BYTES, "the log had {longest} bytes");
        assert_eq!(count_vms(dir.path()), 200);
    }

    #[test]
    fn a_log_that_somebody_reads_grows_until_they_are_done() {
        let dir = folder();
        let mut reader = Database::open(dir.path()).unwrap();
        let log = || {
            std::fs::metadata(dir.path().join("cocoon.db-wal"))
                .unwrap()
                .len()
        };
        reader
            .read(|tx| {
                let count = "SELECT count(*) FROM vms";
                tx.query_row(count, [], |row| row.get::<_, i64>(0))
                    .map_err(statement("count"))?;
                let mut writer = Database::open(dir.path())?;
                for id in 0..200 {
                    write_vm(&mut writer, &id.to_string());
                }
                assert!(log() > LOG_BYTES);
                tx.query_row(count, [], |row| row.get::<_, i64>(0))
                    .map_err(statement("count"))
            })
            .map(|seen| assert_eq!(seen, 0, "a reader sees one state"))
            .unwrap();
        write_vm(&mut reader, "last");
        assert_eq!(log(), LOG_ROOM);
        assert_eq!(count_vms(dir.path()), 201);
    }

    #[test]
    fn a_database_made_again_has_nothing_of_the_one_that_was_removed() {
        let dir = folder();
        write_vm(&mut Database::open(dir.path()).unwrap(), "old");
        std::fs::remove_file(dir.path().join("cocoon.db")).unwrap();
        assert_eq!(count_vms(dir.path()), 0);
    }

    #[test]
    fn a_file_that_is_no_database_is_refused() {
        let dir = folder();
        std::fs::write(dir.path().join("cocoon.db"), vec![b'x'; 4096]).unwrap();
        assert!(matches!(
            Database::open(dir.path()),
            Err(DatabaseError::Open { .. })
        ));
    }

    #[test]
    fn an_error_undoes_the_whole_transaction() {
        let dir = folder();
        let mut db = Database::open(dir.path()).unwrap();
        let failed: Result<(), DatabaseError> = db.write(Durability::Full, |tx| {
            tx.execute("INSERT INTO networks VALUES ('nobody', '{}')", [])
                .map_err(statement("insert"))?;
            Ok(())
        });
        assert!(
            failed.is_err(),
            "a network without a VM breaks a foreign key"
        );
    }
}
