//! `cocoon vm run`

use super::super::error::Failure;
use super::super::output::{self, FormatArgs};
use super::create::{self, VmArgs};
use crate::ops::{self, Host};
use crate::sys::interrupt::Interrupt;

/// What `cocoon vm run` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct RunArgs {
    #[command(flatten)]
    vm: VmArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// Creates and starts a VM. One that was created but did not start stays, to be looked at.
pub(in crate::cli) fn run(host: &Host, args: &RunArgs) -> Result<(), Failure> {
    ops::require_root()?;
    ops::start::check_host(host)?;
    let interrupt = Interrupt::on_signals().map_err(Failure::Signals)?;
    let lock = ops::create::create(host, args.vm.request(), &interrupt)?;
    let started = ops::start::start_locked(host, &lock, &interrupt);
    let name = create::show(host, lock.id(), &args.format)?;
    match started {
        Ok(_) => {
            output::note(format_args!(
                "{name} runs; its console: cocoon vm console {name}"
            ));
            Ok(())
        }
        Err(error) => Err(Failure::CreatedOnly {
            name,
            source: Box::new(error.into()),
        }),
    }
}
