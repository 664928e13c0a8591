//! Power: the guest's ways to end or begin anew, and ours to speak to it by ACPI.
//!
//! ```text
//! SLEEP_PORT +0 sleep control   w: SLP_EN and SLP_TYP 5 ──▶ Notice::PowerOff
//!            +1 sleep status    r: 0, never woken
//!            +2 reset           w: RESET_VALUE ──▶ Notice::Reset
//!            +4 events, 4 bytes r: acpi::EVENT_* since the last read ◀── press_button, generation_changed,
//!                                                                     │   grown
//!                                                                     └──▶ EVENT_GSI (irqfd)
//! ```
//! Formats: ACPI 6.5, 4.8.3.7 (sleep registers), 4.8.3.6 (reset), 5.6.9 (generic event device).

pub(crate) mod device;
pub(crate) mod persist;
