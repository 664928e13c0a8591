//! From records to a [`VmSpec`]: everything that an engine needs to know, decided.

use std::path::PathBuf;

use super::Host;
use crate::network::{self, NetworkRecord};
use crate::store::layout::VmLayout;
use crate::sys::ram;
use crate::units::{ByteSize, VmId, VmName};
use crate::vm::VmConfig;
use crate::vm::cmdline::{self, InterfaceAddress};
use crate::vm::config::Root;
use crate::vm::spec::{
    self, Boot, Console, Cpus, Disk, DiskFormat, MEMORY_BLOCK, Memory, Nic, OnReset, Paths, VmSpec,
    Vsock,
};

/// A VM may grow to as many processors as the host has, but to no more than this: a guest boots with
/// some 250 KB of memory and an ACPI object for each that may come.
const MAX_CPU_ROOM: u32 = 16;

/// Nor to fewer than this: a VM may have more processors than its host, and its snapshot may come to a
/// larger one.
const MIN_CPU_ROOM: u32 = 8;

/// A guest with less memory has none to give back, so it gets no balloon. Nor does one in huge pages: a
/// page of the host's pool that is given back may be another's when the guest wants it again, and there is
/// no other, so the VM would die of it (before Linux 6.8, which keeps it for its owner).
const MIN_BALLOONED: ByteSize = ByteSize::from_mib(256);

/// Address of every guest on its virtio socket device: the first that is not reserved (vsock(7)). Each
/// VM has a socket of its own on the host, so none need differ.
const GUEST_CID: u32 = 3;

/// The VM that is specified.
#[derive(Debug)]
pub(super) struct Of<'a> {
    pub(super) id: VmId,
    pub(super) name: &'a VmName,
    pub(super) config: &'a VmConfig,
    pub(super) layout: VmLayout,
    /// cloud-init in its guest is told who it is: it has not booted to the end once. Only of a disk.
    pub(super) cidata: bool,
}

/// Everything that the engine needs to know.
pub(super) fn specify(
    host: &Host,
    vm: &Of<'_>,
    network: Option<&NetworkRecord>,
    hugepages: bool,
) -> VmSpec {
    let config = vm.config;
    let layout = &vm.layout;
    let host_cpus = std::thread::available_parallelism()
        .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    let balloon = ByteSize::from_bytes(config.memory.bytes() / 4);
    VmSpec {
        version: spec::VERSION,
        id: vm.id,
        name: vm.name.clone(),
        engine: config.engine,
        cpus: Cpus {
            boot: config.cpu,
            added: 0,
            max: cpu_room(config.cpu, host_cpus),
        },
        memory: Memory {
            size: config.memory,
            added: ByteSize::default(),
            max: memory_room(config.memory, ByteSize::from_bytes(ram::total_bytes())),
            hugepages,
            balloon: (config.memory >= MIN_BALLOONED && !hugepages).then_some(balloon),
        },
        boot: boot(host, vm, network),
        saved: None,
        on_reset: OnReset::default(),
        disks: disks(host, vm),
        nics: network.map(nics).unwrap_or_default(),
        netns: network.map(|network| network.netns.clone()),
        console: match config.root {
            Root::Layers(_) => Console::Virtio,
            Root::Disk(_) => Console::Serial,
        },
        watchdog: true,
        vsock: Some(Vsock {
            cid: GUEST_CID,
            socket: layout.vsock_socket(),
        }),
        paths: Paths {
            root_dir: host.layout.root().to_owned(),
            alive_lock: layout.alive_lock(),
            control_socket: layout.control_socket(),
            console_socket: layout.console_socket(),
            api_socket: layout.api_socket(),
            console_log: layout.console_log(),
            vmm_log: layout.vmm_log(),
        },
    }
}

/// Processors to which a VM may grow.
fn cpu_room(boot: u32, host: u32) -> u32 {
    boot.max(host.clamp(MIN_CPU_ROOM, MAX_CPU_ROOM))
}

