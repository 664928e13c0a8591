//! What this engine refuses. Pure; asked before anything is created.

use super::devices::net::device as net;
use super::layout;
use crate::units::ByteSize;
use crate::vm::spec::{Boot, Disk, Nic, QUEUE_SIZE, VmSpec};

/// Local APIC ids are bytes here, and 255 means all.
const MAX_CPUS: u32 = 254;

/// A kernel and its initial RAM disk need this much to begin with.
const MIN_MEMORY: ByteSize = ByteSize::from_mib(64);

/// Room for registers of devices (16 MiB), less what every VM has (rng, balloon, vsock).
const MAX_DEVICES: usize = 4096 - 16;

/// Lanes, and queues of a device, that bring anything.
const MAX_QUEUES: u16 = 256;

/// The rest of the sentence "the micro engine cannot ...", or nothing.
pub(super) fn check(spec: &VmSpec) -> Result<(), String> {
    let cpus = spec.cpus.boot;
    if cpus == 0 || cpus > MAX_CPUS {
        return Err(format!("run a VM with {cpus} CPUs: 1 to {MAX_CPUS} fit"));
    }
    let size = spec.memory.size;
    if size < MIN_MEMORY {
        return Err(format!(
            "boot a kernel in {size} of memory: the least is {MIN_MEMORY}"
        ));
    }
    if spec.memory.balloon.is_some_and(|balloon| balloon >= size) {
        return Err(format!("have a balloon that takes all of {size}"));
    }
    let Boot::Direct { cmdline, .. } = &spec.boot;
    if cmdline.len() > layout::MAX_CMDLINE {
        return Err(format!(
            "pass a kernel command line of {} bytes: the most is {}",
            cmdline.len(),
            layout::MAX_CMDLINE
        ));
    }
    if spec.disks.len() + spec.nics.len() > MAX_DEVICES {
        return Err(format!("have more than {MAX_DEVICES} disks and NICs"));
    }
    spec.disks.iter().try_for_each(check_disk)?;
    spec.nics.iter().try_for_each(check_nic)
}

fn check_disk(disk: &Disk) -> Result<(), String> {
    let Disk { serial, queues, .. } = disk;
    if serial.len() > 20 {
        return Err(format!("give a disk the serial {serial}: 20 bytes fit"));
    }
    check_queues(*queues)
}

fn check_nic(nic: &Nic) -> Result<(), String> {
    net::check(nic).map_err(|why| format!("have such a NIC: {why}"))
}

fn check_queues(queues: u16) -> Result<(), String> {
    if queues == 0 || queues > MAX_QUEUES {
        return Err(format!(
            "serve {queues} queues of {QUEUE_SIZE}: 1 to {MAX_QUEUES} are possible"
        ));
    }
    Ok(())
}
