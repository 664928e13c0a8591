//! The table of interrupt controllers: a local APIC a processor, one IOAPIC for lines 0 to 23.
//!
//! Processors from APIC id 255 on have entries for x2APIC, as 255 is the old APICs' broadcast (ACPI 6.5,
//! 5.2.12.2 and 5.2.12.12). There is no 8259, so no line is wired otherwise than to its number.

use super::table;
use crate::micro::layout;

/// Of ACPI 6.3 and later.
const REVISION: u8 = 5;

/// The first APIC id that only an x2APIC has.
const FIRST_X2APIC: u32 = 255;

const ENABLED: u32 = 1;

/// The IOAPIC's own id, as KVM has it.
const IOAPIC_ID: u8 = 0;

/// The table for `cpus` processors.
pub(super) fn madt(cpus: u32) -> Vec<u8> {
    let mut contents = Vec::new();
    // Both controllers stand below 4 GiB.
    contents.extend_from_slice(&low(layout::LOCAL_APIC));
    contents.extend_from_slice(&0_u32.to_le_bytes());
    for id in 0..cpus {
        contents.extend(processor(id));
    }
    contents.extend_from_slice(&[1, 12, IOAPIC_ID, 0]);
    contents.extend_from_slice(&low(layout::IOAPIC));
    contents.extend_from_slice(&0_u32.to_le_bytes());
    table(*b"APIC", REVISION, &contents)
}

fn low(address: u64) -> [u8; 4] {
    u32::try_from(address).unwrap_or(u32::MAX).to_le_bytes()
}

fn processor(id: u32) -> Vec<u8> {
    let flags = ENABLED.to_le_bytes();
    match u8::try_from(id) {
        Ok(small) if id < FIRST_X2APIC => [&[0, 8, small, small][..], &flags].concat(),
        _ => {
            let id = id.to_le_bytes();
            [&[9, 16, 0, 0][..], &id, &flags, &id].concat()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_beyond_254_have_x2apic_entries() {
        for (id, expected) in [
            (0, vec![0, 8, 0, 0, 1, 0, 0, 0]),
            (254, vec![0, 8, 254, 254, 1, 0, 0, 0]),
            (
                255,
                vec![9, 16, 0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 255, 0, 0, 0],
            ),
            (256, vec![9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            assert_eq!(processor(id), expected, "{id}");
        }
        assert_eq!(madt(2).len(), 36 + 8 + 2 * 8 + 12);
    }
}
