//! What a PC's processor finds where it starts: here, the way to the reset register.
//!
//! ```text
//!  F000:FFF0   mov dx, RESET_PORT │ mov al, RESET_VALUE │ out dx, al │ hlt, for ever
//! ```
//! Linux restarts a machine without legacy hardware by EFI and, as there is none here, by a jump to the
//! BIOS in real mode; the reset register of ACPI is only for those that say `reboot=acpi`.

use vm_memory::GuestMemoryMmap;

use super::{BootError, write};
use crate::micro::layout;

/// The code, 16-bit.
fn code() -> [u8; 9] {
    let [low, high] = layout::RESET_PORT.to_le_bytes();
    [
        0xba,
        low,
        high, // mov dx, imm16
        0xb0,
        layout::RESET_VALUE, // mov al, imm8
        0xee,                // out dx, al
        0xf4,                // hlt
        0xeb,
        0xfd, // jmp to the hlt
    ]
}

/// Writes it.
///
/// # Errors
/// There is no RAM.
pub(super) fn place(ram: &GuestMemoryMmap) -> Result<(), BootError> {
    write(ram, "reset vector", &code(), layout::RESET_VECTOR)
}
