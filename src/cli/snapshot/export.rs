//! `cocoon snapshot export`

use std::io;
use std::path::PathBuf;

use clap_complete::ArgValueCandidates;

use super::super::completion;
use super::super::error::Failure;
use super::super::output;
use crate::ops::export::Target;
use crate::ops::{self, Host, snapshots};
use crate::sys::interrupt::Interrupt;
use crate::sys::tty;

/// What `cocoon snapshot export` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ExportArgs {
    /// Name, id, or the beginning of an id
    #[arg(add = ArgValueCandidates::new(completion::snapshots))]
    snapshot: String,
    /// A file for a zstd-compressed tar, a folder (one that exists, or with a slash at its end), or - for
    /// standard output
    #[arg(value_name = "FILE|DIR|-")]
    to: PathBuf,
}

/// Exports a snapshot.
pub(in crate::cli) fn export(host: &Host, args: &ExportArgs) -> Result<(), Failure> {
    let target = Target::of(&args.to);
    if target == Target::Stream && tty::is_terminal(io::stdout()) {
        return Err(Failure::ArchiveToTerminal);
    }
    let interrupt = Interrupt::on_signals().map_err(Failure::Signals)?;
    let id = snapshots::resolve(host, &args.snapshot)?;
    ops::export::export(host, id, &target, &interrupt)?;
    let to = args.to.display();
    output::note(match target {
        Target::Stream => format!("exported {}", args.snapshot),
        _ => format!("exported {} to {to}", args.snapshot),
    });
    Ok(())
}
