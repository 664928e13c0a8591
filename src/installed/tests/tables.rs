//! Partition tables by sfdisk, and what is done to them.

use super::fixture::{self, BOOT, Disk, ROOT, SECTOR, Tree};
use super::{DEBIAN_TABLE, error, found};
use crate::installed::content;
use crate::installed::partitions::{self, MAX_PARTITIONS, Partition, TableError};

fn numbers(disk: &Disk) -> Vec<Option<u32>> {
    let partitions = partitions::read(disk.open().as_ref()).unwrap();
    partitions.iter().map(|it| it.number).collect()
}

fn partition(number: u32, sector: u64, sectors: u64, part_uuid: &str) -> Partition {
    Partition {
        number: Some(number),
        start: sector * SECTOR,
        size: sectors * SECTOR,
        part_uuid: Some(part_uuid.to_owned()),
    }
}

/// An MBR with two primary partitions, and two logical ones.
const LOGICAL: &str = "label: dos\nlabel-id: 0x1234abcd\n\
    1: start=2048, size=2048, type=83\n2: start=4096, size=36864, type=5\n\
    5: start=6144, size=2048, type=82\n6: start=10240, size=28672, type=83\n";

#[test]
fn a_gpt_is_read_as_sfdisk_has_written_it() {
    if !fixture::can_make_disks() {
        return;
    }
    let disk = Disk::partitioned(40, DEBIAN_TABLE);
    let found = partitions::read(disk.open().as_ref()).unwrap();
    assert_eq!(found.len(), 3);
    assert_eq!(
        found[0],
        partition(1, 8192, 57344, "99999999-8888-7777-6666-555555555555")
    );
    assert_eq!(numbers(&disk), [Some(1), Some(14), Some(15)]);
}

#[test]
fn a_gpt_is_read_from_its_copy_where_the_first_is_damaged() {
    if !fixture::can_make_disks() {
        return;
    }
    let disk = Disk::partitioned(40, DEBIAN_TABLE);
    let expected = partitions::read(disk.open().as_ref()).unwrap();
    // The header's number of entries, then the first partition's start.
    for at in [SECTOR + 80, 2 * SECTOR + 32] {
        let before = disk.bytes(at, 1);
        disk.write(at, &[before[0] ^ 1]);
        assert_eq!(
            partitions::read(disk.open().as_ref()).unwrap(),
            expected,
            "{at}"
        );
        let last = (40 << 20) - SECTOR;
        disk.write(last, b"X");
        let damaged = partitions::read(disk.open().as_ref());
        assert!(
            matches!(damaged, Err(TableError::DamagedGpt)),
            "{damaged:?}"
        );
        disk.write(last, b"E");
        disk.write(at, &before);
    }
    disk.write(SECTOR, b"X");
    disk.write((40 << 20) - SECTOR, b"X");
    assert_eq!(
        error(&disk),
        "cannot use the disk's partition table: it is a GPT, of which neither the header nor its copy is whole"
    );
}

