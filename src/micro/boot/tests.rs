//! Kernels made by hand, loaded into real RAM.

use super::*;
use crate::micro::memory::GuestRam;
use crate::units::ByteSize;
use linux_loader::bootparam::boot_params;
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use std::io::Write;

const RSDP: GuestAddress = GuestAddress(layout::ACPI_START);
const RAM: u64 = 64 << 20;

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn ram(bytes: u64) -> GuestRam {
    GuestRam::allocate(ByteSize::from_bytes(bytes), false).unwrap()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A bzImage with one setup sector, and a kernel of 4 KiB of `c3`.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024];
    put(&mut image, 0x1f1, &[1]);
    put(&mut image, 0x1fe, &[0x55, 0xaa]);
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x20f_u16.to_le_bytes());
    put(&mut image, 0x211, &[1]);
    put(&mut image, 0x22c, &0x01ff_ffff_u32.to_le_bytes());
    put(&mut image, 0x234, &[1]);
    put(&mut image, 0x236, &1_u16.to_le_bytes());
    put(&mut image, 0x238, &100_u32.to_le_bytes());
    put(&mut image, 0x258, &0x20_0000_u64.to_le_bytes());
    put(&mut image, 0x260, &0x10_0000_u32.to_le_bytes());
    image.resize(1024 + 4096, 0xc3);
    image
}

/// An ELF file with one segment, 16 bytes of `c3` for 1 MiB, and perhaps the PVH note.
fn elf(with_note: bool) -> Vec<u8> {
    let mut image = vec![0; 0x200];
    put(&mut image, 0, b"\x7fELF\x02\x01\x01");
    put(&mut image, 16, &2_u16.to_le_bytes());
    put(&mut image, 18, &62_u16.to_le_bytes());
    put(&mut image, 24, &0x10_0004_u64.to_le_bytes());
    put(&mut image, 32, &64_u64.to_le_bytes());
    put(&mut image, 54, &56_u16.to_le_bytes());
    put(&mut image, 56, &(1 + u16::from(with_note)).to_le_bytes());
    let mut program = |at: usize, kind: u32, words: [u64; 6]| {
        put(&mut image, at, &kind.to_le_bytes());
        for (index, word) in words.iter().enumerate() {
            put(&mut image, at + 8 + index * 8, &word.to_le_bytes());
        }
    };
    program(64, 1, [0x100, 0x10_0000, 0x10_0000, 16, 0x2000, 4096]);
    program(120, 4, [0x180, 0, 0, 20, 20, 4]);
    put(&mut image, 0x100, &[0xc3; 16]);
    let note: Vec<u8> = [4_u32, 4, 18]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    put(&mut image, 0x180, &note);
    put(&mut image, 0x18c, b"Xen\0");
    put(&mut image, 0x190, &0x10_0008_u32.to_le_bytes());
    image
}

fn text(ram: &GuestRam, at: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    ram.guest()
        .read_slice(&mut bytes, GuestAddress(at))
        .unwrap();
    bytes
}

#[test]
fn a_bzimage_is_entered_in_64_bit_mode_and_told_by_the_zero_page() {
    let ram = ram(RAM);
    let initrd = file(&[7; 5000]);
    let kernel = file(&bzimage());
    let entry = load(ram.guest(), &kernel, Some(&initrd), "quiet", RSDP, RAM).unwrap();
    let page_tables = GuestAddress(0x4000);
    assert_eq!(entry.mode, Mode::Long { page_tables });
    assert_eq!(entry.address.0, 0x10_0200);
    assert_eq!(text(&ram, 0x10_0000, 4096), [0xc3; 4096]);
    assert_eq!(text(&ram, COMMAND_LINE, 6), b"quiet\0");

    let page: boot_params = ram.guest().read_obj(entry.parameters).unwrap();
    let header = page.hdr;
    // This kernel's highest address for an initrd is 32 MiB.
    let start = (32 << 20) - 8192;
    assert_eq!({ header.ramdisk_image }, start);
    assert_eq!({ header.ramdisk_size }, 5000);
    assert_eq!(text(&ram, u64::from(start), 5000), [7; 5000]);
    assert_eq!({ header.cmd_line_ptr }, 0x2_0000);
    assert_eq!(header.type_of_loader, 0xff);
    assert_eq!({ page.acpi_rsdp_addr }, RSDP.0);
    assert_eq!(page.e820_entries, 4);
    let last = page.e820_table[3];
    assert_eq!(({ last.addr }, { last.size }), (1 << 20, RAM - (1 << 20)));
}

