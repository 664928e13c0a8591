//! `cocoon vm pause`

use clap_complete::ArgValueCandidates;

use super::super::completion;
use super::super::error::Failure;
use super::super::output::FormatArgs;
use super::batch;
use crate::ops::{self, Host};

/// What `cocoon vm pause` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct PauseArgs {
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "VM", add = ArgValueCandidates::new(completion::vms))]
    vms: Vec<String>,
    #[command(flatten)]
    format: FormatArgs,
}

/// Halts guests. One that is paused already is left alone, and that is no failure.
pub(in crate::cli) fn pause(host: &Host, args: &PauseArgs) -> Result<(), Failure> {
    batch::each(host, &args.vms, &args.format, |id| {
        ops::pause::pause(host, id)
    })
}
