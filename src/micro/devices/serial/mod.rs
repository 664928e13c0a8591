//! The serial console: a 16550A whose other end is a pseudo terminal.
//!
//! ```text
//! guest ─ port write ─▶ Serial ─▶ Output ──▶ Pty main ═══ peer ──▶ console hub
//!   ▲                     │ FIFO, 64 bytes       │
//!   └── irqfd ◀── Line ◀──┴────── Input (lane) ◀─┘   stops reading while the FIFO is full
//! ```
//! Invariants: output waits for the hub, but no longer than a second for one that does not read;
//! input is read only as far as the FIFO has room. The pty outlives the guest's reboots.

pub(crate) mod console;
pub(crate) mod device;
pub(crate) mod input;
pub(crate) mod persist;
