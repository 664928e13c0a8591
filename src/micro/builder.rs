//! From a specification, or a saved state, to a VM that runs.
//!
//! ```text
//!            ┌ allocated                        ┌ kernel, initrd, ACPI ─▶ fresh vCPUs ┐
//!  KVM, chips, RAM ─▶ lanes ─▶ devices on buses ┤                                     ├▶ run
//!            └ mapped from a file,              └ saved vCPUs, chips, new generation ─┘
//!              and what is plugged in             and vCPUs that join them; the guest is told
//! ```
//! A guest that boots finds all that its VM has: what was plugged into an earlier life of it, too.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};

use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::acpi::{self, Platform, VirtioNode};
use super::boot::{self, Entry};
use super::bus::{Bus, Shared, lock};
use super::cpu;
use super::cpu::state::Extent;
use super::devices::panic::device::{self as panic, Panic};
use super::devices::plug::device::{self as plug, Plug};
use super::devices::power::device::{self as power, Power};
use super::devices::serial::console::Console;
use super::devices::serial::device::{self as serial, Serial};
use super::devices::serial::input::Input;
use super::devices::watchdog::device::Watchdog;
use super::devices::watchdog::expiry::Expiry;
use super::devices::watchdog::persist::WatchdogState;
use super::devices::{self, Devices, vmgenid};
use super::error::Error;
use super::growth::{Growth, Room, Size};
use super::lane::Lanes;
use super::memory::GuestRam;
use super::notice::Notices;
use super::snapshot::saved::Saved;
use super::snapshot::{MEMORY, STATE, file};
use super::vcpu::{Surroundings, Vcpus};
use super::virtio::mmio::{QUEUE_NOTIFY, Transport};
use super::vm::{Parts, Vm};
use super::{chip, layout, seccomp};
use crate::units::ByteSize;
use crate::vm::spec::{Boot, CONSOLE_TOKEN, VmSpec};
use crate::vmm::engine::RestoredMemory;

/// How the kernel calls the first serial port.
const CONSOLE: &str = "console=ttyS0";

/// What a VM is built with, each time it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site<'a> {
    pub(super) spec: &'a VmSpec,
    pub(super) console: &'a Arc<Console>,
    pub(super) notices: &'a Notices,
}

/// Builds the VM and lets it run. `watchdog` is what its watchdog remembers of an earlier life.
///
/// # Errors
/// The host, or KVM, refused something; nothing is left of the VM.
pub(super) fn boot(site: Site<'_>, watchdog: Option<&WatchdogState>) -> Result<Vm, Error> {
    let Site { spec, .. } = site;
    let size = Size::of(spec);
    let ram = GuestRam::allocate(ByteSize::from_bytes(size.memory), spec.memory.hugepages)?;
    let kvm = Kvm::new().map_err(|error| Error::Kvm(error.into()))?;
    let (parts, buses) = assemble(&kvm, site, ram, Before::Reset { watchdog })?;
    vmgenid::device::begin(parts.ram.guest())?;
    let entry = load(spec, &parts)?;
    let vcpus = make_vcpus(&parts.fd, size.cpus)?;
    for (number, vcpu) in (0..).zip(&vcpus) {
        let cpuid = cpu::cpuid(&kvm, number, parts.room.cpus)?;
        cpu::set_up(vcpu, number, &cpuid, (number == 0).then_some(&entry))?;
    }
    let extent = Extent::ask(&kvm, &parts.fd)?;
    start(parts, buses, vcpus, extent, site.notices)
}

/// Builds the VM that was saved in `from`, with `site`'s files, NICs and console, plugs in what it has more
/// now, and lets it run on.
///
/// # Errors
/// What was saved is damaged or of another VM; the host, or KVM, refused something. Nothing is left of
/// the VM.
pub(super) fn restore(site: Site<'_>, from: &Path) -> Result<Vm, Error> {
    let Site { spec, .. } = site;
    let saved: Saved = file::read(&from.join(STATE))?;
    let growth = saved.check(spec, devices::count(spec))?;
    let ram = saved_ram(&saved, growth, spec.memory.hugepages, &from.join(MEMORY))?;
    let kvm = Kvm::new().map_err(|error| Error::Kvm(error.into()))?;
    let (parts, buses) = assemble(&kvm, site, ram, Before::Saved(&saved))?;
    let vcpus = make_vcpus(&parts.fd, Size::of(spec).cpus)?;
    let extent = Extent::ask(&kvm, &parts.fd)?;
    for ((number, vcpu), state) in (0..).zip(&vcpus).zip(&saved.vcpus) {
        cpu::state::restore(vcpu, number, &extent, state)?;
    }
    if let Some(peer) = saved.vcpus.first() {
        for (number, vcpu) in (0..).zip(&vcpus).skip(saved.vcpus.len()) {
            cpu::state::join(vcpu, number, peer)?;
        }
    }
    chip::restore(&parts.fd, &saved.chips)?;
    vmgenid::device::renew(parts.ram.guest(), &mut lock(&parts.power))?;
    lock(&parts.power).grown(growth);
    for transport in &parts.transports {
        lock(transport).resume();
    }
    start(parts, buses, vcpus, extent, site.notices)
}

