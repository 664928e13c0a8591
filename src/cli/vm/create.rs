//! `cocoon vm create`

use clap_complete::ArgValueCandidates;

use super::super::completion;
use super::super::error::Failure;
use super::super::output::{self, FormatArgs};
use crate::ops::create::{BootChoice, Request};
use crate::ops::{self, Host};
use crate::sys::interrupt::Interrupt;
use crate::units::{ByteSize, EngineName, VmId, VmName};
use crate::vm::config::Hugepages;

/// What `create`, `run` and `debug` take to describe a VM.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct VmArgs {
    /// VM name [default: cocoon-<image>]
    #[arg(long)]
    name: Option<VmName>,
    /// Boot CPUs
    #[arg(long, default_value_t = 2, value_name = "N")]
    cpu: u32,
    /// Memory size (e.g. 512M, 2G)
    #[arg(long, default_value = "1G", value_name = "SIZE")]
    memory: ByteSize,
    /// Size of the VM's own disk (e.g. 10G, 20G)
    #[arg(long, default_value = "10G", value_name = "SIZE")]
    storage: ByteSize,
    /// Number of network interfaces (0 = no network)
    #[arg(long, default_value_t = 1, value_name = "N")]
    nics: u16,
    /// Engine that runs the VM [default: the first that `cocoon version` lists]
    #[arg(long, value_name = "ENGINE")]
    engine: Option<EngineName>,
    /// Huge pages for the VM's memory
    #[arg(long, value_enum, default_value = "auto")]
    hugepages: Hugepages,
    /// What boots a disk image: UEFI firmware, or the kernel on the disk directly; auto takes firmware
    /// where it is installed
    #[arg(long, value_enum, default_value = "auto")]
    boot: BootChoice,
    /// Image: a name as it was pulled, or a digest
    #[arg(add = ArgValueCandidates::new(completion::images))]
    image: String,
}

impl VmArgs {
    pub(in crate::cli) fn request(&self) -> Request {
        Request {
            image: self.image.clone(),
            name: self.name.clone(),
            cpu: self.cpu,
            memory: self.memory,
            storage: self.storage,
            nics: self.nics,
            hugepages: self.hugepages,
            engine: self.engine,
            boot: self.boot,
        }
    }
}

/// What `cocoon vm create` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct CreateArgs {
    #[command(flatten)]
    vm: VmArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// Creates a VM.
pub(in crate::cli) fn create(host: &Host, args: &CreateArgs) -> Result<(), Failure> {
    let interrupt = Interrupt::on_signals().map_err(Failure::Signals)?;
    let id = ops::create::create(host, args.vm.request(), &interrupt)?.id();
    let name = show(host, id, &args.format)?;
    output::note(format_args!(
        "created {name}; start it: cocoon vm start {name}"
    ));
    Ok(())
}

/// Writes a VM's id, or the VM as JSON; returns its name.
pub(in crate::cli) fn show(host: &Host, id: VmId, format: &FormatArgs) -> Result<VmName, Failure> {
    let vm = ops::list::get(host, id)?;
    if format.is_json() {
        output::json(&ops::inspect::summary(host, &vm))?;
    } else {
        output::line(id);
    }
    Ok(vm.record.name)
}
