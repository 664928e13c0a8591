//! Records of networks: rows of `networks`, one for each VM that has NICs.
//!
//! Invariant: the row is written before the network it plans is begun, and again after each NIC;
//! so whatever exists of a VM's network, its row suffices to take it down.

use rusqlite::{OptionalExtension, Transaction, params};
use serde::de::DeserializeOwned;

use super::NetworkRecord;
use crate::store::db::{DatabaseError, parse, statement};
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
    tx.query_row(
        "SELECT record FROM networks WHERE vm = ?1",
        [vm.to_string()],
        |row| row.get(0),
    )
    .optional()
    .map_err(statement("read a network"))?
    .map(from_json)
    .transpose()
}

/// Every network, with its VM: what `N` takes of a [`NetworkRecord`].
///
/// # Errors
/// The database failed or holds what no network is.
pub fn list<N: DeserializeOwned>(tx: &Transaction<'_>) -> Result<Vec<(VmId, N)>, DatabaseError> {
    let failed = statement("list networks");
    let mut statement_ = tx
        .prepare("SELECT vm, record FROM networks")
        .map_err(&failed)?;
    let rows = statement_
        .query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })
        .map_err(&failed)?;
    rows.map(|row| {
        let (vm, json) = row.map_err(&failed)?;
        Ok((parse("VM id", &vm)?, from_json(json)?))
    })
    .collect()
}

fn from_json<N: DeserializeOwned>(json: String) -> Result<N, DatabaseError> {
    serde_json::from_str(&json).map_err(|_| DatabaseError::Value {
        what: "network",
        value: json,
    })
}
