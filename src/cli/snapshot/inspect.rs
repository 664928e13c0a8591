//! `cocoon snapshot inspect`

use clap_complete::ArgValueCandidates;

use super::super::completion;
use super::super::error::Failure;
use super::super::output::{self, FormatArgs};
use crate::ops::{self, Host, snapshots};
use crate::snapshot::manifest::Depth;
use crate::sys::interrupt::Interrupt;

/// What `cocoon snapshot inspect` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct InspectArgs {
    /// Read memory and disks, too, and compare them with their digests
    #[arg(long)]
    full: bool,
    /// Name, id, or the beginning of an id
    #[arg(add = ArgValueCandidates::new(completion::snapshots))]
    snapshot: String,
    /// The output is JSON in any case
    #[command(flatten)]
    _format: FormatArgs,
}

/// Shows a snapshot, and fails if it is damaged.
pub(in crate::cli) fn inspect(host: &Host, args: &InspectArgs) -> Result<(), Failure> {
    let interrupt = Interrupt::on_signals().map_err(Failure::Signals)?;
    let depth = if args.full { Depth::Full } else { Depth::Quick };
    let id = snapshots::resolve(host, &args.snapshot)?;
    let (object, checked) = snapshots::inspect(host, id, depth, &|| !interrupt.is_raised())?;
    if interrupt.is_raised() {
        return Err(ops::Error::Interrupted.into());
    }
    output::json(&object)?;
    Ok(checked.map_err(ops::Error::from)?)
}
