//! The watchdog: resets a guest that does not say in time that it is well.
//!
//! ```text
//! guest ── start, reload, stop ─▶ Watchdog ── timerfd ─▶ Expiry (lane) ─▶ Notice::Reset
//! VM ───── pause, resume ────────────┘ keeps what was left
//! ```
//! Registers: `acpi::wdat`, whose table tells guests of them. Invariant: time passes for it only
//! while the VM runs.

pub(crate) mod device;
pub(crate) mod expiry;
pub(crate) mod persist;
