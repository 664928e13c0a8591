//! `hvm_start_info`: what a PVH kernel is told.
//!
//! ```text
//!  2000 start info ─▶ 3000 one module: the initrd
//!                  └▶ 3020 memory map
//! ```
//! Source: Xen, xen/include/public/arch-x86/hvm/start_info.h.

use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::{BootError, COMMAND_LINE, PARAMETERS, Told, memory_map};

/// `xEn3` with the 0x80 bit of the E set.
const MAGIC: u32 = 0x336e_c578;

/// The version with a memory map.
const VERSION: u32 = 1;

/// The modules; the memory map follows them.
const MODULES: u64 = 0x3000;

/// Writes start info, module list and memory map.
pub(super) fn write(ram: &GuestMemoryMmap, told: &Told) -> Result<(), BootError> {
    let modules: Vec<_> = told.initrd.iter().map(module).collect();
    let map: Vec<_> = memory_map::ranges(told.ram_bytes)
        .iter()
        .map(entry)
        .collect();
    let memmap_paddr = MODULES + size_of::<hvm_modlist_entry>() as u64;
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: count(&modules),
        modlist_paddr: if modules.is_empty() { 0 } else { MODULES },
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: told.rsdp,
        memmap_paddr,
        memmap_entries: count(&map),
        ..Default::default()
    };
    put(ram, &[info], PARAMETERS)?;
    put(ram, &modules, MODULES)?;
    put(ram, &map, memmap_paddr)
}

fn module((start, length): &(u64, u64)) -> hvm_modlist_entry {
    hvm_modlist_entry {
        paddr: *start,
        size: *length,
        ..Default::default()
    }
}

fn entry(range: &memory_map::Range) -> hvm_memmap_table_entry {
    hvm_memmap_table_entry {
        addr: range.start,
        size: range.length,
        type_: range.kind as u32,
        reserved: 0,
    }
}

/// The lists have a handful of entries.
fn count<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}

fn put<T: ByteValued>(ram: &GuestMemoryMmap, items: &[T], at: u64) -> Result<(), BootError> {
    let size = size_of::<T>() as u64;
    for (item, index) in items.iter().zip(0..) {
        ram.write_obj(*item, GuestAddress(at + index * size))
            .map_err(|source| BootError::Write {
                what: "PVH start info",
                source,
            })?;
    }
    Ok(())
}
