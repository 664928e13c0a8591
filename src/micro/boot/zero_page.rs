//! The zero page: what a kernel of the Linux boot protocol is told.
//!
//! Source: Linux, Documentation/arch/x86/zero-page.rst. Addresses in it are 32 bits wide: command line
//! and initrd stand below 4 GiB.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{BootError, COMMAND_LINE, PARAMETERS, Told, memory_map};

/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

/// Writes the page.
pub(super) fn write(
    ram: &GuestMemoryMmap,
    header: setup_header,
    told: &Told,
) -> Result<(), BootError> {
    ram.write_obj(page(header, told), GuestAddress(PARAMETERS))
        .map_err(|source| BootError::Write {
            what: "zero page",
            source,
        })
}

fn page(header: setup_header, told: &Told) -> boot_params {
    let mut page = boot_params {
        hdr: header,
        acpi_rsdp_addr: told.rsdp,
        ..Default::default()
    };
    page.hdr.type_of_loader = LOADER_UNDEFINED;
    page.hdr.cmd_line_ptr = low(COMMAND_LINE);
    page.hdr.cmdline_size = low(told.command_line);
    let (start, length) = told.initrd.unwrap_or_default();
    page.hdr.ramdisk_image = low(start);
    page.hdr.ramdisk_size = low(length);
    let map = memory_map::ranges(told.ram_bytes);
    let mut table = page.e820_table;
    for (entry, range) in table.iter_mut().zip(&map) {
        *entry = boot_e820_entry {
            addr: range.start,
            size: range.length,
            type_: range.kind as u32,
        };
        page.e820_entries += 1;
    }
    page.e820_table = table;
    page
}

/// An address or length below 4 GiB, as all are that this page takes.
fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
