//! What VMs, images and snapshots are called: for whoever offers the names, and changes nothing.

use rusqlite::Transaction;

use crate::config::Config;
use crate::store::{Database, DatabaseError};
use crate::{image, snapshot, vm};

/// A name, and what it is the name of, in a few words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// What a verb takes.
    pub name: String,
    /// For people who choose.
    pub what: String,
}

/// VMs, the oldest first; none where the records cannot be read.
pub fn vms(config: &Config) -> Vec<Named> {
    let named = |vm: vm::VmRecord| Named {
        what: format!("{}, {}", vm.state, vm.config.image),
        name: vm.name.to_string(),
    };
    each(config, vm::records::list, named)
}

/// Images; none where the records cannot be read.
pub fn images(config: &Config) -> Vec<Named> {
    let named = |image: image::records::ImageRecord| Named {
        what: image.digest.short(),
        name: image.name,
    };
    each(config, image::records::list, named)
}

/// Snapshots, the oldest first; none where the records cannot be read.
pub fn snapshots(config: &Config) -> Vec<Named> {
    let named = |snapshot: snapshot::SnapshotRecord| Named {
        what: format!("of {}", snapshot.vm_name),
        name: snapshot
            .name
            .map_or_else(|| snapshot.id.to_string(), |name| name.to_string()),
    };
    each(config, snapshot::records::list, named)
}

fn each<T>(
    config: &Config,
    list: impl FnOnce(&Transaction<'_>) -> Result<Vec<T>, DatabaseError>,
    named: impl FnMut(T) -> Named,
) -> Vec<Named> {
    // To open a database that is not there would make it.
    let is_there = config.root_dir.join("cocoon.db").exists();
    let listed = is_there
        .then(|| Database::open(&config.root_dir).and_then(|mut db| db.read(list)))
        .and_then(Result::ok);
    listed.into_iter().flatten().map(named).collect()
}
