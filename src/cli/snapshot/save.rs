//! `cocoon snapshot save`

use std::time::Duration;

use clap_complete::ArgValueCandidates;

use super::super::completion;
use super::super::error::Failure;
use super::super::output::{self, FormatArgs};
use crate::ops::{self, Host};
use crate::sys::interrupt::Interrupt;
use crate::units::SnapshotName;

/// What `cocoon snapshot save` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct SaveArgs {
    /// Snapshot name [default: none; the id names it]
    #[arg(long)]
    name: Option<SnapshotName>,
    /// What to remember of it
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        value_name = "TEXT"
    )]
    description: String,
    /// Name, id, or the beginning of an id
    #[arg(add = ArgValueCandidates::new(completion::vms))]
    vm: String,
    #[command(flatten)]
    format: FormatArgs,
}

/// Saves a VM, which goes on running; one that is paused stays so.
pub(in crate::cli) fn save(host: &Host, args: SaveArgs) -> Result<(), Failure> {
    let interrupt = Interrupt::on_signals().map_err(Failure::Signals)?;
    let request = ops::save::Request {
        vm: host.resolve(&args.vm)?,
        name: args.name,
        description: args.description,
    };
    output::note(format_args!("saving {} ...", args.vm));
    let (id, saved) = ops::save::save(host, &request, &interrupt)?;
    let label = super::show(host, id, &args.format)?;
    let stood_still = saved
        .halted_us
        .map(Duration::from_micros)
        .map(|time| format!("; the guest stood still for {} ms", time.as_millis()))
        .unwrap_or_default();
    output::note(format_args!("saved {} as {label}{stood_still}", args.vm));
    Ok(())
}
