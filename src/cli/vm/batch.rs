//! Verbs on several VMs or snapshots: all are found first, then worked on at once, and each is reported.

use serde::Serialize;
use serde_json::json;

use super::super::error::Failure;
use super::super::output::{self, FormatArgs};
use crate::ops::{self, Host};
use crate::units::VmId;

/// Does `work` to every VM that `references` name, and writes for each its reference, or what went
/// wrong.
pub(super) fn each(
    host: &Host,
    references: &[String],
    format: &FormatArgs,
    work: impl Fn(VmId) -> Result<(), ops::Error> + Sync,
) -> Result<(), Failure> {
    found(host, &host.resolve_all(references)?, format, work)
}

/// As [`each`], for what has been found by its reference.
pub(in crate::cli) fn found<I: Copy + Send + Sync + Serialize>(
    host: &Host,
    items: &[(I, &str)],
    format: &FormatArgs,
    work: impl Fn(I) -> Result<(), ops::Error> + Sync,
) -> Result<(), Failure> {
    let results = ops::in_parallel(items, host.config.pool_size.get(), |(id, _)| work(*id));
    let mut succeeded = Vec::new();
    let mut failures = Vec::new();
    for ((id, reference), result) in items.iter().zip(results) {
        match result {
            Ok(()) => succeeded.push((*id, *reference)),
            Err(error) => failures.push((*id, Failure::from(error))),
        }
    }
    if format.is_json() {
        let failed = |(id, failure): &(I, Failure)| json!({"id": id, "error": failure.line()});
        output::json(&json!({
            "succeeded": succeeded.iter().map(|(id, _)| id).collect::<Vec<_>>(),
            "failed": failures.iter().map(failed).collect::<Vec<_>>(),
        }))?;
    } else {
        succeeded
            .iter()
            .for_each(|(_, reference)| output::line(reference));
    }
    Failure::all(failures.into_iter().map(|(_, failure)| failure).collect())
}
