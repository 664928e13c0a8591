//! `cocoon vm rm`

use clap_complete::ArgValueCandidates;

use super::super::completion;
use super::super::error::Failure;
use super::super::output::FormatArgs;
use super::batch;
use crate::ops::{Host, remove};
use crate::sys::interrupt::Interrupt;

/// What `cocoon vm rm` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct RmArgs {
    /// Stop running VMs first, without asking their guests
    #[arg(short, long)]
    force: bool,
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "VM", add = ArgValueCandidates::new(completion::vms))]
    vms: Vec<String>,
    #[command(flatten)]
    format: FormatArgs,
}

/// Removes VMs.
pub(in crate::cli) fn rm(host: &Host, args: &RmArgs) -> Result<(), Failure> {
    // A removal goes on to its end: half of one helps nobody.
    let interrupt = Interrupt::never().map_err(Failure::Signals)?;
    batch::each(host, &args.vms, &args.format, |id| {
        remove::remove(host, id, args.force, &interrupt)
    })
}
