//! ELF kernels (`vmlinux`), by PVH where they have its note, else by the 64-bit Linux protocol.
//!
//! ```text
//!  file  header ─▶ program headers ─▶ LOAD: bytes to physical addresses   NOTE: "Xen", 18: PVH's entry
//! ```
//! linux-loader reads the note and loads; what the headers say is held against file and RAM before.
//! Source: System V ABI, chapters 4 and 5; Xen, docs/misc/pvh.

use std::fs::File;

use linux_loader::bootparam::setup_header;
use linux_loader::loader::{Elf, KernelLoader, PvhBootCapability};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::{BootError, COMMAND_LINE_SIZE, Loaded, Way, length_of, read_at};
use crate::micro::layout;

/// How an ELF file begins.
pub(super) const MAGIC: [u8; 4] = *b"\x7fELF";

/// 64-bit, little-endian, version 1.
const CLASS: [u8; 3] = [2, 1, 1];

/// Machine number of x86-64.
const X86_64: u16 = 62;

/// Bytes of the file's header.
const HEADER: usize = 64;

/// Bytes of a program header.
const PROGRAM_HEADER: usize = 56;

/// Program headers that are read; Linux has five.
const MAX_PROGRAM_HEADERS: usize = 64;

const LOAD: u32 = 1;
const NOTE: u32 = 4;

/// Linux's 2 MiB alignment times eight: `CONFIG_PHYSICAL_ALIGN` may not exceed it.
const ALIGNMENT: u32 = 16 << 20;

/// One program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Program {
    kind: u32,
    offset: u64,
    physical: u64,
    in_file: u64,
    in_ram: u64,
}

/// Loads the kernel where it says.
pub(super) fn load(
    ram: &GuestMemoryMmap,
    kernel: &File,
    low_end: u64,
) -> Result<Loaded, BootError> {
    let length = length_of(kernel, "kernel")?;
    let mut header = [0; HEADER];
    read_at(kernel, &mut header, 0)?;
    let (offset, count) = program_headers(&header)?;
    let mut programs = vec![0; count * PROGRAM_HEADER];
    let needed = offset.saturating_add(programs.len() as u64);
    if needed > length {
        return Err(BootError::Truncated { length, needed });
    }
    read_at(kernel, &mut programs, offset)?;
    let programs: Vec<_> = programs.as_chunks().0.iter().map(Program::parse).collect();
    let end = check(&programs, length, low_end)?;

    let mut file = kernel;
    let floor = Some(GuestAddress(layout::KERNEL_START));
    let loaded = Elf::load(ram, None, &mut file, floor).map_err(BootError::Load)?;
    let (address, way) = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(address) => (address, Way::Pvh),
        _ => (
            loaded.kernel_load,
            Way::ZeroPage(Box::new(made_up_header())),
        ),
    };
    if !(layout::KERNEL_START..end).contains(&address.0) {
        let why = "its entry is not in what is loaded";
        return Err(BootError::Unsupported { why });
    }
    Ok(Loaded {
        address,
        end,
        command_line_size: COMMAND_LINE_SIZE,
        initrd_limit: u64::MAX,
        way,
    })
}

/// Where the program headers stand, and how many there are.
fn program_headers(header: &[u8; HEADER]) -> Result<(u64, usize), BootError> {
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    if header[..4] != MAGIC || header[4..7] != CLASS || half(18) != X86_64 {
        return Err(BootError::Format);
    }
    let count = usize::from(half(56));
    for (holds, why) in [
        (
            usize::from(half(54)) == PROGRAM_HEADER,
            "its program headers are of an unknown size",
        ),
        (
            (1..=MAX_PROGRAM_HEADERS).contains(&count),
            "it has no program headers, or too many",
        ),
    ] {
        if !holds {
            return Err(BootError::Unsupported { why });
        }
    }
    Ok((word(header, 32), count))
}

impl Program {
    fn parse(bytes: &[u8; PROGRAM_HEADER]) -> Self {
        Self {
            kind: u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            offset: word(bytes, 8),
            physical: word(bytes, 24),
            in_file: word(bytes, 32),
            in_ram: word(bytes, 40),
        }
    }
}

/// The 8 bytes at `at`.
fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |word| u64::from_le_bytes(*word))
}

/// Checks that what the headers speak of is in the file and fits; returns the kernel's end.
fn check(programs: &[Program], length: u64, low_end: u64) -> Result<u64, BootError> {
    let mut kernel_end = 0;
    for program in programs {
        let needed = program.offset.saturating_add(program.in_file);
        if matches!(program.kind, LOAD | NOTE) && needed > length {
            return Err(BootError::Truncated { length, needed });
        }
        if program.kind != LOAD {
            continue;
        }
        let start = program.physical;
        let end = start.saturating_add(program.in_ram.max(program.in_file));
        if start < layout::KERNEL_START {
            let why = "part of it is to be loaded below 1 MiB";
            return Err(BootError::Unsupported { why });
        }
        if end > low_end {
            return Err(BootError::KernelTooLarge {
                start,
                end,
                ram_end: low_end,
            });
        }
        kernel_end = kernel_end.max(end);
    }
    match kernel_end {
        0 => Err(BootError::Unsupported {
            why: "nothing of it is to be loaded",
        }),
        end => Ok(end),
    }
}

/// What a bzImage would bring: a bare ELF kernel reads it all the same.
fn made_up_header() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: 0x5372_6448,
        kernel_alignment: ALIGNMENT,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(kind: u32, offset: u64, physical: u64, in_file: u64, in_ram: u64) -> Program {
        Program {
            kind,
            offset,
            physical,
            in_file,
            in_ram,
        }
    }

    #[test]
    fn program_headers_are_held_against_file_and_ram() {
        const MIB: u64 = 1 << 20;
        for (programs, expected) in [
            (vec![program(LOAD, 64, MIB, 100, MIB)], Ok(2 * MIB)),
            (
                vec![
                    program(LOAD, 64, 4 * MIB, 1, 1),
                    program(LOAD, 64, MIB, 1, 1),
                ],
                Ok(4 * MIB + 1),
            ),
            (vec![program(NOTE, 0, 0, 64, 0)], Err("nothing of it")),
            (vec![program(NOTE, 901, 0, 100, 0)], Err("speaks of 1001")),
            (vec![program(LOAD, u64::MAX, MIB, 2, 2)], Err("speaks of")),
            (vec![program(LOAD, 0, MIB - 1, 2, 2)], Err("below 1 MiB")),
            (vec![program(LOAD, 0, MIB, 2, u64::MAX)], Err("needs RAM")),
            (vec![program(LOAD, 0, 8 * MIB, 0, 1)], Err("needs RAM")),
            (
                vec![program(7, u64::MAX, 0, 9, 9), program(LOAD, 0, MIB, 1, 1)],
                Ok(MIB + 1),
            ),
        ] {
            match (check(&programs, 1000, 8 * MIB), expected) {
                (Ok(end), Ok(expected)) => assert_eq!(end, expected, "{programs:?}"),
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
                (got, _) => panic!("{programs:?}: {got:?}"),
            }
        }
    }
}
