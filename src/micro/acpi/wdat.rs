//! The watchdog action table, and with it the registers of cocoon's watchdog.
//!
//! ```text
//!  port  620 + 0  RUNNING    reads 1 while it runs; 1 starts it anew, 0 stops it
//!        620 + 4  COUNTDOWN  periods that it is given; a new value holds from the next start or reload
//!        620 + 8  LEFT       reads the periods left; any write reloads: they are COUNTDOWN again
//!        620 + c  FIRED      reads 1 after a reset by the watchdog; any write makes it 0
//! ```
//! All registers are four bytes and are read and written whole. A period is [`PERIOD`]. When no period
//! is left while it runs, the VM is reset and FIRED is 1. COUNTDOWN outside the limits below counts as
//! the nearer one.
//!
//! Why this table: Debian's cloud kernel 6.1 has `wdat_wdt` (a module, found by this table) and none of
//! the drivers for ISA or PCI watchdogs that other VMMs emulate.
//! Source: Microsoft, "Hardware Watchdog Timers Design Specification"; ACPICA's `actbl3.h` has the layout.

use std::time::Duration;

use acpi_tables::gas::AccessSize;

use super::{bytes, port, table};
use crate::micro::layout;

/// Offset of the register that says whether the watchdog runs.
pub(crate) const RUNNING: u64 = 0;

/// Offset of the register with the periods that it is given.
pub(crate) const COUNTDOWN: u64 = 4;

/// Offset of the register with the periods that are left.
pub(crate) const LEFT: u64 = 8;

/// Offset of the register that says whether the last reset was the watchdog's.
pub(crate) const FIRED: u64 = 12;

/// Bytes of all registers.
pub(crate) const LENGTH: u64 = 16;

/// One count. Guests set whole seconds; a tenth makes what is left come out right.
pub(crate) const PERIOD: Duration = Duration::from_millis(100);

/// Fewest periods that may be set: a second, which a busy host can keep a guest waiting for.
pub(crate) const MIN_COUNT: u32 = 10;

/// Most periods that may be set: an hour.
pub(crate) const MAX_COUNT: u32 = 36_000;

/// The watchdog is there, and stands still while the guest sleeps.
const ENABLED_STOPPED_IN_SLEEP: u8 = 0x81;

/// What is done with a register.
#[derive(Clone, Copy)]
enum Instruction {
    /// Compare it with the value.
    ReadValue = 0,
    /// Take it as a count.
    ReadCountdown = 1,
    /// Write the value.
    WriteValue = 2,
    /// Write a count.
    WriteCountdown = 3,
}

/// Actions, what they do with which register, and the value.
const ACTIONS: [(u8, Instruction, u64, u32); 10] = [
    (1, Instruction::WriteValue, LEFT, 1),    // reset the countdown
    (4, Instruction::ReadCountdown, LEFT, 0), // query the current countdown
    (5, Instruction::ReadCountdown, COUNTDOWN, 0), // query the countdown period
    (6, Instruction::WriteCountdown, COUNTDOWN, 0), // set the countdown period
    (8, Instruction::ReadValue, RUNNING, 1),  // query the running state
    (9, Instruction::WriteValue, RUNNING, 1), // start
    (10, Instruction::ReadValue, RUNNING, 0), // query the stopped state
    (11, Instruction::WriteValue, RUNNING, 0), // stop
    (32, Instruction::ReadValue, FIRED, 1),   // query whether it fired
    (33, Instruction::WriteValue, FIRED, 0),  // forget that it fired
];

/// Bytes of the watchdog's header, behind the table's.
const HEADER: u32 = 32;

/// The table.
pub(super) fn wdat() -> Vec<u8> {
    let mut contents = Vec::new();
    contents.extend_from_slice(&HEADER.to_le_bytes());
    // No PCI device: segment (two bytes), bus, device, function; three reserved.
    contents.extend_from_slice(&[0xff, 0, 0xff, 0xff, 0xff, 0, 0, 0]);
    let period = u32::try_from(PERIOD.as_millis()).unwrap_or(u32::MAX);
    for number in [period, MAX_COUNT, MIN_COUNT] {
        contents.extend_from_slice(&number.to_le_bytes());
    }
    contents.extend_from_slice(&[ENABLED_STOPPED_IN_SLEEP, 0, 0, 0]);
    contents.extend_from_slice(&(ACTIONS.len() as u32).to_le_bytes());
    for (action, instruction, register, value) in ACTIONS {
        contents.extend_from_slice(&[action, instruction as u8, 0, 0]);
        contents.extend(bytes(&port_of(register)));
        contents.extend_from_slice(&value.to_le_bytes());
        contents.extend_from_slice(&u32::MAX.to_le_bytes());
    }
    table(*b"WDAT", 1, &contents)
}

/// The register at `offset`.
fn port_of(offset: u64) -> acpi_tables::gas::GAS {
    let offset = u16::try_from(offset).unwrap_or(0);
    port(layout::WATCHDOG_PORT + offset, 4, AccessSize::DwordAccess)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_names_a_register_of_the_watchdog() {
        let table = wdat();
        let entries: Vec<_> = table[36 + HEADER as usize..].chunks(24).collect();
        assert_eq!(entries.len(), ACTIONS.len());
        for entry in entries {
            let at = u64::from_le_bytes(entry[8..16].try_into().unwrap());
            let offset = at - u64::from(layout::WATCHDOG_PORT);
            assert!(offset < LENGTH && offset.is_multiple_of(4), "{at:#x}");
            // In I/O space, 32 bits, read and written by four bytes.
            assert_eq!(entry[4..8], [1, 32, 0, 3]);
        }
    }
}
