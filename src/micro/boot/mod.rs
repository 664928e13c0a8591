//! Puts a kernel, its initrd and what it must be told into guest RAM.
//!
//! ```text
//!  1000 segments   2000 zero page or PVH start info   3000 PVH modules, memory map
//!  4000 PML4   5000 PDPT   6000–9fff page directories: the first 4 GiB, identity mapped
//!  20000 command line          9e000 generation id          e0000 ACPI
//!  100000 kernel ……… initrd, page aligned, ending where the RAM below the device hole does
//! ```
//! | Kernel                     | is told by            | starts in            |
//! |----------------------------|-----------------------|----------------------|
//! | bzImage                    | zero page             | 64-bit mode          |
//! | ELF with the PVH note      | `hvm_start_info`      | 32-bit mode, no pages |
//! | other ELF                  | zero page             | 64-bit mode          |
//!
//! Sources: Linux, Documentation/arch/x86/boot.rst (2.12 and later) and zero-page.rst; Xen, docs/misc/pvh.
//! Invariants: all that a file says is checked against its length and the RAM before it is followed;
//! nothing is loaded below [`layout::KERNEL_START`].

mod bzimage;
mod elf;
mod memory_map;
mod pvh;
mod reset_vector;
mod segments;
mod zero_page;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

pub(crate) use segments::Segments;

use super::layout;
use super::memory::PAGE;

/// The table of segments.
const SEGMENTS: u64 = 0x1000;

/// Zero page, or PVH start info.
const PARAMETERS: u64 = 0x2000;

/// Page tables: one PML4, one PDPT, four page directories.
const PAGE_TABLES: u64 = 0x4000;

/// The command line.
const COMMAND_LINE: u64 = 0x2_0000;

/// Bytes that a kernel takes of its command line, with the zero that ends it, unless it says
/// otherwise: `COMMAND_LINE_SIZE` of x86.
const COMMAND_LINE_SIZE: u32 = 2048;

/// How the boot processor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// In which mode.
    pub(crate) mode: Mode,
    /// Where.
    pub(crate) address: GuestAddress,
    /// What the kernel is told: the zero page for RSI, or the start info for EBX.
    pub(crate) parameters: GuestAddress,
}

/// The mode of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// 64-bit, with these page tables.
    Long {
        /// Address of the PML4.
        page_tables: GuestAddress,
    },
    /// 32-bit, without paging.
    Protected,
}

impl Entry {
    /// The segments of this mode; their table stands at the address.
    pub(crate) fn segments(&self) -> (Segments, GuestAddress) {
        let segments = match self.mode {
            Mode::Long { .. } => Segments::LONG,
            Mode::Protected => Segments::PROTECTED,
        };
        (segments, GuestAddress(SEGMENTS))
    }
}

/// Why a kernel cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// A file cannot be read.
    #[error("cannot read the {file}")]
    Read {
        /// `kernel` or `initrd`.
        file: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel is of no known format.
    #[error("the kernel is neither a bzImage nor an x86-64 ELF file")]
    Format,
    /// The kernel's format is known, but not what it asks for.
    #[error("the kernel cannot be started: {why}")]
    Unsupported {
        /// The rest of the sentence.
        why: &'static str,
    },
    /// The kernel file ends too soon.
    #[error("the kernel ends after {length} bytes, but speaks of {needed}")]
    Truncated {
        /// Bytes there.
        length: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// The kernel is too large.
    #[error("the kernel needs RAM from {start:#x} to {end:#x}, which ends at {ram_end:#x}")]
    KernelTooLarge {
        /// Where it would begin.
        start: u64,
        /// Where it would end.
        end: u64,
        /// Where RAM ends.
        ram_end: u64,
    },
    /// The initrd is too large.
    #[error("the initrd of {bytes} bytes does not fit into the {room} bytes above the kernel")]
    InitrdTooLarge {
        /// Its size.
        bytes: u64,
        /// Room for it.
        room: u64,
    },
    /// The command line is too long.
    #[error("the kernel command line has {length} bytes; this kernel takes {limit}")]
    CommandLine {
        /// Its length.
        length: u64,
        /// The kernel's limit.
        limit: u64,
    },
    /// The command line has a zero in it.
    #[error("the kernel command line has a zero byte in it")]
    CommandLineZero,
    /// The kernel cannot be put into RAM.
    #[error("cannot load the kernel")]
    Load(#[source] linux_loader::loader::Error),
    /// Something else cannot.
    #[error("cannot write the {what} into guest RAM")]
    Write {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
}

/// What the kernel is told, whatever the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    /// Begin and length of the initrd.
    initrd: Option<(u64, u64)>,
    /// ACPI's root pointer.
    rsdp: u64,
    /// All RAM.
    ram_bytes: u64,
}

/// A kernel in RAM.
#[derive(Debug)]
struct Loaded {
    /// Where the kernel starts.
    address: GuestAddress,
    /// First byte beyond what it needs for itself.
    end: u64,
    /// Bytes of command line that it takes, with the zero.
    command_line_size: u64,
    /// First byte that an initrd may not reach.
    initrd_limit: u64,
    way: Way,
}

/// How a kernel is told.
#[derive(Debug)]
enum Way {
    /// By the zero page, which begins with this header.
    ZeroPage(Box<linux_loader::bootparam::setup_header>),
    /// By PVH.
    Pvh,
}

/// Loads kernel, initrd and command line and writes what the kernel is told. `rsdp` is the address of
/// ACPI's root pointer, `ram_bytes` the length of all RAM.
///
/// # Errors
/// The kernel is none that can be started, or something does not fit.
pub(crate) fn load(
    ram: &GuestMemoryMmap,
    kernel: &File,
    initrd: Option<&File>,
    command_line: &str,
    rsdp: GuestAddress,
    ram_bytes: u64,
) -> Result<Entry, BootError> {
    let low_end = layout::ram(ram_bytes)[0].1;
    let loaded = load_kernel(ram, kernel, low_end)?;
    let limit = loaded.command_line_size.saturating_sub(1);
    write_command_line(ram, command_line, limit)?;
    let told = Told {
        initrd: initrd
            .map(|file| load_initrd(ram, file, loaded.end, loaded.initrd_limit.min(low_end)))
            .transpose()?,
        rsdp: rsdp.0,
        ram_bytes,
    };
    let mode = match loaded.way {
        Way::Pvh => {
            pvh::write(ram, &told)?;
            Mode::Protected
        }
        Way::ZeroPage(header) => {
            zero_page::write(ram, *header, &told)?;
            let page_tables = write_page_tables(ram)?;
            Mode::Long { page_tables }
        }
    };
    let entry = Entry {
        mode,
        address: loaded.address,
        parameters: GuestAddress(PARAMETERS),
    };
    reset_vector::place(ram)?;
    let (segments, at) = entry.segments();
    write(ram, "segments", &segments.table(), at.0)?;
    Ok(entry)
}

fn load_kernel(ram: &GuestMemoryMmap, kernel: &File, low_end: u64) -> Result<Loaded, BootError> {
    let mut magic = [0; 4];
    read_at(kernel, &mut magic, 0)?;
    if magic == elf::MAGIC {
        elf::load(ram, kernel, low_end)
    } else {
        bzimage::load(ram, kernel, low_end)
    }
}

/// Reads from the kernel; what is shorter is no kernel.
fn read_at(kernel: &File, bytes: &mut [u8], offset: u64) -> Result<(), BootError> {
    kernel
        .read_exact_at(bytes, offset)
        .map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => BootError::Format,
            _ => BootError::Read {
                file: "kernel",
                source,
            },
        })
}

