//! Why the engine cannot do what it was asked.

use std::io;
use std::path::PathBuf;

use super::acpi::AcpiError;
use super::boot::BootError;
use super::bus::Overlap;
use super::chip::ChipError;
use super::cpu::CpuError;
use super::devices::DeviceError;
use super::devices::serial::device::SerialError;
use super::devices::vmgenid::device::GenerationError;
use super::devices::watchdog::device::WatchdogError;
use super::lane::LaneError;
use super::memory::MemoryError;
use super::seccomp::SeccompError;
use super::snapshot::file::FileError;
use super::snapshot::saved::Misfit;
use super::vcpu::VcpuError;
use super::virtio::mmio::TransportError;
use crate::units::EngineName;
use crate::vmm::engine::EngineError;

/// A failure of the engine.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot open /dev/kvm")]
    Kvm(#[source] io::Error),
    #[error("KVM cannot {operation}")]
    Vm {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot open {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("nobody has looked for the kernel")]
    NoKernel,
    #[error("cannot make an event descriptor")]
    EventFd(#[source] io::Error),
    #[error("cannot make or open the console's terminal")]
    Terminal(#[source] io::Error),
    #[error("cannot listen to signals")]
    Signals(#[source] io::Error),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    #[error("the VM is over")]
    Over,
    #[error("the VM is not paused")]
    NotPaused,
    #[error("what was saved is of another VM")]
    Misfit(#[from] Misfit),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Chip(#[from] ChipError),
    #[error(transparent)]
    Generation(#[from] GenerationError),
    #[error(transparent)]
    Watchdog(#[from] WatchdogError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    #[error(transparent)]
    Cpu(#[from] CpuError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Lane(#[from] LaneError),
    #[error(transparent)]
    Serial(#[from] SerialError),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    #[error(transparent)]
    Overlap(#[from] Overlap),
}

impl Error {
    /// For the port: what failed, and this as its source.
    pub(super) fn during(self, operation: &'static str) -> EngineError {
        EngineError {
            engine: EngineName::Micro,
            operation,
            source: Box::new(self),
        }
    }
}

/// An error and its sources, outermost first, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let all = std::iter::successors(Some(error), |error| error.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
