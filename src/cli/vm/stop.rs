//! `cocoon vm stop`

use std::time::Duration;

use clap_complete::ArgValueCandidates;

use super::super::completion;
use super::super::error::Failure;
use super::super::output::FormatArgs;
use super::batch;
use crate::ops::Host;
use crate::ops::stop::{self, Manner};
use crate::sys::interrupt::Interrupt;

/// What `cocoon vm stop` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct StopArgs {
    /// Do not ask the guest first
    #[arg(long, conflicts_with = "timeout")]
    force: bool,
    /// Seconds that the guest has to power off [default: stop_timeout_seconds, 30]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "VM", add = ArgValueCandidates::new(completion::vms))]
    vms: Vec<String>,
    #[command(flatten)]
    format: FormatArgs,
}

/// Stops VMs. One that does not run is left alone, and that is no failure.
pub(in crate::cli) fn stop(host: &Host, args: &StopArgs) -> Result<(), Failure> {
    let interrupt = Interrupt::on_signals().map_err(Failure::Signals)?;
    let patience = args
        .timeout
        .map_or(host.config.stop_timeout, Duration::from_secs);
    let manner = if args.force {
        Manner::Force
    } else {
        Manner::Ask(patience)
    };
    batch::each(host, &args.vms, &args.format, |id| {
        stop::stop(host, id, manner, &interrupt).map(drop)
    })
}
