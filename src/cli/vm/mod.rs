//! `cocoon vm`

pub(in crate::cli) mod batch;
mod clone;
mod console;
mod cp;
mod create;
mod debug;
mod exec;
mod inspect;
mod list;
mod logs;
mod pause;
mod restore;
mod resume;
mod rm;
mod run;
mod start;
mod status;
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
    /// Make a running VM out of a snapshot
    Clone(clone::CloneArgs),
    /// Start created or stopped VMs
    Start(start::StartArgs),
    /// Stop running VMs: ask the guest to power off, then force it
    Stop(stop::StopArgs),
    /// List VMs with their state
    #[command(visible_alias = "ls")]
    List(super::output::ListArgs),
    /// Show the state of VMs, once or whenever it changes
    Status(status::StatusArgs),
    /// Show all about a VM, as JSON
    Inspect(inspect::InspectArgs),
    /// Attach to the console of a running VM
    Console(console::ConsoleArgs),
    /// Run a command in a running VM, through its agent
    Exec(exec::ExecArgs),
    /// Copy files into a running VM or out of it, through its agent
    Cp(cp::CpArgs),
    /// Show what the console of a VM printed
    Logs(logs::LogsArgs),
    /// Take a VM back to one of its snapshots
    Restore(restore::RestoreArgs),
    /// Halt the guests of running VMs
    Pause(pause::PauseArgs),
    /// Let paused guests go on
    Resume(resume::ResumeArgs),
    /// Remove VMs
    Rm(rm::RmArgs),
    /// Print a script that runs a VM by hand, for debugging; nothing is made
    Debug(debug::DebugArgs),
}

/// Runs a verb.
pub(super) fn dispatch(host: &Host, command: VmCommand) -> Result<(), Failure> {
    match command {
        VmCommand::Create(args) => create::create(host, &args),
        VmCommand::Run(args) => run::run(host, &args),
        VmCommand::Clone(args) => clone::clone(host, &args),
        VmCommand::Start(args) => start::start(host, &args),
        VmCommand::Stop(args) => stop::stop(host, &args),
        VmCommand::List(args) => list::list(host, &args),
        VmCommand::Status(args) => status::status(host, &args),
        VmCommand::Inspect(args) => inspect::inspect(host, &args),
        VmCommand::Console(args) => console::console(host, &args),
        VmCommand::Exec(args) => exec::exec(host, &args),
        VmCommand::Cp(args) => cp::cp(host, &args),
        VmCommand::Logs(args) => logs::logs(host, &args),
        VmCommand::Restore(args) => restore::restore(host, &args),
        VmCommand::Pause(args) => pause::pause(host, &args),
        VmCommand::Resume(args) => resume::resume(host, &args),
        VmCommand::Rm(args) => rm::rm(host, &args),
        VmCommand::Debug(args) => debug::debug(host, &args),
    }
}
