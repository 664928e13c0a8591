//! What this engine refuses. Pure; asked before anything is created.

use super::devices::net::device as net;
use super::growth::{Room, Size};
use super::layout;
use crate::units::ByteSize;
use crate::vm::spec::{Boot, Cpus, Disk, MEMORY_BLOCK, Memory, Nic, QUEUE_SIZE, VmSpec};

/// Local APIC ids are bytes here, and 255 means all.
const MAX_CPUS: u32 = 254;

/// A kernel and its initial RAM disk need this much to begin with.
const MIN_MEMORY: ByteSize = ByteSize::from_mib(64);

/// ACPI tables of this many devices take a third of their room, and an image has 127 layers at most.
const MAX_DEVICES: usize = 1024;

/// Lanes, and queues of a device, that bring anything.
const MAX_QUEUES: u16 = 256;

/// The rest of the sentence "the micro engine cannot ...", or nothing.
pub(super) fn check(spec: &VmSpec) -> Result<(), String> {
    let cpus = spec.cpus.boot;
    if cpus == 0 || cpus > MAX_CPUS {
        return Err(format!("run a VM with {cpus} CPUs: 1 to {MAX_CPUS} fit"));
    }
    check_growth(spec)?;
    let size = spec.memory.size;
    if size < MIN_MEMORY {
        return Err(format!(
            "boot a kernel in {size} of memory: the least is {MIN_MEMORY}"
        ));
    }
    let page = if spec.memory.hugepages { 2 << 20 } else { 4096 };
    if !size.bytes().is_multiple_of(page) {
        return Err(format!(
            "have {} bytes of memory: it must be a multiple of {page}",
            size.bytes()
        ));
    }
    if spec.memory.balloon.is_some_and(|balloon| balloon >= size) {
        return Err(format!("have a balloon that takes all of {size}"));
    }
    check_boot(&spec.boot)?;
    if spec.disks.len() + spec.nics.len() > MAX_DEVICES {
        return Err(format!("have more than {MAX_DEVICES} disks and NICs"));
    }
    spec.disks.iter().try_for_each(check_disk)?;
    spec.nics.iter().try_for_each(check_nic)
}

fn check_boot(boot: &Boot) -> Result<(), String> {
    match boot {
        // What is found there is told when it is.
        Boot::Installed { .. } => Ok(()),
        Boot::Firmware { .. } => Err("boot UEFI firmware".to_owned()),
        Boot::Direct { cmdline, .. } if cmdline.len() > layout::MAX_CMDLINE => Err(format!(
            "pass a kernel command line of {} bytes: the most is {}",
            cmdline.len(),
            layout::MAX_CMDLINE
        )),
        Boot::Direct { .. } => Ok(()),
    }
}

/// What was added, and what may be.
fn check_growth(spec: &VmSpec) -> Result<(), String> {
    let (has, room) = (Size::of(spec), Room::of(spec));
    let Cpus { boot, added, max } = spec.cpus;
    if room.cpus > MAX_CPUS {
        let most = room.cpus;
        return Err(format!("let a VM grow to {most} CPUs: {MAX_CPUS} fit"));
    }
    if added > 0 && has.cpus > max {
        return Err(format!("add {added} CPUs to {boot}: the most is {max}"));
    }
    let Memory {
        size, added, max, ..
    } = spec.memory;
    if !added.bytes().is_multiple_of(MEMORY_BLOCK.bytes()) {
        let bytes = added.bytes();
        return Err(format!(
            "add {bytes} bytes of memory: it must be a multiple of {MEMORY_BLOCK}"
        ));
    }
    if added > ByteSize::default() && has.memory > max.bytes() {
        return Err(format!(
            "add {added} of memory to {size}: the most is {max}"
        ));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What `ops::start` writes for a VM with two layers and a NIC.
    const SPEC: &str = include_str!("../../vmm-glue/tests/golden/oci.spec.json");

    fn spec() -> VmSpec {
        serde_json::from_str(SPEC).unwrap()
    }

    type Change = fn(&mut VmSpec);

    #[test]
    fn what_this_engine_lacks_is_refused_by_name() {
        assert_eq!(check(&spec()), Ok(()));
        let cases: [(&str, Change); 16] = [
            ("0 CPUs", |s| s.cpus.boot = 0),
            ("255 CPUs", |s| s.cpus.boot = 255),
            ("grow to 255 CPUs", |s| s.cpus.max = 255),
            ("add 7 CPUs to 2: the most is 8", |s| s.cpus.added = 7),
            ("4294967295 CPUs", |s| s.cpus.added = u32::MAX),
            ("add 4096 bytes of memory: it must be a multiple", |s| {
                s.memory.added = ByteSize::from_bytes(4096);
            }),
            ("add 128MiB of memory to 1GiB: the most is 1GiB", |s| {
                s.memory.added = MEMORY_BLOCK;
                s.memory.max = s.memory.size;
            }),
            ("add 16383PiB", |s| {
                s.memory.added = ByteSize::from_bytes(!(MEMORY_BLOCK.bytes() - 1));
                s.memory.max = ByteSize::from_gib(2);
            }),
            ("63MiB of memory", |s| {
                s.memory.size = ByteSize::from_mib(63);
            }),
            ("multiple of 4096", |s| {
                s.memory.size = ByteSize::from_bytes((64 << 20) + 1);
            }),
            ("balloon", |s| s.memory.balloon = Some(s.memory.size)),
            ("2048 bytes", |s| {
                let Boot::Direct { cmdline, .. } = &mut s.boot else {
                    unreachable!()
                };
                *cmdline = "x".repeat(2048);
            }),
            ("disks and NICs", |s| {
                s.disks = vec![s.disks[0].clone(); MAX_DEVICES];
            }),
            ("serial", |s| s.disks[0].serial = "x".repeat(21)),
            ("0 queues", |s| s.disks[0].queues = 0),
            ("MTU of 67", |s| s.nics[0].mtu = 67),
        ];
        for (words, change) in cases {
            let mut spec = spec();
            change(&mut spec);
            let said = check(&spec).unwrap_err();
            assert!(said.contains(words), "{words:?} is not in {said:?}");
        }
    }

    #[test]
    fn a_vm_may_have_all_that_it_has_room_for() {
        for (cpus, max, mib, max_mib) in [(0, 0, 0, 0), (6, 8, 1024, 2048), (252, 254, 128, 1152)] {
            let mut spec = spec();
            (spec.cpus.added, spec.cpus.max) = (cpus, max);
            spec.memory.added = ByteSize::from_mib(mib);
            spec.memory.max = ByteSize::from_mib(max_mib);
            assert_eq!(check(&spec), Ok(()), "{cpus} {mib}");
        }
    }

    #[test]
    fn more_layers_than_interrupt_lines_are_welcome() {
        let mut spec = spec();
        spec.disks = vec![spec.disks[0].clone(); 127];
        assert_eq!(check(&spec), Ok(()));
    }
}
