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
    let vms = host.resolve_all(references)?;
    let results = ops::in_parallel(&vms, host.config.pool_size.get(), |(id, _)| work(*id));
    let mut succeeded = Vec::new();
    let mut failures = Vec::new();
    for ((id, reference), result) in vms.iter().zip(results) {
        match result {
            Ok(()) => succeeded.push((*id, *reference)),
            Err(error) => failures.push((*id, Failure::from(error))),
        }
    }
    if format.is_json() {
        let failed = |(id, failure): &(VmId, Failure)| json!({"id": id, "error": failure.line()});
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
