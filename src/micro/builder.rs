//! From a specification to a VM that runs.
//!
//! ```text
//!  KVM VM, chips ─▶ RAM ─▶ lanes ─▶ devices on their buses ─▶ kernel, ACPI ─▶ vCPUs ─▶ run
//! ```
//! Invariant: the fields of [`Vm`] are dropped in their order: vCPUs end first, then lanes, then what
//! either could have used.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::acpi::{self, Platform, VirtioNode};
use super::boot::{self, Entry};
use super::bus::{Bus, Shared, lock};
use super::devices;
use super::devices::panic::device::{self as panic, Panic};
use super::devices::power::device::{self as power, Power};
use super::devices::serial::console::Console;
use super::devices::serial::device::{self as serial, Serial};
use super::devices::serial::input::Input;
use super::error::Error;
use super::lane::Lanes;
use super::memory::GuestRam;
use super::notice::Notices;
use super::vcpu::{Surroundings, Vcpus};
use super::virtio::mmio::{QUEUE_NOTIFY, Transport};
use super::{cpu, layout, seccomp};
use crate::vm::spec::{Boot, CONSOLE_TOKEN, VmSpec};

/// How the kernel calls the first serial port.
const CONSOLE: &str = "console=ttyS0";

/// A VM in this process.
#[derive(Debug)]
pub(super) struct Vm {
    vcpus: Vcpus,
    power: Shared<Power>,
    transports: Vec<Shared<Transport>>,
    lanes: Arc<Lanes>,
    ram: GuestRam,
    fd: VmFd,
}

impl Vm {
    /// Asks the guest to power off.
    pub(super) fn press_power_button(&self) {
        lock(&self.power).press_button();
    }

    /// What there is, for people.
    pub(super) fn describe(&self) -> Vec<String> {
        let name = |transport: &Shared<Transport>| lock(transport).name().to_owned();
        self.transports.iter().map(name).collect()
    }
}

/// Builds `spec`'s VM and lets it run.
///
/// # Errors
/// The host, or KVM, refused something; nothing is left of the VM.
pub(super) fn boot(spec: &VmSpec, console: &Arc<Console>, notices: &Notices) -> Result<Vm, Error> {
    let kvm = Kvm::new().map_err(|error| Error::Kvm(error.into()))?;
    let fd = make_vm(&kvm)?;
    let ram = GuestRam::allocate(spec.memory.size, spec.memory.hugepages)?;
    ram.register(&fd)?;
    let lanes = Arc::new(Lanes::start(spec.cpus.boot as usize, &seccomp::lane()?)?);
    let mut buses = Buses::default();
    let power = buses.legacy(&fd, &lanes, console, notices)?;
    let mut transports = Vec::new();
    for device in devices::of(spec, &[])? {
        let index = transports.len();
        let transport = Transport::new(
            device,
            ram.guest().clone(),
            Arc::clone(&lanes),
            line(&fd, layout::virtio_gsi(index))?,
            notices.clone(),
        )?;
        transports.push(buses.virtio(&fd, index, transport)?);
    }
    let entry = load(spec, &ram, transports.len())?;
    let vcpus = make_vcpus(&kvm, &fd, spec.cpus.boot, &entry)?;
    let surroundings = Surroundings {
        mmio: buses.mmio,
        ports: buses.ports,
        notices: notices.clone(),
    };
    let vcpus = Vcpus::start(vcpus, &surroundings, &seccomp::vcpu()?)?;
    vcpus.run()?;
    Ok(Vm {
        vcpus,
        power,
        transports,
        lanes,
        ram,
        fd,
    })
}

fn make_vm(kvm: &Kvm) -> Result<VmFd, Error> {
    let failed = |operation| {
        move |error: kvm_ioctls::Error| Error::Vm {
            operation,
            source: error.into(),
        }
    };
    let fd = kvm.create_vm().map_err(failed("make a VM"))?;
    fd.set_identity_map_address(layout::IDENTITY_MAP)
        .map_err(failed("place its identity map"))?;
    let tss = usize::try_from(layout::TSS).unwrap_or(usize::MAX);
    fd.set_tss_address(tss)
        .map_err(failed("place its task state segment"))?;
    fd.create_irq_chip()
        .map_err(failed("make its interrupt controllers"))?;
    Ok(fd)
}

