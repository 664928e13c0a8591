//! Connections to one database, kept between uses.
//!
//! One that is opened reads the whole log first, and its first commit waits for the disk twice, for
//! the log and for the folder that names it: a command that opened one for each of its steps would pay
//! that each time. Steps within steps, and threads, get connections of their own.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Database, DatabaseError};

/// Gives connections to the database of a root folder.
#[derive(Debug)]
pub struct Pool {
    root: PathBuf,
    /// At most one: few steps need two at once.
    idle: Mutex<Option<Database>>,
}

/// A connection that goes back to its pool when it is dropped.
#[derive(Debug)]
pub struct Pooled<'a> {
    pool: &'a Pool,
    database: Option<Database>,
}

impl Pool {
    /// Opens nothing yet.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            idle: Mutex::default(),
        }
    }

    /// A connection, the idle one if there is one.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn get(&self) -> Result<Pooled<'_>, DatabaseError> {
        let idle = self.idle().take();
        let database = match idle {
            Some(database) => database,
            None => Database::open(&self.root)?,
        };
        Ok(Pooled {
            pool: self,
            database: Some(database),
        })
    }

    fn idle(&self) -> MutexGuard<'_, Option<Database>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a [`Pooled`] always has one.
const HELD: &str = "a connection is held until it is dropped";

impl Deref for Pooled<'_> {
    type Target = Database;
    fn deref(&self) -> &Database {
        self.database.as_ref().expect(HELD)
    }
}

impl DerefMut for Pooled<'_> {
    fn deref_mut(&mut self) -> &mut Database {
        self.database.as_mut().expect(HELD)
    }
}

impl Drop for Pooled<'_> {
    fn drop(&mut self) {
        *self.pool.idle() = self.database.take();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Durability, db::statement};
    use super::*;

    #[test]
    fn a_connection_is_used_again_and_two_at_once_are_two() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("locks")).unwrap();
        let pool = Pool::new(dir.path());
        // A temporary table is seen by its own connection alone.
        let mark = "CREATE TEMP TABLE mark (x)";
        let run = |db: &mut Database, sql: &'static str| {
            db.write(Durability::UntilReboot, |tx| {
                tx.execute_batch(sql).map_err(statement("try"))
            })
        };
        run(&mut pool.get().unwrap(), mark).unwrap();
        let mut first = pool.get().unwrap();
        run(&mut first, mark).unwrap_err();
        run(&mut pool.get().unwrap(), mark).unwrap();
    }

    #[test]
    fn a_failed_transaction_leaves_its_connection_fit_for_use() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("locks")).unwrap();
        let pool = Pool::new(dir.path());
        for _ in 0..2 {
            let failed: Result<(), DatabaseError> =
                pool.get().unwrap().write(Durability::Full, |tx| {
                    tx.execute_batch("INSERT INTO nowhere VALUES (1)")
                        .map_err(statement("try"))
                });
            failed.unwrap_err();
        }
        let version = |tx: &rusqlite::Transaction<'_>| {
            tx.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))
                .map_err(statement("look"))
        };
        assert!(pool.get().unwrap().read(version).unwrap() > 0);
    }
}
