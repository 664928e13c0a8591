//! `cocoon vm`

mod batch;
mod console;
mod create;
mod inspect;
mod list;
mod logs;
mod rm;
mod run;
mod start;
mod stop;

use clap::Subcommand;

use super::error::Failure;
use crate::ops::Host;

/// The verbs.
#[derive(Debug, Subcommand)]
pub(super) enum VmCommand {
    /// Create a VM from an image
    Create(create::CreateArgs),
    /// Create and start a VM
    Run(run::RunArgs),
    /// Start created or stopped VMs
    Start(start::StartArgs),
    /// Stop running VMs: ask the guest to power off, then force it
    Stop(stop::StopArgs),
    /// List VMs with their state
    #[command(visible_alias = "ls")]
    List(super::output::ListArgs),
    /// Show all about a VM, as JSON
    Inspect(inspect::InspectArgs),
    /// Attach to the console of a running VM
    Console(console::ConsoleArgs),
    /// Show what the console of a VM printed
    Logs(logs::LogsArgs),
    /// Remove VMs
    Rm(rm::RmArgs),
}

/// Runs a verb.
pub(super) fn dispatch(host: &Host, command: VmCommand) -> Result<(), Failure> {
    match command {
        VmCommand::Create(args) => create::create(host, &args),
        VmCommand::Run(args) => run::run(host, &args),
        VmCommand::Start(args) => start::start(host, &args),
        VmCommand::Stop(args) => stop::stop(host, &args),
        VmCommand::List(args) => list::list(host, &args),
        VmCommand::Inspect(args) => inspect::inspect(host, &args),
        VmCommand::Console(args) => console::console(host, &args),
        VmCommand::Logs(args) => logs::logs(host, &args),
        VmCommand::Rm(args) => rm::rm(host, &args),
    }
}
