//! `cocoon snapshot rm`

use clap_complete::ArgValueCandidates;

use super::super::completion;
use super::super::error::Failure;
use super::super::output::FormatArgs;
use super::super::vm::batch;
use crate::ops::{Host, snapshots};

/// What `cocoon snapshot rm` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct RmArgs {
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "SNAPSHOT", add = ArgValueCandidates::new(completion::snapshots))]
    snapshots: Vec<String>,
    #[command(flatten)]
    format: FormatArgs,
}

/// Removes snapshots.
pub(in crate::cli) fn rm(host: &Host, args: &RmArgs) -> Result<(), Failure> {
    let found = snapshots::resolve_all(host, &args.snapshots)?;
    batch::found(host, &found, &args.format, |id| snapshots::remove(host, id))
}
