//! `cocoon vm logs`

use clap_complete::ArgValueCandidates;

use super::super::completion;
use super::super::error::Failure;
use super::super::output;
use crate::ops::Host;
use crate::ops::logs::{self, Source};

/// What `cocoon vm logs` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct LogsArgs {
    /// Show the log of the VM process and its engine instead
    #[arg(long)]
    vmm: bool,
    /// Name, id, or the beginning of an id
    #[arg(add = ArgValueCandidates::new(completion::vms))]
    vm: String,
}

/// Shows a VM's log.
pub(in crate::cli) fn logs(host: &Host, args: &LogsArgs) -> Result<(), Failure> {
    let source = if args.vmm {
        Source::Vmm
    } else {
        Source::Console
    };
    let id = host.resolve(&args.vm)?;
    output::raw(&logs::read(host, id, source)?)
}
