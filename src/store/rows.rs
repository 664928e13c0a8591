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

/// A text of a row, where it stands.
///
/// # Errors
/// It is no text.
pub fn text<'r>(
    row: &'r Row<'_>,
    index: usize,
    action: &'static str,
) -> Result<&'r str, DatabaseError> {
    let text = row.get_ref(index).and_then(|value| Ok(value.as_str()?));
    text.map_err(statement(action))
}

/// As [`text()`], or nothing.
///
/// # Errors
/// It is neither.
pub fn text_or_null<'r>(
    row: &'r Row<'_>,
    index: usize,
    action: &'static str,
) -> Result<Option<&'r str>, DatabaseError> {
    let value = row.get_ref(index);
    let text = value.and_then(|value| Ok(value.as_str_or_null()?));
    text.map_err(statement(action))
}

/// What a user's words mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meant {
    /// The row with this id.
    One(String),
    /// No row; the name that is most like it, if one is.
    None {
        /// The name.
        near: Option<String>,
    },
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
        None if found.is_empty() => Meant::None {
            near: near(tx, action, rows, reference)?,
        },
        None => Meant::Several(found.into_iter().map(label).collect()),
    })
}

/// The name among `rows` that is most like `typed`.
fn near(
    tx: &Transaction<'_>,
    action: &'static str,
    rows: &str,
    typed: &str,
) -> Result<Option<String>, DatabaseError> {
    let query = format!("SELECT name FROM ({rows}) WHERE name IS NOT NULL ORDER BY name");
    let names: Vec<String> = all(tx, action, (&query, []), |row| {
        row.get(0).map_err(statement(action))
    })?;
    Ok(most_like(typed, typed, names))
}

/// The one of `names` that can be made of `meant` by the fewest changes, if those are few: of each three letters
/// that were typed, one may be wrong, missing, too many, or in the place of its neighbour. `meant` is what was
/// typed, or that in full.
pub fn most_like(
    typed: &str,
    meant: &str,
    names: impl IntoIterator<Item = String>,
) -> Option<String> {
    let few = (typed.chars().count() / 3).max(1);
    let changes = names
        .into_iter()
        .map(|name| (strsim::osa_distance(meant, &name), name));
    let (changes, name) = changes.min_by_key(|(changes, _)| *changes)?;
    (changes <= few).then_some(name)
}

fn label((id, name): (String, Option<String>)) -> String {
    match name {
        Some(name) => format!("{id} ({name})"),
        None => id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_forgiven_and_another_name_is_not_meant() {
        let names = || ["web", "web-2", "database"].map(str::to_owned);
        for (typed, near) in [
            ("wbe", Some("web")),
            ("we", Some("web")),
            ("Web", Some("web")),
            ("wb-2", Some("web-2")),
            ("databsae", Some("database")),
            ("data", None),
            ("x", None),
        ] {
            assert_eq!(most_like(typed, typed, names()).as_deref(), near, "{typed}");
        }
        assert_eq!(most_like("web", "web", []), None);
        // What is the same in all names is no likeness.
        let full = ["docker.io/library/debian:12".to_owned()];
        for (typed, near) in [("debain:12", true), ("absent", false)] {
            let meant = format!("docker.io/library/{typed}");
            assert_eq!(most_like(typed, &meant, full.clone()).is_some(), near);
        }
    }
}