/// How a restored VM gets its memory.
pub(super) fn restored_memory(hugepages: bool) -> RestoredMemory {
    // The host's pool has pages for anonymous memory alone, not for that of a file.
    match hugepages {
        true => RestoredMemory::Copied,
        false => RestoredMemory::OnDemand,
    }
}

/// The RAM that was saved, and what is plugged in now.
fn saved_ram(
    saved: &Saved,
    growth: Growth,
    hugepages: bool,
    path: &Path,
) -> Result<GuestRam, Error> {
    let (pieces, file) = (saved.memory.clone(), open(path)?);
    let mut ram = match restored_memory(hugepages) {
        RestoredMemory::Copied => {
            tracing::info!("memory in huge pages is not restored on demand, but copied");
            let ram = GuestRam::allocate(pieces, true)?;
            ram.fill_from(&file, 0)?;
            ram
        }
        RestoredMemory::OnDemand => GuestRam::from_file(&file, 0, pieces)?,
    };
    if growth.memory > 0 {
        ram.plug(growth.memory, hugepages)?;
    }
    Ok(ram)
}

fn start(
    parts: Parts,
    buses: Buses,
    vcpus: Vec<VcpuFd>,
    extent: Extent,
    notices: &Notices,
) -> Result<Vm, Error> {
    let surroundings = Surroundings {
        mmio: buses.mmio,
        ports: buses.ports,
        notices: notices.clone(),
    };
    let mut vm = Vm {
        vcpus: Vcpus::start(vcpus, &surroundings, &seccomp::vcpu()?)?,
        parts,
        extent,
        paused: true,
    };
    vm.resume()?;
    Ok(vm)
}

/// What a VM was before it is built.
#[derive(Clone, Copy)]
enum Before<'a> {
    /// It was reset, or never ran; only its watchdog may remember something.
    Reset {
        watchdog: Option<&'a WatchdogState>,
    },
    Saved(&'a Saved),
}

impl<'a> Before<'a> {
    fn saved(self) -> Option<&'a Saved> {
        match self {
            Self::Reset { .. } => None,
            Self::Saved(saved) => Some(saved),
        }
    }

    fn watchdog(self) -> Option<&'a WatchdogState> {
        match self {
            Self::Reset { watchdog } => watchdog,
            Self::Saved(saved) => saved.watchdog.as_ref(),
        }
    }
}

/// Everything but memory's content and the vCPUs.
fn assemble(
    kvm: &Kvm,
    site: Site<'_>,
    ram: GuestRam,
    before: Before<'_>,
) -> Result<(Parts, Buses), Error> {
    let Site {
        spec,
        console,
        notices,
    } = site;
    let fd = make_vm(kvm, &ram)?;
    let lanes = Arc::new(Lanes::start(spec.cpus.boot as usize, &seccomp::lane()?)?);
    let mut buses = Buses::default();
    let saved = before.saved();
    let serial = buses.serial(&fd, &lanes, console, saved)?;
    let power = buses.power(&fd, notices, saved)?;
    buses.plug(Size::of(spec), &ram)?;
    let watchdog = spec
        .watchdog
        .then(|| buses.watchdog(&lanes, notices, before.watchdog()))
        .transpose()?;
    let states = saved
        .map(|saved| saved.transports.as_slice())
        .unwrap_or_default();
    let device_states: Vec<_> = states.iter().map(|state| &state.device).collect();
    let Devices { devices, balloon } = devices::of(spec, &device_states)?;
    let mut transports = Vec::new();
    for (index, device) in devices.into_iter().enumerate() {
        let memory = ram.guest().clone();
        let (lanes, notices) = (Arc::clone(&lanes), notices.clone());
        let line = line(&fd, layout::virtio_gsi(index))?;
        let transport = match states.get(index) {
            Some(state) => Transport::restore(device, memory, lanes, line, notices, state)?,
            None => Transport::new(device, memory, lanes, line, notices)?,
        };
        transports.push(buses.virtio(&fd, index, transport)?);
    }
    let parts = Parts {
        watchdog,
        power,
        serial,
        balloon,
        transports,
        lanes,
        room: saved.map_or_else(|| Room::of(spec), |saved| saved.room),
        ram,
        fd,
    };
    Ok((parts, buses))
}

fn refused(operation: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |error| Error::Vm {
        operation,
        source: error.into(),
    }
}

/// A VM with memory and interrupt controllers. Memory comes first: the controllers change the VM's
/// buses, which KVM (seen with Linux 6.18) completes at its leisure, and a change of memory waits for
/// that, 4 to 15 ms.
fn make_vm(kvm: &Kvm, ram: &GuestRam) -> Result<VmFd, Error> {
    let fd = kvm.create_vm().map_err(refused("make a VM"))?;
    fd.set_identity_map_address(layout::IDENTITY_MAP)
        .map_err(refused("place its identity map"))?;
    let tss = usize::try_from(layout::TSS).unwrap_or(usize::MAX);
    fd.set_tss_address(tss)
        .map_err(refused("place its task state segment"))?;
    ram.register(&fd)?;
    fd.create_irq_chip()
        .map_err(refused("make its interrupt controllers"))?;
    Ok(fd)
}

