//! `cocoon snapshot`

mod export;
mod import;
mod inspect;
mod list;
mod rm;
mod save;

use clap::Subcommand;

use super::error::Failure;
use super::output::{self, FormatArgs};
use crate::ops::{Host, snapshots};
use crate::units::SnapshotId;

/// The verbs.
#[derive(Debug, Subcommand)]
pub(super) enum SnapshotCommand {
    /// Save a running VM: memory, disks, configuration
    Save(save::SaveArgs),
    /// List snapshots
    #[command(visible_alias = "ls")]
    List(list::SnapshotListArgs),
    /// Check a snapshot and show all about it, as JSON
    Inspect(inspect::InspectArgs),
    /// Remove snapshots; VMs that were cloned from them go on
    Rm(rm::RmArgs),
    /// Write a snapshot to a file, a folder or standard output
    Export(export::ExportArgs),
    /// Make a snapshot of what was exported, here or on another host
    Import(import::ImportArgs),
}

/// Runs a verb.
pub(super) fn dispatch(host: &Host, command: SnapshotCommand) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Save(args) => save::save(host, args),
        SnapshotCommand::List(args) => list::list(host, &args),
        SnapshotCommand::Inspect(args) => inspect::inspect(host, &args),
        SnapshotCommand::Rm(args) => rm::rm(host, &args),
        SnapshotCommand::Export(args) => export::export(host, &args),
        SnapshotCommand::Import(args) => import::import(host, args),
    }
}

/// Writes a new snapshot's id, or the snapshot as JSON; returns what people call it.
fn show(host: &Host, id: SnapshotId, format: &FormatArgs) -> Result<String, Failure> {
    let record = snapshots::get(host, id)?;
    if format.is_json() {
        output::json(&snapshots::summary(&record))?;
    } else {
        output::line(id);
    }
    Ok(record.label())
}
