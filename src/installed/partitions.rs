//! The partitions of a disk: GPT (UEFI 2.10, section 5.3), MBR with logical ones, or the disk as a whole.
//!
//! ```text
//! LBA 0    MBR: 4 entries of 16 bytes at 446, 0x55aa at 510     type 0xee: the table is a GPT
//!                 type 5, 0xf, 0x85 ─▶ EBR ─▶ EBR ─▶ …          one logical partition each, from number 5 on
//! LBA 1    GPT header ─▶ entries                                a sector has 512 bytes, or 4096
//! last     the header's copy, where the first is damaged
//! ```
//! The GPT is read here, not by gptman: that allocates what a header asks for, and asserts that entries
//! have 128 bytes.
//!
//! Invariants: at most [`MAX_PARTITIONS`]; each lies on the disk; the checksums of a GPT are right.

use std::collections::BTreeSet;
use std::io;

use crate::disk::ReadAt;

/// As many as a GPT has room for when it is made by any usual tool.
pub(super) const MAX_PARTITIONS: usize = 128;

/// Of an MBR, whatever the disk's own sectors have.
const MBR_SECTOR: u64 = 512;

/// Sizes that a sector of a disk with a GPT may have, in bytes.
const GPT_SECTORS: [u64; 2] = [512, 4096];

/// Bytes of a GPT's header that mean anything.
const GPT_HEADER: usize = 92;

/// Bytes of a GPT's table that are read at most: four times what usual tools make.
const MAX_GPT_TABLE: u64 = 64 << 10;

/// A part of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    /// As the kernel counts; none is the disk as a whole.
    pub(super) number: Option<u32>,
    /// Where it begins, in bytes.
    pub(super) start: u64,
    /// Bytes.
    pub(super) size: u64,
    /// What `root=PARTUUID=` calls it.
    pub(super) part_uuid: Option<String>,
}

/// What is wrong with a table.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// It lies where the disk's file cannot be read.
    #[error("cannot read it")]
    Read(#[from] io::Error),
    /// The MBR says that there is a GPT.
    #[error("it is a GPT, of which neither the header nor its copy is whole")]
    DamagedGpt,
}

/// The partitions of `disk`; the disk as a whole where it has no table.
pub(super) fn read(disk: &dyn ReadAt) -> Result<Vec<Partition>, TableError> {
    let whole = Partition {
        number: None,
        start: 0,
        size: disk.size(),
        part_uuid: None,
    };
    let Some(first) = mbr_sector(disk, 0)? else {
        return Ok(vec![whole]);
    };
    let entries = entries_of(&first);
    if entries
        .iter()
        .any(|entry| !matches!(entry.status, 0 | 0x80))
    {
        // The boot code of a FAT or of a boot loader, which ends in the same two bytes.
        return Ok(vec![whole]);
    }
    if entries.iter().any(|entry| entry.kind == 0xee) {
        return gpt(disk);
    }
    let found = mbr(disk, &first, &entries)?;
    Ok(if found.is_empty() { vec![whole] } else { found })
}

/// Of an MBR or EBR.
#[derive(Clone, Copy)]
struct Entry {
    status: u8,
    kind: u8,
    /// In sectors.
    start: u64,
    /// In sectors.
    size: u64,
}

/// The sector at `offset`, if it is the end of a boot sector.
fn mbr_sector(disk: &dyn ReadAt, offset: u64) -> io::Result<Option<[u8; 512]>> {
    let mut sector = [0; 512];
    let end = offset.checked_add(MBR_SECTOR);
    if end.is_none_or(|end| end > disk.size()) {
        return Ok(None);
    }
    disk.read_at(offset, &mut sector)?;
    Ok((sector[510..] == [0x55, 0xaa]).then_some(sector))
}

fn entries_of(sector: &[u8; 512]) -> [Entry; 4] {
    [0, 1, 2, 3].map(|index| {
        let entry = &sector[446 + index * 16..][..16];
        Entry {
            status: entry[0],
            kind: entry[4],
            start: u32_at(entry, 8).into(),
            size: u32_at(entry, 12).into(),
        }
    })
}

