//! pvpanic: how a guest's kernel says that it panicked (`QEMU0001`).
//!
//! ```text
//! PANIC_PORT, 1 byte   r: PANICKED, the one event that it knows
//!                      w: PANICKED ──▶ Notice::Panicked
//! ```
//! Source: docs/specs/pvpanic in QEMU's sources; Linux's `drivers/misc/pvpanic`.

pub(crate) mod device;
