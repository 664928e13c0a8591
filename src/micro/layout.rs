//! Where everything stands in a guest: addresses, ports, interrupt lines.
//!
//! ```text
//! 0                   640K   896K 1M                    3G          4G
//! ├ boot structures ──┤ ... ├ACPI┤ RAM: kernel … initrd ├─ devices ──┤ RAM that did not fit below, plugged ▶
//!                                                       │ virtio-mmio  D0000000, 4 KiB each
//!                                                       │ IOAPIC FEC00000, LAPIC FEE00000, TSS FFFBD000
//! ```
//! x86-64 only. aarch64 would have a layout of its own here: RAM from 2 GiB, GIC, PL011.

/// First address of the hole that devices use below 4 GiB; RAM beyond it continues at
/// [`HIGH_RAM_START`].
pub(crate) const HOLE_START: u64 = 3 << 30;

/// Where RAM that does not fit below the hole begins.
pub(crate) const HIGH_RAM_START: u64 = 4 << 30;

/// ACPI tables, the root pointer first: Linux looks for it between here and 1 MiB.
pub(crate) const ACPI_START: u64 = 0xe_0000;

/// End of the room for ACPI tables.
pub(crate) const ACPI_END: u64 = RESET_VECTOR;

/// Where a PC's processor starts, F000:FFF0: 16 bytes.
pub(crate) const RESET_VECTOR: u64 = 0xf_fff0;

/// Where kernels are loaded.
pub(crate) const KERNEL_START: u64 = 0x10_0000;

/// A page that the generation id stands in (`devices::vmgenid`); reserved from here to 640 KiB.
pub(crate) const GENERATION_ID: u64 = 0x9_e000;

/// First virtio-mmio device.
pub(crate) const VIRTIO_START: u64 = 0xd000_0000;

/// Registers of one virtio-mmio device, in bytes.
pub(crate) const VIRTIO_SIZE: u64 = 0x1000;

/// KVM's IOAPIC.
pub(crate) const IOAPIC: u64 = 0xfec0_0000;

/// KVM's local APICs.
pub(crate) const LOCAL_APIC: u64 = 0xfee0_0000;

/// Three pages that KVM needs on Intel hosts.
pub(crate) const TSS: u64 = 0xfffb_d000;

/// A page that KVM needs on Intel hosts.
pub(crate) const IDENTITY_MAP: u64 = 0xfffb_c000;

/// First port of the serial console (COM1), 8 ports.
pub(crate) const SERIAL_PORT: u16 = 0x3f8;

/// Interrupt line of the serial console.
pub(crate) const SERIAL_GSI: u32 = 4;

/// ACPI sleep control register, one byte: S5 powers off.
pub(crate) const SLEEP_PORT: u16 = 0x600;

/// ACPI sleep status register, one byte.
pub(crate) const SLEEP_STATUS_PORT: u16 = 0x601;

/// ACPI reset register, one byte.
pub(crate) const RESET_PORT: u16 = 0x602;

/// What the reset register must be given.
pub(crate) const RESET_VALUE: u8 = 1;

/// Which events the generic event device has to tell, four bytes: reading takes them
/// (`acpi::EVENT_*`).
pub(crate) const EVENT_PORT: u16 = 0x604;

/// Interrupt line of the generic event device.
pub(crate) const EVENT_GSI: u32 = 5;

/// Where a panicking kernel says so (`QEMU0001`, docs/specs/pvpanic in QEMU's sources), one byte.
pub(crate) const PANIC_PORT: u16 = 0x505;

/// Linux takes no longer command line on x86 (`COMMAND_LINE_SIZE`), in bytes without the final zero.
pub(crate) const MAX_CMDLINE: usize = 2047;

/// First of 16 ports of the watchdog.
pub(crate) const WATCHDOG_PORT: u16 = 0x620;

/// First port of the registers that say what has been plugged in (`devices::plug`).
pub(crate) const PLUG_PORT: u16 = 0x640;

/// Pieces of memory that can be plugged in between two boots of a guest, as with Cloud Hypervisor. Each
/// is a device of its own in the ACPI tables.
pub(crate) const MEMORY_SLOTS: u32 = 8;

/// Memory that is plugged in begins at multiples of this: the largest block that Linux takes into use as
/// a whole on x86-64 (`MAX_BLOCK_SIZE`, arch/x86/mm/init_64.c), and a multiple of the largest page.
const PLUG_ALIGNMENT: u64 = 2 << 30;

/// Interrupt lines of virtio devices. With more devices than lines they are shared, which edges
/// allow: each of Linux's handlers asks its own device.
pub(crate) const VIRTIO_GSIS: std::ops::RangeInclusive<u32> = 6..=23;

/// Registers of virtio-mmio device `index`.
pub(crate) fn virtio_address(index: usize) -> u64 {
    VIRTIO_START + VIRTIO_SIZE * index as u64
}

/// Interrupt line of virtio-mmio device `index`.
pub(crate) fn virtio_gsi(index: usize) -> u32 {
    let lines = VIRTIO_GSIS.end() - VIRTIO_GSIS.start() + 1;
    VIRTIO_GSIS.start() + u32::try_from(index % lines as usize).unwrap_or(0)
}

/// Pieces of guest RAM of `bytes` in total: address and length, ascending.
pub(crate) fn ram(bytes: u64) -> Vec<(u64, u64)> {
    if bytes <= HOLE_START {
        vec![(0, bytes)]
    } else {
        vec![(0, HOLE_START), (HIGH_RAM_START, bytes - HOLE_START)]
    }
}

/// Where memory is plugged in when RAM ends at `ram_end`: above the hole and all that there is.
pub(crate) fn plug_address(ram_end: u64) -> u64 {
    ram_end.max(HIGH_RAM_START).next_multiple_of(PLUG_ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_plugged_in_above_the_hole_and_all_that_there_is() {
        for (end_mib, expected_gib) in [
            (256, 4),
            (3 << 10, 4),
            ((4 << 10) + 512, 6),
            (6 << 10, 6),
            ((6 << 10) + 128, 8),
        ] {
            assert_eq!(
                plug_address(end_mib << 20),
                expected_gib << 30,
                "{end_mib} MiB"
            );
        }
    }

    #[test]
    fn ram_goes_around_the_hole() {
        for (gib, expected) in [
            (1, vec![(0, 1 << 30)]),
            (3, vec![(0, 3 << 30)]),
            (4, vec![(0, 3 << 30), (4 << 30, 1 << 30)]),
            (64, vec![(0, 3 << 30), (4 << 30, 61 << 30)]),
        ] {
            assert_eq!(ram(gib << 30), expected, "{gib} GiB");
        }
    }

    #[test]
    fn lines_are_shared_from_the_nineteenth_device_on() {
        assert_eq!(virtio_gsi(0), 6);
        assert_eq!(virtio_gsi(17), 23);
        assert_eq!(virtio_gsi(18), 6);
    }
}