/// An interrupt line: what is written to it, KVM injects as an edge.
fn line(fd: &VmFd, gsi: u32) -> Result<EventFd, Error> {
    let line = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::EventFd)?;
    fd.register_irqfd(&line, gsi)
        .map_err(refused("connect an interrupt line"))?;
    Ok(line)
}

/// The buses while they are filled.
#[derive(Default)]
struct Buses {
    mmio: Bus,
    ports: Bus,
}

impl Buses {
    fn serial(
        &mut self,
        fd: &VmFd,
        lanes: &Lanes,
        console: &Arc<Console>,
        saved: Option<&Saved>,
    ) -> Result<Shared<Serial>, Error> {
        let line = line(fd, layout::SERIAL_GSI)?;
        let device = Serial::new(console, line, saved.map(|saved| &saved.serial))?;
        lanes.watch(0, Input::new(console, &device))?;
        self.ports
            .insert(layout::SERIAL_PORT.into(), serial::PORTS, device.clone())?;
        Ok(device)
    }

    /// Power, and how a guest says that it panicked.
    fn power(
        &mut self,
        fd: &VmFd,
        notices: &Notices,
        saved: Option<&Saved>,
    ) -> Result<Shared<Power>, Error> {
        let line = line(fd, layout::EVENT_GSI)?;
        let device = Power::new(line, notices.clone(), saved.map(|saved| &saved.power));
        let device = Arc::new(Mutex::new(device));
        self.ports
            .insert(layout::SLEEP_PORT.into(), power::PORTS, device.clone())?;
        let panicked = Arc::new(Mutex::new(Panic::new(notices.clone())));
        self.ports
            .insert(layout::PANIC_PORT.into(), panic::PORTS, panicked)?;
        Ok(device)
    }

    fn plug(&mut self, size: Size, ram: &GuestRam) -> Result<(), Error> {
        let device = Plug::new(size.cpus, &ram.pieces().plugged());
        let device = Arc::new(Mutex::new(device));
        self.ports
            .insert(layout::PLUG_PORT.into(), plug::PORTS, device)?;
        Ok(())
    }

    fn watchdog(
        &mut self,
        lanes: &Lanes,
        notices: &Notices,
        before: Option<&WatchdogState>,
    ) -> Result<Shared<Watchdog>, Error> {
        let device = Watchdog::new(notices.clone(), before)?;
        lanes.watch(0, Expiry::new(&device)?)?;
        let port = layout::WATCHDOG_PORT.into();
        self.ports
            .insert(port, acpi::wdat::LENGTH, device.clone())?;
        Ok(device)
    }

    /// Puts a virtio device on the bus, and lets KVM turn its notifications into events.
    fn virtio(
        &mut self,
        fd: &VmFd,
        index: usize,
        transport: Transport,
    ) -> Result<Shared<Transport>, Error> {
        let address = layout::virtio_address(index);
        let notify = IoEventAddress::Mmio(address + QUEUE_NOTIFY);
        for (queue, kick) in (0_u32..).zip(transport.kicks()) {
            fd.register_ioevent(kick, &notify, queue)
                .map_err(refused("connect a queue's notifications"))?;
        }
        let transport = Arc::new(Mutex::new(transport));
        self.mmio
            .insert(address, layout::VIRTIO_SIZE, transport.clone())?;
        Ok(transport)
    }
}

/// Puts kernel, initial RAM disk and tables into memory.
fn load(spec: &VmSpec, parts: &Parts) -> Result<Entry, Error> {
    let Boot::Direct {
        kernel,
        initrd,
        cmdline,
    } = &spec.boot
    else {
        return Err(Error::NoKernel);
    };
    let memory = parts.ram.guest();
    let nodes = (0..parts.transports.len()).map(|index| VirtioNode { index });
    let platform = Platform {
        cpus: Size::of(spec).cpus,
        room: parts.room,
        virtio: nodes.collect(),
        watchdog: spec.watchdog,
    };
    let rsdp = acpi::write(memory, &platform)?;
    Ok(boot::load(
        memory,
        &open(kernel)?,
        Some(&open(initrd)?),
        &cmdline.replace(CONSOLE_TOKEN, CONSOLE),
        rsdp,
        parts.ram.bytes(),
    )?)
}

fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|source| Error::Open {
        path: path.to_owned(),
        source,
    })
}

fn make_vcpus(fd: &VmFd, count: u32) -> Result<Vec<VcpuFd>, Error> {
    let make = |number: u32| {
        fd.create_vcpu(number.into())
            .map_err(refused("make a vCPU"))
    };
    (0..count).map(make).collect()
}
