//! The tables as a guest follows them, and as ACPICA's own disassembler reads them.

use super::*;
use crate::micro::growth::Room;
use crate::micro::memory::GuestRam;
use crate::units::ByteSize;
use std::process::Command;
use vm_memory::GuestMemoryMmap;

fn platform(cpus: u32, devices: usize) -> Platform {
    Platform {
        cpus,
        room: Room {
            cpus,
            memory_slots: 0,
        },
        virtio: (0..devices).map(|index| VirtioNode { index }).collect(),
        watchdog: true,
    }
}

/// One that may grow to `room` processors and more memory.
fn growing(cpus: u32, room: u32, devices: usize) -> Platform {
    Platform {
        room: Room {
            cpus: room,
            memory_slots: layout::MEMORY_SLOTS,
        },
        ..platform(cpus, devices)
    }
}

/// The table at `address`, whose checksum is right.
fn table_at(ram: &GuestMemoryMmap, address: u64) -> Vec<u8> {
    let length: u32 = ram.read_obj(GuestAddress(address + 4)).unwrap();
    let mut table = vec![0; length as usize];
    ram.read_slice(&mut table, GuestAddress(address)).unwrap();
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    assert_eq!(sum, 0, "checksum of the table at {address:#x}");
    table
}

fn word(table: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(table[at..at + 8].try_into().unwrap())
}

/// All tables, by signature, as they are found from the root pointer on.
fn found(platform: &Platform) -> Vec<(String, Vec<u8>)> {
    let ram = GuestRam::allocate(ByteSize::from_mib(2), false).unwrap();
    let ram = ram.guest();
    let root = write(ram, platform).unwrap();
    let mut rsdp = [0; 36];
    ram.read_slice(&mut rsdp, root).unwrap();
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    for part in [&rsdp[..20], &rsdp[..]] {
        let sum = part.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "checksum of the root pointer");
    }
    let xsdt = table_at(ram, word(&rsdp, 24));
    let roots = xsdt[36..].chunks(8).map(|entry| word(entry, 0));
    let mut tables: Vec<_> = roots.map(|address| table_at(ram, address)).collect();
    let dsdt = word(&tables[0], 140);
    tables.push(table_at(ram, dsdt));
    tables.push(xsdt);
    let named = |table: Vec<u8>| {
        let name = String::from_utf8(table[..4].to_vec()).unwrap();
        (name, table)
    };
    tables.into_iter().map(named).collect()
}

#[test]
fn every_table_is_found_from_the_root_pointer_on() {
    let names =
        |platform| -> Vec<_> { found(&platform).into_iter().map(|(name, _)| name).collect() };
    assert_eq!(
        names(platform(1, 0)),
        ["FACP", "APIC", "WDAT", "DSDT", "XSDT"]
    );
    let without = Platform {
        watchdog: false,
        ..platform(255, 64)
    };
    assert_eq!(names(without), ["FACP", "APIC", "DSDT", "XSDT"]);
}

#[test]
fn what_cannot_be_named_or_does_not_fit_is_refused() {
    let ram = GuestRam::allocate(ByteSize::from_mib(2), false).unwrap();
    for (cpus, devices, words) in [
        (4097, 0, "4097 processors are more than"),
        (1, 4097, "4097 virtio devices are more than"),
        (4096, 0, "do not fit into 131056 bytes"),
    ] {
        let error = write(ram.guest(), &platform(cpus, devices)).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    // The most that `check` lets through.
    write(ram.guest(), &platform(254, 1024 + 3)).unwrap();
    write(ram.guest(), &growing(1, 254, 1024 + 3)).unwrap();
    let small = GuestRam::allocate(ByteSize::from_bytes(512 << 10), false).unwrap();
    let error = write(small.guest(), &platform(1, 1)).unwrap_err();
    assert!(matches!(error, AcpiError::Write(_)));
}

/// What `iasl -d` makes of all tables, or `None` where it is not installed.
fn disassembled(platform: &Platform) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for (name, table) in found(platform) {
        let file = folder.path().join(&name);
        std::fs::write(&file, table).unwrap();
        let Ok(output) = Command::new("iasl").arg("-d").arg(&file).output() else {
            eprintln!("SKIPPED: iasl (Debian: acpica-tools) is not installed");
            return None;
        };
        let said = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        for complaint in ["Error", "Warning", "Could not", "Invalid"] {
            assert!(!said.contains(complaint), "{name}: {said}");
        }
        text += &std::fs::read_to_string(file.with_extension("dsl")).unwrap();
    }
    Some(text)
}