#[test]
fn an_elf_kernel_with_the_note_is_entered_by_pvh() {
    let ram = ram(RAM);
    let initrd = file(&[7; 4097]);
    let kernel = file(&elf(true));
    let entry = load(ram.guest(), &kernel, Some(&initrd), "a=b", RSDP, RAM).unwrap();
    assert_eq!(entry.mode, Mode::Protected);
    assert_eq!(entry.address.0, 0x10_0008);
    assert_eq!(text(&ram, 0x10_0000, 17), [&[0xc3; 16][..], &[0]].concat());
    let info: hvm_start_info = ram.guest().read_obj(entry.parameters).unwrap();
    assert_eq!(info.magic.to_le_bytes(), [b'x', b'E' | 0x80, b'n', b'3']);
    assert_eq!((info.version, info.nr_modules), (1, 1));
    assert_eq!(info.rsdp_paddr, RSDP.0);
    assert_eq!(text(&ram, info.cmdline_paddr, 4), b"a=b\0");
    let module: hvm_modlist_entry = ram
        .guest()
        .read_obj(GuestAddress(info.modlist_paddr))
        .unwrap();
    assert_eq!((module.paddr, module.size), (RAM - 8192, 4097));
    let third = GuestAddress(info.memmap_paddr + 3 * 24);
    let range: hvm_memmap_table_entry = ram.guest().read_obj(third).unwrap();
    assert_eq!((info.memmap_entries, range.type_), (4, 1));
    assert_eq!((range.addr, range.size), (1 << 20, RAM - (1 << 20)));
}

#[test]
fn an_elf_kernel_without_the_note_is_entered_at_its_entry_in_64_bit_mode() {
    let ram = ram(RAM);
    let kernel = file(&elf(false));
    let entry = load(ram.guest(), &kernel, None, "", RSDP, RAM).unwrap();
    assert!(matches!(entry.mode, Mode::Long { .. }));
    assert_eq!(entry.address.0, 0x10_0004);
    let page: boot_params = ram.guest().read_obj(entry.parameters).unwrap();
    let header = page.hdr;
    assert_eq!({ header.header }.to_le_bytes(), *b"HdrS");
    assert_eq!({ header.ramdisk_size }, 0);
}

#[test]
fn what_is_no_kernel_or_does_not_fit_is_refused_by_size() {
    let cut = |mut image: Vec<u8>, length: usize| {
        image.truncate(length);
        image
    };
    let mut far = elf(true);
    put(&mut far, 24 + 64, &0x4000_0000_u64.to_le_bytes());
    let mut elsewhere = elf(false);
    put(&mut elsewhere, 24, &0x50_0000_u64.to_le_bytes());
    for (kernel, words) in [
        (vec![], "neither a bzImage nor"),
        (vec![0; 5000], "neither a bzImage nor"),
        (cut(elf(true), 30), "neither a bzImage nor"),
        (cut(elf(true), 0x108), "speaks of 272"),
        (cut(elf(true), 100), "speaks of 176"),
        (cut(bzimage(), 1024), "speaks of 1025"),
        (far, "needs RAM from 0x40000000"),
        (elsewhere, "its entry is not in what is loaded"),
    ] {
        let ram = ram(RAM);
        let error = load(ram.guest(), &file(&kernel), None, "", RSDP, RAM).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn initrd_and_command_line_have_bounds() {
    let ram = ram(RAM);
    let long = "x".repeat(101);
    let initrd = tempfile::tempfile().unwrap();
    initrd.set_len(RAM).unwrap();
    for (command_line, initrd, words) in [
        (&*long, None, "has 101 bytes; this kernel takes 100"),
        ("a\0b", None, "zero byte"),
        (
            &long[..100],
            Some(&initrd),
            "of 67108864 bytes does not fit into the 30408704 bytes",
        ),
    ] {
        let error = load(
            ram.guest(),
            &file(&bzimage()),
            initrd,
            command_line,
            RSDP,
            RAM,
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn an_initrd_stands_on_a_page_above_the_kernel() {
    for (bytes, kernel_end, limit, expected) in [
        (1, 0x1000, 0x3000, Some(0x2000)),
        (0x1000, 0x1001, 0x3000, Some(0x2000)),
        (0x1001, 0x1001, 0x3000, None),
        (0x2000, 0x1000, 0x3000, Some(0x1000)),
        (0, 0x1000, 0x3000, Some(0x3000)),
        (u64::MAX, 0, 0x3000, None),
    ] {
        let start = initrd_start(bytes, kernel_end, limit).ok();
        assert_eq!(start, expected, "{bytes:#x}");
    }
}

#[test]
fn page_tables_map_4_gib_to_themselves() {
    let tables = page_tables(0x4000);
    let entry =
        |table: u64, index: u64| tables[usize::try_from((table - 0x4000) / 8 + index).unwrap()];
    for address in [0_u64, 0x10_0000, 0x3fff_ffff, 0x4000_0000, 0xffff_ffff] {
        let directories = entry(0x4000, address >> 39) & !0xfff;
        let directory = entry(directories, address >> 30) & !0xfff;
        let page = entry(directory, address >> 21 & 511);
        assert_eq!(page & 0xfff, 0x83);
        assert_eq!((page & !0xfff) + (address & 0x1f_ffff), address);
    }
    assert_eq!(tables.len() * 8, 6 * 4096);
    assert_eq!(entry(0x4000, 1), 0);
    assert_eq!(entry(0x5000, 4), 0);
}
