//! Records of networks: rows of `networks`, one for each VM that has NICs.
//!
//! Invariant: the row is written before the network it plans is begun, and again after each NIC;
//! so whatever exists of a VM's network, its row suffices to take it down.

use rusqlite::{Transaction, params};
use serde::de::DeserializeOwned;

use super::NetworkRecord;
use crate::store::db::{DatabaseError, parse, statement};
use crate::store::rows;
use crate::units::VmId;

/// Records the network of the VM that it names.
///
/// # Errors
/// The database failed.
pub fn put(tx: &Transaction<'_>, network: &NetworkRecord) -> Result<(), DatabaseError> {
    let json = serde_json::to_string(network).map_err(|error| DatabaseError::Value {
        what: "network",
        value: error.to_string(),
    })?;
    tx.execute(
        "INSERT OR REPLACE INTO networks VALUES (?1, ?2)",
        params![network.vm.to_string(), json],
    )
    .map(drop)
    .map_err(statement("record a network"))
}

/// The network of a VM.
///
/// # Errors
/// The database failed or holds what no network is.
pub fn get(tx: &Transaction<'_>, vm: VmId) -> Result<Option<NetworkRecord>, DatabaseError> {
    let action = "read a network";
    let query = "SELECT record FROM networks WHERE vm = ?1";
    rows::first(tx, action, (query, [vm.to_string()]), |row| {
        from_json(rows::text(row, 0, action)?)
    })
}

/// Every network, with its VM: what `N` takes of a [`NetworkRecord`].
///
/// # Errors
/// The database failed or holds what no network is.
pub fn list<N: DeserializeOwned>(tx: &Transaction<'_>) -> Result<Vec<(VmId, N)>, DatabaseError> {
    let action = "list networks";
    rows::all(tx, action, ("SELECT vm, record FROM networks", []), |row| {
        let text = |index| rows::text(row, index, action);
        Ok((parse("VM id", text(0)?)?, from_json(text(1)?)?))
    })
}

fn from_json<N: DeserializeOwned>(json: &str) -> Result<N, DatabaseError> {
    serde_json::from_str(json).map_err(|_| DatabaseError::Value {
        what: "network",
        value: json.to_owned(),
    })
}