#[test]
fn acpicas_disassembler_reads_all_tables_and_finds_the_devices() {
    let Some(text) = disassembled(&growing(3, 5, 20)) else {
        return;
    };
    for words in [
        "Hardware Reduced (V5) : 1",
        "Reset Register Supported (V2) : 1",
        "8042 Present on ports 60/64 (V2) : 0",
        "Device (C002)",
        "Device (V013)",
        "0xD0013000",
        "Name (_HID, \"ACPI0013\"",
        "Notify (\\_SB.PWRB, 0x80)",
        "Notify (\\_SB.VGEN, 0x80)",
        "Name (_HID, \"QEMU0001\")",
        "Device (C004)",
        "Notify (C004, One) // Device Check",
        "If ((CPUS > 0x04))",
        "Device (MEM7)",
        "Notify (MEM7, One) // Device Check",
        "MNEW ()",
        "Runtime Online Capable : 1",
        "Timer Period : 00000064",
    ] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    assert!(!text.contains("Unknown"), "{text}");
}

#[test]
fn what_cannot_grow_has_nothing_to_grow_with() {
    let dsdt = |platform| dsdt::dsdt(&platform);
    let holds = |table: &[u8], name: &[u8]| table.windows(name.len()).any(|four| four == name);
    let alone = dsdt(platform(2, 1));
    for name in [b"PLGR", b"CNEW", b"MNEW", b"MEM0", b"C002", b"_MAT"] {
        assert!(!holds(&alone, name), "{name:?}");
        assert!(holds(&dsdt(growing(2, 3, 1)), name), "{name:?}");
    }
    let mut only_memory = growing(2, 3, 1);
    only_memory.room.cpus = 2;
    let only_memory = dsdt(only_memory);
    assert!(holds(&only_memory, b"MNEW") && !holds(&only_memory, b"CNEW"));
}

/// What `acpiexec` says to a line typed at it, with these tables and all ports reading as zero.
fn executed(platform: &Platform, line: &str) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dsdt");
    std::fs::write(&file, dsdt::dsdt(platform)).unwrap();
    let mut command = Command::new("acpiexec");
    let Ok(output) = command.args(["-b", line]).arg(&file).output() else {
        eprintln!("SKIPPED: acpiexec (Debian: acpica-tools) is not installed");
        return None;
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!said.contains("AE_"), "{said}");
    Some(said)
}

#[test]
fn acpicas_interpreter_finds_a_piece_of_memory_where_it_is_said_to_be() {
    let [start, length] = [6_u64 << 30, 5 << 27];
    let line = format!("evaluate \\_SB.RNGE {start:#x} {length:#x}");
    let Some(said) = executed(&growing(1, 3, 1), &line) else {
        return;
    };
    // The descriptor (ACPI 6.5, 6.4.3.5.1), and the end tag.
    let mut expected = vec![0x8a, 0x2b, 0, 0, 0xc, 3];
    for value in [0, start, start + length - 1, 0, length] {
        expected.extend(value.to_le_bytes());
    }
    let words = said.split_whitespace();
    let bytes: Vec<u8> = words
        .filter(|word| word.len() == 2)
        .filter_map(|word| u8::from_str_radix(word, 16).ok())
        .collect();
    let found = bytes.windows(expected.len()).any(|some| some == expected);
    assert!(found, "no {expected:x?} in {said}");
}

#[test]
fn acpicas_interpreter_finds_nothing_where_nothing_is_plugged_in() {
    let platform = growing(1, 3, 1);
    for device in ["C001", "C002", "MEM0", "MEM7"] {
        let Some(said) = executed(&platform, &format!("evaluate \\_SB.{device}._STA")) else {
            return;
        };
        assert!(said.contains("[Integer] = 0000000000000000"), "{said}");
    }
    for method in ["CNEW", "MNEW"] {
        executed(&platform, &format!("evaluate \\_SB.{method}"));
    }
}
