//! `cocoon snapshot list`

use clap_complete::ArgValueCandidates;

use super::super::completion;
use super::super::error::Failure;
use super::super::output;
use crate::ops::{Host, snapshots};
use crate::snapshot::SnapshotRecord;

const HEADER: [&str; 8] = [
    "ID",
    "NAME",
    "VM",
    "CPU",
    "MEMORY",
    "SIZE",
    "DESCRIPTION",
    "CREATED",
];

/// What `cocoon snapshot list` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct SnapshotListArgs {
    /// Only those of this VM, which may be gone by now
    #[arg(long, add = ArgValueCandidates::new(completion::vms))]
    vm: Option<String>,
    #[command(flatten)]
    list: output::ListArgs,
}

/// Lists snapshots, the oldest first.
pub(in crate::cli) fn list(host: &Host, args: &SnapshotListArgs) -> Result<(), Failure> {
    let found = match &args.vm {
        Some(vm) => snapshots::list_of_vm(host, vm)?,
        None => snapshots::list(host)?,
    };
    if args.list.format.is_json() {
        return output::json(&found.iter().map(snapshots::summary).collect::<Vec<_>>());
    }
    if args.list.quiet {
        output::lines(found.iter().map(|snapshot| snapshot.id));
        return Ok(());
    }
    if found.is_empty() {
        output::note(match &args.vm {
            Some(_) => "No snapshots found for VM.",
            None => "No snapshots found.",
        });
        return Ok(());
    }
    output::table(&HEADER, &found.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

fn row(snapshot: &SnapshotRecord) -> Vec<String> {
    let name = snapshot.name.as_ref().map(ToString::to_string);
    let description = snapshot.description.split_whitespace();
    vec![
        snapshot.id.to_string(),
        output::or_dash(name.unwrap_or_default()),
        snapshot.vm_name.to_string(),
        snapshot.config.cpu.to_string(),
        snapshot.config.memory.to_string(),
        snapshot.size.to_string(),
        description.collect::<Vec<_>>().join(" "),
        output::local_time(snapshot.created_at),
    ]
}
