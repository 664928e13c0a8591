//! The command line: the only module that prints, exits, and reads argv and the environment.
//!
//! The folder tree is the command tree, and the doc comment of an argument is its help.
//!
//! ```text
//! argv ─▶ *Args (what was typed) ─▶ a request in which nothing is open ─▶ ops ─▶ output
//!                                                             Failure ─▶ error: …  hint: …  exit code
//! ```

mod cancel;
mod completion;
mod doctor;
mod error;
#[cfg(feature = "failpoints")]
mod failpoints;
mod gc;
mod global;
mod habits;
mod hint;
mod image;
mod log;
mod output;
mod progress;
mod snapshot;
mod version;
mod vm;
mod vmm;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::ops::Host;
use crate::vmm::Engine;
use error::Failure;
use global::GlobalArgs;

/// Lightweight MicroVM engine: OCI images in, virtual machines out.
#[derive(Debug, Parser)]
#[command(name = "cocoon", version, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Manage images
    #[command(subcommand, visible_alias = "images")]
    Image(image::ImageCommand),
    /// Manage virtual machines
    #[command(subcommand)]
    Vm(vm::VmCommand),
    /// Manage snapshots of virtual machines
    #[command(subcommand, visible_alias = "snapshots")]
    Snapshot(snapshot::SnapshotCommand),
    /// Remove what nothing refers to: layers, boot files, leftovers of killed commands
    Gc(gc::GcArgs),
    /// Check whether this host can run VMs, and how well
    Doctor(doctor::DoctorArgs),
    /// Print a script that completes commands, flags and names in a shell
    Completion(completion::CompletionArgs),
    /// Show version, engines and build
    Version(version::VersionArgs),
}

/// Runs the command that argv asks for, with the engines that this build links.
pub fn main(engines: &[&'static dyn Engine]) -> ExitCode {
    let of_vm = vmm::asked_for();
    #[cfg(feature = "failpoints")]
    failpoints::arm(of_vm.is_some());
    if let Some(args) = of_vm {
        return vmm::run(&args, engines);
    }
    completion::answer::<Cli>();
    let cli = Cli::try_parse().unwrap_or_else(|error| habits::with_tip(error, &command()).exit());
    crate::sys::sigpipe::restore_default();
    match dispatch(cli, engines) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// The definition of the command line, from which the man pages are made.
pub fn command() -> clap::Command {
    Cli::command()
}

fn dispatch(cli: Cli, engines: &[&'static dyn Engine]) -> Result<(), Failure> {
    match &cli.command {
        Command::Version(args) => return version::version(args, engines),
        Command::Completion(args) => return completion::completion(args),
        _ => {}
    }
    let config = cli.global.config()?;
    log::begin(&config)?;
    // It makes no folders before it has looked at them.
    if let Command::Doctor(args) = &cli.command {
        return doctor::doctor(&config, args);
    }
    let host = Host::open(config, engines)?;
    match cli.command {
        Command::Image(command) => image::dispatch(&host, command),
        Command::Vm(command) => vm::dispatch(&host, command),
        Command::Snapshot(command) => snapshot::dispatch(&host, command),
        Command::Gc(args) => gc::gc(&host, &args),
        // Handled above; they need no host.
        Command::Completion(_) | Command::Doctor(_) | Command::Version(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_arguments_quarrel() {
        Cli::command().debug_assert();
    }
}
