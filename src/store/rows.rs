//! Reading rows: all, one, or the one that a user means.

use rusqlite::{Params, Row, Transaction, params};

use super::db::{DatabaseError, parse, statement};
use crate::units::Digest;
use crate::units::id::SHORTEST_PREFIX;

/// Every row of a query, as `read` makes of it; `action` names what it is for.
///
/// # Errors
/// The database failed, or `read` did.
pub fn all<T>(
    tx: &Transaction<'_>,
    action: &'static str,
    (query, values): (&str, impl Params),
    read: impl Fn(&Row<'_>) -> Result<T, DatabaseError>,
) -> Result<Vec<T>, DatabaseError> {
    let failed = statement(action);
    let mut prepared = tx.prepare_cached(query).map_err(&failed)?;
    let mut rows = prepared.query(values).map_err(&failed)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(&failed)? {
        found.push(read(row)?);
    }
    Ok(found)
}

/// The first row of a query, if there is one, as `read` makes of it.
///
/// # Errors
/// The database failed, or `read` did.
pub fn first<T>(
    tx: &Transaction<'_>,
    action: &'static str,
    query: (&str, impl Params),
    read: impl Fn(&Row<'_>) -> Result<T, DatabaseError>,
) -> Result<Option<T>, DatabaseError> {
    Ok(all(tx, action, query, read)?.into_iter().next())
}

/// The digests that a query gives.
///
/// # Errors
/// The database failed, or holds what no digest is.
pub fn digests(
    tx: &Transaction<'_>,
    action: &'static str,
    query: &str,
) -> Result<Vec<Digest>, DatabaseError> {
    all(tx, action, (query, []), |row| {
        let text: String = row.get(0).map_err(statement(action))?;
        parse("digest", &text)
    })
}

/// What a user's words mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meant {
    /// The row with this id.
    One(String),
    /// No row.
    None,
    /// Any of several rows: each as `id (name)`, or its id if it has no name.
    Several(Vec<String>),
}

/// Which row a user means: exact id, then exact name, then the beginning of an id. `rows` is a query of an
/// `id` and a `name`, which may be null.
///
/// # Errors
/// The database failed.
pub fn meant(
    tx: &Transaction<'_>,
    action: &'static str,
    rows: &str,
    reference: &str,
) -> Result<Meant, DatabaseError> {
    let query = format!(
        "SELECT id, name FROM ({rows}) WHERE id = ?1 OR name = ?1 OR (?2 AND substr(id, 1, length(?1)) = ?1)"
    );
    let failed = statement(action);
    let values = params![reference, reference.len() >= SHORTEST_PREFIX];
    let mut found = all(tx, action, (&query, values), |row| {
        let id: String = row.get(0).map_err(&failed)?;
        let name: Option<String> = row.get(1).map_err(&failed)?;
        Ok((id, name))
    })?;
    let by_id = found.iter().position(|(id, _)| id == reference);
    let by_name = || {
        found
            .iter()
            .position(|(_, name)| name.as_deref() == Some(reference))
    };
    let only = || (found.len() == 1).then_some(0);
    Ok(match by_id.or_else(by_name).or_else(only) {
        Some(index) => Meant::One(found.swap_remove(index).0),
        None if found.is_empty() => Meant::None,
        None => Meant::Several(found.into_iter().map(label).collect()),
    })
}

fn label((id, name): (String, Option<String>)) -> String {
    match name {
        Some(name) => format!("{id} ({name})"),
        None => id,
    }
}
