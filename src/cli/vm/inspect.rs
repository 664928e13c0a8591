//! `cocoon vm inspect`

use clap_complete::ArgValueCandidates;

use super::super::completion;
use super::super::error::Failure;
use super::super::output::{self, FormatArgs};
use crate::ops::{Host, inspect};

/// What `cocoon vm inspect` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct InspectArgs {
    /// Name, id, or the beginning of an id
    #[arg(add = ArgValueCandidates::new(completion::vms))]
    vm: String,
    /// The output is JSON in any case
    #[command(flatten)]
    _format: FormatArgs,
}

/// Shows a VM.
pub(in crate::cli) fn inspect(host: &Host, args: &InspectArgs) -> Result<(), Failure> {
    let id = host.resolve(&args.vm)?;
    output::json(&inspect::inspect(host, id)?)
}
