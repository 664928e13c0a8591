//! The built-in engine: a microVM on the rust-vmm crates.
//!
//! ```text
//!  VmSpec ─▶ builder ─▶ KVM VM, RAM, boot files, ACPI, devices ─▶ MicroMachine
//!                                                                    │ life: reset, power off, fault
//!   vcpu0 … vcpuN ── exits ──▶ bus ──▶ serial, power, watchdog       │
//!        │                      └────▶ virtio-mmio ─ activate ─┐     │
//!        └── notify ─▶ ioeventfd ─▶ io0 … ioN: queue handlers ◀┘     │
//!                                    block net balloon rng vsock ────┴─▶ events
//! ```
//! x86-64 only. What aarch64 would need stands in `layout` (addresses), `boot` (the Image format and a
//! device tree in place of ACPI), `cpu` (registers) and the GIC in place of the IOAPIC.

mod acpi;
mod boot;
mod builder;
mod bus;
mod check;
mod chip;
mod cpu;
mod devices;
mod error;
#[cfg(test)]
mod fixture;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod growth;
mod lane;
mod layout;
mod machine;
mod memory;
mod notice;
mod seccomp;
mod snapshot;
mod vcpu;
mod virtio;
mod vm;

use std::path::Path;

use crate::units::EngineName;
use crate::vm::spec::VmSpec;
use crate::vmm::engine::{EngineError, Flag, Unsupported};
use crate::vmm::{Engine, Machine};

/// The built-in engine.
#[derive(Clone, Copy, Debug)]
pub struct Micro;

impl Engine for Micro {
    fn name(&self) -> EngineName {
        EngineName::Micro
    }

    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }

    fn boots_firmware(&self) -> bool {
        false
    }

    fn clock_outlives_pause(&self) -> bool {
        true
    }

    fn check(&self, spec: &VmSpec) -> Result<(), Unsupported> {
        check::check(spec).map_err(|feature| Unsupported {
            engine: self.name(),
            feature,
        })
    }

    fn boot(&self, spec: &VmSpec) -> Result<Box<dyn Machine>, EngineError> {
        Ok(Box::new(machine::boot(spec)?))
    }

    fn restore(&self, spec: &VmSpec, from: &Path) -> Result<Box<dyn Machine>, EngineError> {
        Ok(Box::new(machine::restore(spec, from)?))
    }

    fn command_line(&self, _spec: &VmSpec) -> Option<Vec<Flag>> {
        None
    }
}