fn event() -> Result<EventFd, Error> {
    EventFd::new(EFD_NONBLOCK).map_err(Error::EventFd)
}

/// An interrupt line: what is written to it, KVM injects as an edge.
fn line(fd: &VmFd, gsi: u32) -> Result<EventFd, Error> {
    let line = event()?;
    fd.register_irqfd(&line, gsi).map_err(|error| Error::Vm {
        operation: "connect an interrupt line",
        source: error.into(),
    })?;
    Ok(line)
}

/// The buses while they are filled.
#[derive(Default)]
struct Buses {
    mmio: Bus,
    ports: Bus,
}

impl Buses {
    /// What every PC of ours has.
    fn legacy(
        &mut self,
        fd: &VmFd,
        lanes: &Lanes,
        console: &Arc<Console>,
        notices: &Notices,
    ) -> Result<Shared<Power>, Error> {
        let console_port = Serial::new(console, line(fd, layout::SERIAL_GSI)?, None)?;
        lanes.add(0, Box::new(Input::new(console, &console_port)))?;
        self.ports
            .insert(layout::SERIAL_PORT.into(), serial::PORTS, console_port)?;
        let registers = Power::new(line(fd, layout::EVENT_GSI)?, notices.clone(), None);
        let registers = Arc::new(Mutex::new(registers));
        self.ports
            .insert(layout::SLEEP_PORT.into(), power::PORTS, registers.clone())?;
        let panic_port = Arc::new(Mutex::new(Panic::new(notices.clone())));
        self.ports
            .insert(layout::PANIC_PORT.into(), panic::PORTS, panic_port)?;
        Ok(registers)
    }

    /// Puts a virtio device on the bus, and lets KVM turn its notifications into events.
    fn virtio(
        &mut self,
        fd: &VmFd,
        index: usize,
        transport: Transport,
    ) -> Result<Shared<Transport>, Error> {
        let address = layout::virtio_address(index);
        let notify = kvm_ioctls::IoEventAddress::Mmio(address + QUEUE_NOTIFY);
        for (queue, kick) in (0_u32..).zip(transport.kicks()) {
            fd.register_ioevent(kick, &notify, queue)
                .map_err(|error| Error::Vm {
                    operation: "connect a queue's notifications",
                    source: error.into(),
                })?;
        }
        let transport = Arc::new(Mutex::new(transport));
        self.mmio
            .insert(address, layout::VIRTIO_SIZE, transport.clone())?;
        Ok(transport)
    }
}

/// Puts kernel, initial RAM disk and tables into memory.
fn load(spec: &VmSpec, ram: &GuestRam, virtio: usize) -> Result<Entry, Error> {
    let Boot::Direct {
        kernel,
        initrd,
        cmdline,
    } = &spec.boot;
    let platform = Platform {
        cpus: spec.cpus.boot,
        virtio: (0..virtio).map(|index| VirtioNode { index }).collect(),
        watchdog: spec.watchdog,
    };
    let rsdp: GuestAddress = acpi::write(ram.guest(), &platform)?;
    Ok(boot::load(
        ram.guest(),
        &open(kernel)?,
        Some(&open(initrd)?),
        &cmdline.replace(CONSOLE_TOKEN, CONSOLE),
        rsdp,
        spec.memory.size.bytes(),
    )?)
}

fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|source| Error::Open {
        path: path.to_owned(),
        source,
    })
}

fn make_vcpus(kvm: &Kvm, fd: &VmFd, count: u32, entry: &Entry) -> Result<Vec<VcpuFd>, Error> {
    let make = |number: u32| {
        let vcpu = fd.create_vcpu(number.into()).map_err(|error| Error::Vm {
            operation: "make a vCPU",
            source: error.into(),
        })?;
        let cpuid = cpu::cpuid(kvm, number, count)?;
        cpu::set_up(&vcpu, number, &cpuid, (number == 0).then_some(entry))?;
        Ok(vcpu)
    };
    (0..count).map(make).collect()
}
