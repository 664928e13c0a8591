//! `cocoon snapshot import`

use std::path::PathBuf;

use super::super::error::Failure;
use super::super::output::{self, FormatArgs};
use crate::ops::import::{Request, Source};
use crate::ops::{self, Host};
use crate::sys::interrupt::Interrupt;
use crate::units::SnapshotName;

/// What `cocoon snapshot import` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ImportArgs {
    /// Snapshot name [default: that which it had]
    #[arg(long)]
    name: Option<SnapshotName>,
    /// What to remember of it [default: what was]
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// What `export` wrote: a file, a folder, or - for standard input
    #[arg(value_name = "FILE|DIR|-")]
    from: PathBuf,
    #[command(flatten)]
    format: FormatArgs,
}

/// Imports a snapshot.
pub(in crate::cli) fn import(host: &Host, args: ImportArgs) -> Result<(), Failure> {
    let interrupt = Interrupt::on_signals().map_err(Failure::Signals)?;
    let request = Request {
        source: Source::of(&args.from),
        name: args.name,
        description: args.description,
    };
    let id = ops::import::import(host, &request, &interrupt)?;
    let label = super::show(host, id, &args.format)?;
    output::note(format_args!("imported {label}"));
    Ok(())
}
