//! virtio: what a device is to the rest of the engine, and how it is reached (virtio-mmio).
//!
//! ```text
//!  guest driver ─ registers ─▶ mmio::Transport ─ DRIVER_OK ─▶ Device::activate ─▶ QueueHandlers
//!       │                                                                             │ one lane
//!       ├─ notify ──▶ ioeventfd ─────────────────────────────────────────────────────▶│ (thread)
//!       └◀── irqfd ◀───── Interrupt ◀──────────────────────────── used buffers ◀──────┘ each
//! ```
//! Source of all formats: Virtual I/O Device (VIRTIO) Version 1.2, OASIS.

pub(crate) mod chain;
pub(crate) mod device;
#[cfg(test)]
pub(crate) mod fixture;
pub(crate) mod interrupt;
pub(crate) mod mmio;