/// Memory to which a VM may grow: all that the host has, as far as whole blocks go. Room is addresses
/// alone, and costs nothing.
fn memory_room(boot: ByteSize, host: ByteSize) -> ByteSize {
    let room = host.bytes().saturating_sub(boot.bytes());
    let blocks = room / MEMORY_BLOCK.bytes();
    ByteSize::from_bytes(boot.bytes() + blocks * MEMORY_BLOCK.bytes())
}

fn boot(host: &Host, vm: &Of<'_>, network: Option<&NetworkRecord>) -> Boot {
    match &vm.config.root {
        Root::Layers(root) => Boot::Direct {
            kernel: host.layout.kernel(&root.kernel),
            initrd: host.layout.initrd(&root.initrd),
            cmdline: command_line(vm, root.layers.len(), network),
        },
        Root::Disk(root) => match &root.firmware {
            Some(path) => Boot::Firmware { path: path.clone() },
            None => Boot::Installed {
                folder: vm.layout.boot(),
            },
        },
    }
}

fn command_line(vm: &Of<'_>, layers: usize, network: Option<&NetworkRecord>) -> String {
    let nics = network
        .map(|network| network.nics.as_slice())
        .unwrap_or_default();
    let addresses: Vec<_> = nics
        .iter()
        .filter_map(|nic| {
            let address = nic.address?;
            Some(InterfaceAddress {
                index: nic.index,
                ip: address.ip,
                prefix: address.prefix,
                gateway: address.gateway,
            })
        })
        .collect();
    cmdline::command_line(vm.name, layers, nics.len(), &addresses, &vm.config.dns)
}

fn disks(host: &Host, vm: &Of<'_>) -> Vec<Disk> {
    let queues = spec::queues(vm.config.cpu);
    let raw = |path: PathBuf, readonly, serial| Disk {
        path,
        readonly,
        format: DiskFormat::Raw,
        serial,
        queues,
    };
    let own = raw(vm.layout.cow_disk(), false, cmdline::COW_SERIAL.to_owned());
    match &vm.config.root {
        Root::Layers(root) => {
            let layers = root.layers.iter().enumerate();
            let layers = layers
                .map(|(i, digest)| raw(host.layout.blob(digest), true, cmdline::layer_serial(i)));
            layers.chain([own]).collect()
        }
        Root::Disk(_) => {
            let cidata = vm.cidata.then(|| cidata(&vm.layout, queues));
            [own].into_iter().chain(cidata).collect()
        }
    }
}

/// The volume of cloud-init of the VM that has this disk for its own.
pub(super) fn cidata_beside(own: &Disk) -> Option<Disk> {
    let layout = VmLayout::alone(own.path.parent()?);
    Some(cidata(&layout, own.queues))
}

fn cidata(layout: &VmLayout, queues: u16) -> Disk {
    Disk {
        path: layout.cidata(),
        readonly: true,
        format: DiskFormat::Raw,
        serial: cmdline::CIDATA_SERIAL.to_owned(),
        queues,
    }
}

fn nics(network: &NetworkRecord) -> Vec<Nic> {
    let nic = |nic: &network::NicRecord| Nic {
        tap: nic.tap.clone(),
        mac: nic.mac,
        queue_pairs: nic.queue_pairs,
        mtu: nic.mtu,
    };
    network.nics.iter().map(nic).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_may_grow_to_what_the_host_has_and_a_small_one_beyond() {
        for (boot, host, room) in [
            (1, 2, 8),
            (1, 12, 12),
            (2, 64, 16),
            (20, 64, 20),
            (20, 2, 20),
        ] {
            assert_eq!(cpu_room(boot, host), room, "{boot} on {host}");
        }
    }

    #[test]
    fn memory_has_room_for_whole_blocks_of_what_the_host_has() {
        for (boot, host, room) in [
            (512, 1024, 1024),
            (512, 1023, 896),
            (512, 639, 512),
            (100, 1000, 996),
            (2048, 1024, 2048),
        ] {
            let [boot, host, room] = [boot, host, room].map(ByteSize::from_mib);
            assert_eq!(memory_room(boot, host), room, "{boot} on {host}");
        }
    }
}
