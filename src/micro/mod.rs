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

#![expect(dead_code, reason = "the engine is being put together")]

mod acpi;
mod boot;
mod bus;
mod cpu;
mod devices;
mod lane;
mod layout;
mod memory;
mod notice;
mod virtio;
