//! `cocoon vm restore`

use clap_complete::ArgValueCandidates;

use super::super::completion;
use super::super::error::Failure;
use super::super::output::{self, FormatArgs};
use super::clone::{self, SizeArgs};
use super::create;
use crate::ops::identity::Introduced;
use crate::ops::{self, Host};
use crate::sys::interrupt::Interrupt;

/// What `cocoon vm restore` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct RestoreArgs {
    #[command(flatten)]
    sizes: SizeArgs,
    #[command(flatten)]
    format: FormatArgs,
    /// VM: its name, id, or the first digits of its id
    #[arg(add = ArgValueCandidates::new(completion::vms))]
    vm: String,
    /// Snapshot of this VM
    #[arg(add = ArgValueCandidates::new(completion::snapshots))]
    snapshot: String,
}

/// Takes a VM back to a snapshot.
pub(in crate::cli) fn restore(host: &Host, args: &RestoreArgs) -> Result<(), Failure> {
    let interrupt = Interrupt::on_signals().map_err(Failure::Signals)?;
    let id = host.resolve(&args.vm)?;
    let request = args.sizes.request(&args.snapshot, None);
    let restored = ops::restore::restore(host, id, &request, &interrupt)?;
    let name = create::show(host, id, &args.format)?;
    output::note(format_args!(
        "{name} runs as {} has it; its console: cocoon vm console {name}",
        args.snapshot
    ));
    match restored.introduced {
        Introduced::Done(warnings) => warnings.iter().for_each(output::note),
        Introduced::NoAgent => {
            output::note("its guest has no agent: its clock is late");
            clone::tell_how_to_grow(restored.grown);
        }
    }
    Ok(())
}
