//! `cocoon vm start`

use clap_complete::ArgValueCandidates;

use super::super::completion;
use super::super::error::Failure;
use super::super::output::FormatArgs;
use super::batch;
use crate::ops::{Host, start};
use crate::sys::interrupt::Interrupt;

/// What `cocoon vm start` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct StartArgs {
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "VM", add = ArgValueCandidates::new(completion::vms))]
    vms: Vec<String>,
    #[command(flatten)]
    format: FormatArgs,
}

/// Starts VMs. One that runs already is left alone, and that is no failure.
pub(in crate::cli) fn start(host: &Host, args: &StartArgs) -> Result<(), Failure> {
    let interrupt = Interrupt::on_signals().map_err(Failure::Signals)?;
    batch::each(host, &args.vms, &args.format, |id| {
        start::start(host, id, &interrupt).map(drop)
    })
}
