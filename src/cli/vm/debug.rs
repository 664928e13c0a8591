//! `cocoon vm debug`

use std::path::PathBuf;

use super::super::error::Failure;
use super::super::output;
use super::create::VmArgs;
use crate::ops::{self, Host, debug::Request};
use crate::units::ByteSize;

/// What `cocoon vm debug` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct DebugArgs {
    #[command(flatten)]
    vm: VmArgs,
    /// CPUs to which the VM may grow [default: 8, or --cpu if that is more]
    #[arg(long, value_name = "N")]
    max_cpu: Option<u32>,
    /// Size of the balloon in MiB (0 = as every VM has it)
    #[arg(long, default_value_t = 0, value_name = "MB")]
    balloon: u32,
    /// The VM's own disk; made if it is not there [default: ./debug-<name>/cow.raw]
    #[arg(long, value_name = "FILE")]
    cow: Option<PathBuf>,
    /// The cloud-hypervisor program, for that engine [default: cloud-hypervisor]
    #[arg(long, value_name = "PROGRAM")]
    ch: Option<PathBuf>,
}

/// Prints a script.
pub(in crate::cli) fn debug(host: &Host, args: &DebugArgs) -> Result<(), Failure> {
    let here = std::env::current_dir().map_err(Failure::WorkingFolder)?;
    let request = Request {
        vm: args.vm.request(),
        max_cpu: args.max_cpu,
        balloon: (args.balloon > 0).then(|| ByteSize::from_mib(args.balloon.into())),
        cow: args.cow.clone(),
        vmm: args.ch.clone(),
        cocoon: std::env::current_exe().map_err(Failure::OwnProgram)?,
        here,
    };
    output::raw(ops::debug::debug(host, &request)?.as_bytes())
}
