//! The table of interrupt controllers: a local APIC a processor, one IOAPIC for lines 0 to 23.
//!
//! Processors from APIC id 255 on have entries for x2APIC, as 255 is the old APICs' broadcast (ACPI 6.5,
//! 5.2.12.2 and 5.2.12.12). There is no 8259, so no line is wired otherwise than to its number.
//! Processors that may come are listed, too, as capable of it: Linux takes no others later.

use super::{Platform, table};
use crate::micro::layout;

/// Of ACPI 6.3 and later.
const REVISION: u8 = 5;

/// The first APIC id that only an x2APIC has.
const FIRST_X2APIC: u32 = 255;

/// Of a processor: there is one.
pub(super) const ENABLED: u32 = 1;

/// Of a processor: there may be one some day (ACPI 6.3 and later).
const ONLINE_CAPABLE: u32 = 1 << 1;

/// The IOAPIC's own id, as KVM has it.
const IOAPIC_ID: u8 = 0;

/// The table.
pub(super) fn madt(platform: &Platform) -> Vec<u8> {
    let mut contents = Vec::new();
    // Both controllers stand below 4 GiB.
    contents.extend_from_slice(&low(layout::LOCAL_APIC));
    contents.extend_from_slice(&0_u32.to_le_bytes());
    for id in 0..platform.room.cpus {
        let is_there = id < platform.cpus;
        let flags = if is_there { ENABLED } else { ONLINE_CAPABLE };
        contents.extend(processor(id, flags));
    }
    contents.extend_from_slice(&[1, 12, IOAPIC_ID, 0]);
    contents.extend_from_slice(&low(layout::IOAPIC));
    contents.extend_from_slice(&0_u32.to_le_bytes());
    table(*b"APIC", REVISION, &contents)
}

fn low(address: u64) -> [u8; 4] {
    u32::try_from(address).unwrap_or(u32::MAX).to_le_bytes()
}

/// The entry of a processor.
pub(super) fn processor(id: u32, flags: u32) -> Vec<u8> {
    let flags = flags.to_le_bytes();
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
    use crate::micro::growth::Room;

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
            assert_eq!(processor(id, ENABLED), expected, "{id}");
        }
    }

    #[test]
    fn processors_that_may_come_are_listed_as_capable_of_it() {
        let platform = |cpus, room| Platform {
            cpus,
            room: Room {
                cpus: room,
                memory_slots: 0,
            },
            virtio: vec![],
            watchdog: false,
        };
        let alone = madt(&platform(2, 2));
        assert_eq!(alone.len(), 36 + 8 + 2 * 8 + 12);
        let with_room = madt(&platform(2, 4));
        assert_eq!(with_room.len(), alone.len() + 2 * 8);
        let flags = [0, 1, 2, 3].map(|id| with_room[44 + id * 8 + 4]);
        assert_eq!(flags, [1, 1, 2, 2]);
    }
}
