//! `cocoon vm resume`

use clap_complete::ArgValueCandidates;

use super::super::completion;
use super::super::error::Failure;
use super::super::output::FormatArgs;
use super::batch;
use crate::ops::{self, Host};
use crate::sys::interrupt::Interrupt;

/// What `cocoon vm resume` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ResumeArgs {
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "VM", add = ArgValueCandidates::new(completion::vms))]
    vms: Vec<String>,
    #[command(flatten)]
    format: FormatArgs,
}

/// Lets guests go on. One that runs is left alone, and that is no failure.
pub(in crate::cli) fn resume(host: &Host, args: &ResumeArgs) -> Result<(), Failure> {
    let interrupt = Interrupt::on_signals().map_err(Failure::Signals)?;
    batch::each(host, &args.vms, &args.format, |id| {
        ops::pause::resume(host, id, &interrupt)
    })
}
