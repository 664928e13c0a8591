//! `vm debug`: what `vm run` would do, as a script that a person pastes into a shell and changes.
//!
//! ```text
//! Request ──specify──▶ VmSpec ──script──▶ <folder>/cow.raw, then
//!   nothing is made, nothing recorded        the engine's own program    cloud-hypervisor --cpus …
//!                                            or cocoon's, by hand        cocoon __vmm <folder>/spec.json
//! ```
//! Invariant: the VM is specified by the code that `vm start` uses. Only what a VM without a record cannot
//! have is otherwise: its files are in a folder of the user's, its NICs on TAPs of the user's.

mod script;

use std::path::{Path, PathBuf};

use super::specify::{self, Of};
use super::{Error, Host, create, start};
use crate::network::{NetworkRecord, NicRecord, plan};
use crate::store::layout::VmLayout;
use crate::sys::hugepages;
use crate::units::{ByteSize, EngineName, Mac, VmId, VmName};
use crate::vm::VmConfig;
use crate::vm::cmdline::COW_SERIAL;
use crate::vm::config::Root;
use crate::vm::spec::{self, Boot, VmSpec};
use script::{Program, Script};

/// To how many processors the VM may grow where it is not said, as in the Go cocoon.
const MAX_CPU: u32 = 8;

/// That of Ethernet, and of a TAP that nobody gave another one.
const MTU: u16 = 1500;

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The VM, as `vm create` would make it.
    pub vm: create::Request,
    /// Processors to which it may grow, or [`MAX_CPU`] if it does not begin with more.
    pub max_cpu: Option<u32>,
    /// Size of the balloon, or as every VM has it.
    pub balloon: Option<ByteSize>,
    /// The VM's own disk, or one in its folder.
    pub cow: Option<PathBuf>,
    /// The engine's own program, or the one that the shell finds.
    pub vmm: Option<PathBuf>,
    /// This program.
    pub cocoon: PathBuf,
    /// Where the VM's folder is to be, and to what `cow` is relative. Absolute.
    pub here: PathBuf,
}

/// The script that runs a VM of a request by hand. Nothing is made.
///
/// # Errors
/// The image is not here, or there can be no such VM.
pub fn debug(host: &Host, request: &Request) -> Result<String, Error> {
    create::check_numbers(&request.vm)?;
    let max_cpu = max_cpu(request)?;
    let engine = host.engine(request.vm.engine)?;
    let (name, config) = host.database()?.read(|tx| {
        let config = create::resolve_config(host, tx, &request.vm, engine.name())?;
        Ok::<_, Error>((create::name(tx, &request.vm)?, config))
    })?;
    let folder = request.here.join(format!("debug-{name}"));
    let mut spec = specified(host, &name, &config, &folder)?;
    spec.cpus.max = max_cpu;
    spec.memory.balloon = request.balloon.or(spec.memory.balloon);
    let cow = request.cow.as_ref().map(|cow| request.here.join(cow));
    let cow = cow.unwrap_or_else(|| VmLayout::alone(&folder).cow_disk());
    for disk in &mut spec.disks {
        if disk.serial == COW_SERIAL {
            disk.path.clone_from(&cow);
        }
    }
    engine.check(&spec)?;
    let text = serde_json::to_string_pretty(&spec).map_err(|source| Error::NotText {
        name: name.clone(),
        source,
    })?;
    // Only cocoon looks for a kernel on a disk.
    let flags = match spec.boot {
        Boot::Installed { .. } => None,
        Boot::Direct { .. } | Boot::Firmware { .. } => engine.command_line(&spec),
    };
    let program = match flags {
        Some(flags) => Program::Engines {
            path: vmm(request, engine.name()),
            flags,
        },
        None => Program::Cocoons {
            path: cocoons(request, engine.name())?,
            spec_file: VmLayout::alone(&folder).spec(),
            spec: text,
        },
    };
    Ok(Script {
        image: &config.image,
        spec: &spec,
        folder: &folder,
        cow: &cow,
        base: match &config.root {
            Root::Layers(_) => None,
            Root::Disk(root) => Some(host.layout.disk_image(&root.base)),
        },
        storage: config.storage,
        program,
    }
    .to_string())
}

fn max_cpu(request: &Request) -> Result<u32, Error> {
    let boot = request.vm.cpu;
    let max = request.max_cpu.unwrap_or(boot.max(MAX_CPU));
    if max < boot {
        return Err(Error::BadRequest {
            what: "--max-cpu",
            rule: format!("at least --cpu, which is {boot}"),
            given: max.to_string(),
        });
    }
    Ok(max)
}

/// The engine's own program. One without a path is looked for by the shell.
fn vmm(request: &Request, engine: EngineName) -> PathBuf {
    let by_name = || PathBuf::from(engine.to_string());
    request.vmm.clone().unwrap_or_else(by_name)
}

/// This program, where the engine has no other: then none can be chosen.
fn cocoons(request: &Request, engine: EngineName) -> Result<PathBuf, Error> {
    match &request.vmm {
        None => Ok(request.cocoon.clone()),
        Some(vmm) => Err(Error::BadRequest {
            what: "--ch",
            rule: format!(
                "left out, for on the {engine} engine no program but cocoon boots this VM"
            ),
            given: vmm.display().to_string(),
        }),
    }
}

/// What an engine would be told of a VM that has its files in `folder`.
fn specified(
    host: &Host,
    name: &VmName,
    config: &VmConfig,
    folder: &Path,
) -> Result<VmSpec, Error> {
    let of = Of {
        id: VmId::random().map_err(Error::Random)?,
        name,
        config,
        layout: VmLayout::alone(folder),
        // What cloud-init would read is of a VM that cocoon makes.
        cidata: false,
    };
    let free = ByteSize::from_bytes(hugepages::free_bytes());
    let hugepages = start::decide_hugepages(config, free)?;
    let network = (config.nics > 0).then(|| network_of_taps(of.id, config));
    let spec = specify::specify(host, &of, network.as_ref(), hugepages);
    Ok(VmSpec {
        netns: None,
        ..spec
    })
}

/// A network of TAPs alone: no CNI gives the guest addresses.
fn network_of_taps(vm: VmId, config: &VmConfig) -> NetworkRecord {
    let queue_pairs = spec::queues(config.cpu);
    let nic = |index| NicRecord {
        index,
        ifname: plan::ifname(index),
        tap: plan::tap_name(index),
        mac: mac(vm, index),
        mtu: MTU,
        queue_pairs,
        address: None,
        cni_result: String::new(),
    };
    NetworkRecord {
        vm,
        netns: plan::netns_path(vm),
        network: String::new(),
        conflist: String::new(),
        nic_count: config.nics,
        queue_pairs,
        nics: (0..config.nics).map(nic).collect(),
    }
}

/// An address of nobody's: locally administered (IEEE 802, bit 1 of the first byte), random as the VM's id.
fn mac(vm: VmId, index: u16) -> Mac {
    let id = vm.to_string();
    let byte = |at: usize| u8::from_str_radix(&id[at..at + 2], 16).unwrap_or_default();
    let [high, low] = index.to_be_bytes();
    Mac::new([0x02, byte(0), byte(2), byte(4), high, low])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_nics_of_a_vm_share_an_address() {
        let vm: VmId = "0123456789abcdef".parse().unwrap();
        assert_eq!(mac(vm, 0).to_string(), "02:01:23:45:00:00");
        assert_eq!(mac(vm, 258).to_string(), "02:01:23:45:01:02");
    }
}
