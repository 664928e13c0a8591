//! Verbs on several VMs: all are found first, then worked on at once, and each is reported.

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
    let ids = host.resolve(references)?;
    let results = ops::in_parallel(&ids, host.config.pool_size.get(), |id| work(*id));
    let mut succeeded = Vec::new();
    let mut failures = Vec::new();
    for (id, result) in ids.iter().zip(results) {
        match result {
            Ok(()) => succeeded.push(*id),
            Err(error) => failures.push((*id, Failure::from(error))),
        }
    }
    if format.is_json() {
        let failed = |(id, failure): &(VmId, Failure)| json!({"id": id, "error": failure.line()});
        output::json(&json!({
            "succeeded": succeeded,
            "failed": failures.iter().map(failed).collect::<Vec<_>>(),
        }))?;
    } else {
        succeeded.iter().for_each(output::line);
    }
    Failure::all(failures.into_iter().map(|(_, failure)| failure).collect())
}