fn length_of(file: &File, name: &'static str) -> Result<u64, BootError> {
    let metadata = file.metadata();
    metadata
        .map(|metadata| metadata.len())
        .map_err(|source| BootError::Read { file: name, source })
}

fn write_command_line(ram: &GuestMemoryMmap, text: &str, limit: u64) -> Result<(), BootError> {
    let length = text.len() as u64;
    if length > limit {
        return Err(BootError::CommandLine { length, limit });
    }
    if text.as_bytes().contains(&0) {
        return Err(BootError::CommandLineZero);
    }
    let text = [text.as_bytes(), &[0]].concat();
    write(ram, "command line", &text, COMMAND_LINE)
}

/// Loads the initrd as high as it may be; returns its begin and length.
fn load_initrd(
    ram: &GuestMemoryMmap,
    initrd: &File,
    kernel_end: u64,
    limit: u64,
) -> Result<(u64, u64), BootError> {
    let bytes = length_of(initrd, "initrd")?;
    let start = initrd_start(bytes, kernel_end, limit)?;
    let length = usize::try_from(bytes).unwrap_or(usize::MAX);
    let mut initrd = initrd;
    io::Seek::rewind(&mut initrd).map_err(|source| BootError::Read {
        file: "initrd",
        source,
    })?;
    ram.read_exact_volatile_from(GuestAddress(start), &mut initrd, length)
        .map_err(|source| BootError::Write {
            what: "initrd",
            source,
        })?;
    Ok((start, bytes))
}

/// Where an initrd begins that ends at or below `limit`.
fn initrd_start(bytes: u64, kernel_end: u64, limit: u64) -> Result<u64, BootError> {
    let floor = kernel_end.next_multiple_of(PAGE);
    let start = limit.checked_sub(bytes).map(|start| start / PAGE * PAGE);
    start
        .filter(|start| *start >= floor)
        .ok_or(BootError::InitrdTooLarge {
            bytes,
            room: limit.saturating_sub(floor),
        })
}

/// Maps the first 4 GiB to themselves in pages of 2 MiB; returns the address of the tables.
fn write_page_tables(ram: &GuestMemoryMmap) -> Result<GuestAddress, BootError> {
    let tables: Vec<u8> = page_tables(PAGE_TABLES)
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect();
    write(ram, "page tables", &tables, PAGE_TABLES)?;
    Ok(GuestAddress(PAGE_TABLES))
}

/// PML4, PDPT and four page directories, for address `at`.
fn page_tables(at: u64) -> Vec<u64> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const ENTRIES: usize = 512;
    let mut tables = vec![0; 6 * ENTRIES];
    tables[0] = (at + PAGE) | PRESENT_WRITABLE;
    for (entry, directory) in tables[ENTRIES..].iter_mut().take(4).zip(2_u64..) {
        *entry = (at + directory * PAGE) | PRESENT_WRITABLE;
    }
    for (entry, page) in tables[2 * ENTRIES..].iter_mut().zip(0_u64..) {
        *entry = page << 21 | LARGE | PRESENT_WRITABLE;
    }
    tables
}

fn write(
    ram: &GuestMemoryMmap,
    what: &'static str,
    bytes: &[u8],
    at: u64,
) -> Result<(), BootError> {
    ram.write_slice(bytes, GuestAddress(at))
        .map_err(|source| BootError::Write { what, source })
}

#[cfg(test)]
mod tests;