#[test]
fn a_gpt_with_honest_checksums_may_lie_about_all_else() {
    if !fixture::can_make_disks() {
        return;
    }
    let disk = Disk::partitioned(40, DEBIAN_TABLE);
    disk.write((40 << 20) - SECTOR, b"X");
    // Where the entries are, how many, their size.
    let table: [(usize, u64, usize); 6] = [
        (72, u64::MAX, 8),
        (72, 1 << 55, 8),
        (80, u64::from(u32::MAX), 4),
        (84, u64::from(u32::MAX), 4),
        (84, 0, 4),
        (84, 136, 4),
    ];
    for (at, value, len) in table {
        let before = disk.bytes(SECTOR, 92);
        let mut header = before.clone();
        header[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        header[16..20].fill(0);
        let checksum = crc32fast::hash(&header);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
        disk.write(SECTOR, &header);
        let damaged = partitions::read(disk.open().as_ref());
        assert!(
            matches!(damaged, Err(TableError::DamagedGpt)),
            "{at} {value}: {damaged:?}"
        );
        disk.write(SECTOR, &before);
    }
    assert_eq!(numbers(&disk).len(), 3);
}

#[test]
fn a_system_on_a_logical_partition_is_found() {
    if !fixture::can_make_disks() {
        return;
    }
    let config = "menuentry a { linux /boot/vmlinuz root=/dev/sda6 ro\ninitrd /boot/initrd.img }";
    let tree = Tree::root()
        .file("boot/grub/grub.cfg", config)
        .file("boot/vmlinuz", "kernel")
        .file("boot/initrd.img", "initrd");
    let disk = Disk::partitioned(24, LOGICAL)
        .ext4(2048, 1, BOOT, &Tree::new(), &[])
        .ext4(10240, 14, ROOT, &tree, &[]);
    let found_partitions = partitions::read(disk.open().as_ref()).unwrap();
    let expected = [
        partition(1, 2048, 2048, "1234abcd-01"),
        partition(5, 6144, 2048, "1234abcd-05"),
        partition(6, 10240, 28672, "1234abcd-06"),
    ];
    assert_eq!(found_partitions, expected);
    let installed = found(&disk);
    assert_eq!(installed.kernel.to_string(), "/boot/vmlinuz of partition 6");
    assert_eq!(
        installed.cmdline,
        format!("{{console}} root=UUID={ROOT} ro")
    );
}

#[test]
fn logical_partitions_that_lead_in_circles_end() {
    if !fixture::can_make_disks() {
        return;
    }
    let disk = Disk::partitioned(24, LOGICAL);
    // The second logical partition's table says that the next one is the first.
    let second = (4096..10240)
        .rev()
        .find(|sector| disk.bytes(sector * SECTOR + 510, 2) == [0x55, 0xaa]);
    let second = second.unwrap() * SECTOR;
    disk.write(second + 446 + 16 + 4, &[5]);
    disk.write(second + 446 + 16 + 8, &[0; 4]);
    assert_eq!(numbers(&disk), [Some(1), Some(5), Some(6)]);
}

#[test]
fn a_disk_has_no_more_partitions_than_a_gpt_of_usual_size() {
    if !fixture::can_make_disks() {
        return;
    }
    let lines: String = (0..200)
        .map(|number| format!("start={}, size=8\n", 2048 + number * 8))
        .collect();
    let disk = Disk::partitioned(4, &format!("label: gpt\ntable-length: 200\n{lines}"));
    assert_eq!(numbers(&disk).len(), MAX_PARTITIONS);
}

#[test]
fn a_disk_without_a_table_is_one_partition() {
    let disk = Disk::new(1);
    assert_eq!(numbers(&disk), [None]);
    // Boot code, as of a FAT, where a table would be.
    disk.write(446, b"boot code");
    disk.write(510, &[0x55, 0xaa]);
    assert_eq!(numbers(&disk), [None]);
    assert_eq!(
        error(&disk),
        "the disk has no partition with an operating system (found: nothing that is known)"
    );
    assert_eq!(numbers(&Disk::new(0)), [None]);
}

#[test]
fn a_disk_whose_systems_are_on_other_file_systems_says_which() {
    if !fixture::can_make_disks() {
        return;
    }
    let table =
        "label: gpt\n1: start=2048, size=20480, type=uefi\n2: start=22528, size=20480, type=swap\n";
    let disk = Disk::partitioned(24, table);
    let swap = Disk::new(10);
    if fixture::run("mkfs.vfat", &["--offset=2048", disk.path(), "10240"], "").is_some() {
        fixture::run("mkswap", &["-q", swap.path()], "").unwrap();
        disk.write(22528 * SECTOR, &swap.bytes(0, 8192));
        let expected = "the disk has no partition with an operating system (found: vfat, swap)";
        assert_eq!(error(&disk), expected);
    }
}

fn content_of(disk: &Disk, index: usize) -> Option<&'static str> {
    let partitions = partitions::read(disk.open().as_ref()).unwrap();
    content::name(disk.open().as_ref(), &partitions[index])
}

#[test]
fn other_file_systems_are_known_by_what_their_tools_write() {
    let table: [(&str, &[&str], &str); 6] = [
        ("mkfs.xfs", &["-q"], "xfs"),
        ("mkfs.btrfs", &["-q"], "btrfs"),
        ("mkfs.vfat", &["-F", "32"], "vfat"),
        ("mkfs.vfat", &["-F", "16"], "vfat"),
        ("mkswap", &[], "swap"),
        ("mke2fs", &["-q"], "ext4"),
    ];
    for (tool, options, expected) in table {
        let disk = Disk::new(320);
        let arguments = [options, &[disk.path()]].concat();
        if fixture::run(tool, &arguments, "").is_some() {
            assert_eq!(content_of(&disk, 0), Some(expected), "{tool}");
        }
    }
}