fn mbr(disk: &dyn ReadAt, first: &[u8; 512], entries: &[Entry]) -> io::Result<Vec<Partition>> {
    let signature = u32_at(first, 440);
    let mut found = Vec::new();
    let mut add = |number: u32, base: u64, entry: Entry| {
        let start = (base + entry.start) * MBR_SECTOR;
        let part_uuid = Some(format!("{signature:08x}-{number:02x}"));
        let end = start + entry.size * MBR_SECTOR;
        found.extend(on_disk(disk, number, start, end, part_uuid));
    };
    let mut extended = None;
    for (number, entry) in (1..).zip(entries) {
        match entry.kind {
            0 => {}
            0x05 | 0x0f | 0x85 => extended = extended.or(Some(entry.start)),
            _ => add(number, 0, *entry),
        }
    }
    let Some(extended) = extended else {
        return Ok(found);
    };
    let mut seen = BTreeSet::new();
    let mut at = extended;
    for number in (5..).take(MAX_PARTITIONS - 4) {
        let sector = mbr_sector(disk, at * MBR_SECTOR)?;
        let (Some(sector), true) = (sector, seen.insert(at)) else {
            break;
        };
        let [logical, next, ..] = entries_of(&sector);
        if logical.kind != 0 {
            add(number, at, logical);
        }
        if !matches!(next.kind, 0x05 | 0x0f | 0x85) {
            break;
        }
        at = extended + next.start;
    }
    Ok(found)
}

fn gpt(disk: &dyn ReadAt) -> Result<Vec<Partition>, TableError> {
    for sector in GPT_SECTORS {
        let last = (disk.size() / sector).saturating_sub(1);
        for at in [1, last] {
            if let Some(partitions) = gpt_at(disk, sector, at)? {
                return Ok(partitions);
            }
        }
    }
    Err(TableError::DamagedGpt)
}

/// What the header in the sector `at` tells, if it is one and whole.
fn gpt_at(disk: &dyn ReadAt, sector: u64, at: u64) -> io::Result<Option<Vec<Partition>>> {
    let mut header = [0; GPT_HEADER];
    if !reads(disk, at.checked_mul(sector), &mut header)? || !header.starts_with(b"EFI PART") {
        return Ok(None);
    }
    let told = u32_at(&header, 16);
    header[16..20].fill(0);
    let (table, count) = (u64_at(&header, 72), u32_at(&header, 80));
    let entry_size = u32_at(&header, 84);
    let size = u64::from(count) * u64::from(entry_size);
    let is_sound = u32_at(&header, 12) == 92
        && crc32fast::hash(&header) == told
        && u64_at(&header, 24) == at
        && entry_size >= 128
        && entry_size.is_power_of_two()
        && size <= MAX_GPT_TABLE;
    let Ok(size) = usize::try_from(size) else {
        return Ok(None);
    };
    let mut entries = vec![0; if is_sound { size } else { 0 }];
    if !is_sound
        || !reads(disk, table.checked_mul(sector), &mut entries)?
        || crc32fast::hash(&entries) != u32_at(&header, 88)
    {
        return Ok(None);
    }
    let entry_size = usize::try_from(entry_size).unwrap_or(usize::MAX);
    let entries = entries.chunks_exact(entry_size).take(MAX_PARTITIONS);
    let used = (1..)
        .zip(entries)
        .filter(|(_, entry)| entry[..16] != [0; 16]);
    let partitions = used.filter_map(|(number, entry)| {
        let start = u64_at(entry, 32).checked_mul(sector)?;
        let end = u64_at(entry, 40).checked_add(1)?.checked_mul(sector)?;
        on_disk(disk, number, start, end, Some(guid(&entry[16..32])))
    });
    Ok(Some(partitions.collect()))
}

/// Whether there is so much to read at `offset`; then it stands in `into`.
fn reads(disk: &dyn ReadAt, offset: Option<u64>, into: &mut [u8]) -> io::Result<bool> {
    let end = offset.and_then(|offset| offset.checked_add(into.len() as u64));
    let (Some(offset), true) = (offset, end.is_some_and(|end| end <= disk.size())) else {
        return Ok(false);
    };
    disk.read_at(offset, into)?;
    Ok(true)
}

/// The partition from `start` to `end`, as far as it lies on the disk.
fn on_disk(
    disk: &dyn ReadAt,
    number: u32,
    start: u64,
    end: u64,
    part_uuid: Option<String>,
) -> Option<Partition> {
    let size = end.min(disk.size()).checked_sub(start)?;
    (start > 0 && size > 0).then_some(Partition {
        number: Some(number),
        start,
        size,
        part_uuid,
    })
}

/// As people write a GUID, of which the first three parts are little-endian.
fn guid(bytes: &[u8]) -> String {
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let ordered = order.map(|index: usize| bytes[index]);
    super::ext4::uuid(&ordered)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |it| u32::from_le_bytes(*it))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |it| u64::from_le_bytes(*it))
}
