//! Files of an ext2, ext3 or ext4 on a partition, read by the crate ext4-view.
//!
//! ```text
//! disk ── partition's start ──▶ PartitionReader ──▶ ext4_view::Ext4 ──▶ Volume: links followed here
//! ```
//! A disk may be damaged, or made to do harm, and ext4-view takes some things at their word. So:
//! - the superblock is checked before: it would allocate what the counts in there ask for;
//! - the flag of metadata checksums is taken away, as GRUB ignores it: the checksum of a folder's index is
//!   made over as many bytes as that says it has, without a look at how many there are;
//! - links are followed here: theirs are read whole, however long they claim to be;
//! - no folder is searched that is larger than any real one.
//!
//! Invariant: a path that comes out of here is that of a regular file, without links, and can be printed.
//!
//! What is left: a tree of extents that leads to the same blocks over and over keeps it busy for long.

use std::fmt;
use std::io::{self, Write};
use std::rc::Rc;

use ext4_view::{Ext4, Ext4Error, Ext4Read, Metadata};

use super::partitions::Partition;
use crate::disk::ReadAt;

/// Where a superblock begins, and how long it is, in bytes.
const SUPERBLOCK: (u64, usize) = (1024, 1024);

/// Of the superblock's features that a reader need not know (`s_feature_ro_compat`), the second byte, and
/// in there the bit of metadata checksums.
const METADATA_CHECKSUMS: (usize, u8) = (0x65, 0x04);

/// Groups of blocks; 16 TiB have so many.
const MAX_GROUPS: u64 = 1 << 17;

/// Bytes of a folder; some 100,000 files.
const MAX_FOLDER: u64 = 16 << 20;

/// Names that a folder is asked for at most.
const MAX_NAMES: usize = 10_000;

/// Links on the way to a file, as in Linux (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Bytes of a path, as in Linux.
const MAX_PATH: usize = 4096;

/// Bytes that are copied at once.
const CHUNK: usize = 1 << 20;

/// What keeps a file system from being read.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Trouble {
    /// Its superblock cannot be true.
    #[error("{0}")]
    Damaged(&'static str),
    /// What ext4-view says.
    #[error(transparent)]
    Refused(#[from] Ext4Error),
}

/// A partition as a disk of its own.
struct PartitionReader {
    disk: Rc<dyn ReadAt>,
    start: u64,
    size: u64,
}

impl Ext4Read for PartitionReader {
    fn read(
        &mut self,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let end = offset.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err("the file system is larger than its partition".into());
        }
        self.disk.read_at(self.start + offset, into)?;
        let (begin, len) = SUPERBLOCK;
        if offset == begin && into.len() == len {
            let (byte, bit) = METADATA_CHECKSUMS;
            into[byte] &= !bit;
        }
        Ok(())
    }
}

/// An ext2, ext3 or ext4.
pub(super) struct Volume {
    fs: Ext4,
    /// Where it lies.
    pub(super) partition: Partition,
    /// As `root=UUID=` has it.
    pub(super) uuid: String,
}

/// Without all that ext4-view knows of its groups.
impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut it = f.debug_struct("Volume");
        it.field("partition", &self.partition)
            .finish_non_exhaustive()
    }
}

impl Volume {
    /// The file system on `partition`.
    pub(super) fn open(disk: &Rc<dyn ReadAt>, partition: &Partition) -> Result<Self, Ext4Trouble> {
        let mut reader = PartitionReader {
            disk: Rc::clone(disk),
            start: partition.start,
            size: partition.size,
        };
        let mut superblock = [0; SUPERBLOCK.1];
        reader
            .read(SUPERBLOCK.0, &mut superblock)
            .map_err(Ext4Error::Io)?;
        check(&superblock, partition.size)?;
        let fs = Ext4::load(Box::new(reader))?;
        Ok(Self {
            uuid: uuid(fs.uuid().as_bytes()),
            partition: partition.clone(),
            fs,
        })
    }

    /// The file at `path`, where it really is, and its size; nothing if it is not there.
    pub(super) fn file(&self, path: &str) -> Result<Option<(String, u64)>, Ext4Error> {
        let found = self.resolve(path)?;
        let files = found.filter(|(_, metadata)| metadata.file_type().is_regular_file());
        Ok(files.map(|(path, metadata)| (path, metadata.len())))
    }

    /// Whether there is a folder at `path`.
    pub(super) fn has_folder(&self, path: &str) -> Result<bool, Ext4Error> {
        let found = self.resolve(path)?;
        Ok(found.is_some_and(|(_, metadata)| metadata.is_dir()))
    }

    /// The names in the folder at `path`, in order; none if it is not there.
    pub(super) fn names(&self, path: &str) -> Result<Vec<String>, Ext4Error> {
        let Some((path, metadata)) = self.resolve(path)? else {
            return Ok(Vec::new());
        };
        if !metadata.is_dir() || metadata.len() > MAX_FOLDER {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        for entry in self.fs.read_dir(path.as_str())?.take(MAX_NAMES) {
            let entry = entry?;
            names.extend(entry.file_name().as_str().ok().map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// Copies the file at `path`, which [`file`](Self::file) has given, to `into`, at most `limit` bytes.
    pub(super) fn copy(
        &self,
        path: &str,
        limit: u64,
        into: &mut dyn Write,
    ) -> Result<u64, CopyError> {
        let mut file = self.fs.open(path).map_err(CopyError::Read)?;
        let mut chunk = vec![0; CHUNK];
        let mut copied = 0;
        loop {
            let mut filled = 0;
            while filled < CHUNK {
                match file.read_bytes(&mut chunk[filled..]) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) => return Err(CopyError::Read(error)),
                }
            }
            copied += filled as u64;
            if copied > limit {
                return Err(CopyError::TooLarge);
            }
            into.write_all(&chunk[..filled]).map_err(CopyError::Write)?;
            if filled < CHUNK {
                return Ok(copied);
            }
        }
    }

    /// Goes along `path` name by name, so that ext4-view never meets a link.
    fn resolve(&self, path: &str) -> Result<Option<(String, Metadata)>, Ext4Error> {
        let mut ahead = names_of(path);
        let mut behind: Vec<String> = Vec::new();
        let mut links = 0;
        let mut metadata = self.fs.symlink_metadata("/")?;
        while let Some(name) = ahead.pop() {
            if name == ".." {
                behind.pop();
                metadata = self.fs.symlink_metadata(path_of(&behind).as_str())?;
                continue;
            }
            if !metadata.is_dir() || metadata.len() > MAX_FOLDER {
                return Ok(None);
            }
            behind.push(name);
            let here = path_of(&behind);
            if here.len() > MAX_PATH || here.contains(char::is_control) {
                return Ok(None);
            }
            metadata = match self.fs.symlink_metadata(here.as_str()) {
                Ok(metadata) => metadata,
                Err(Ext4Error::NotFound) => return Ok(None),
                Err(error) => return Err(error),
            };
            if !metadata.is_symlink() {
                continue;
            }
            links += 1;
            if links > MAX_LINKS || metadata.len() > MAX_PATH as u64 {
                return Ok(None);
            }
            let target = self.fs.read_link(here.as_str())?;
            let Ok(target) = target.to_str() else {
                return Ok(None);
            };
            behind.pop();
            if target.starts_with('/') {
                behind.clear();
            }
            metadata = self.fs.symlink_metadata(path_of(&behind).as_str())?;
            ahead.extend(names_of(target));
            if ahead.len() > MAX_PATH {
                return Ok(None);
            }
        }
        Ok(Some((path_of(&behind), metadata)))
    }
}

/// What can go wrong while a file is copied.
#[derive(Debug)]
pub(super) enum CopyError {
    Read(Ext4Error),
    TooLarge,
    Write(io::Error),
}

/// The names of `path`, last first.
fn names_of(path: &str) -> Vec<String> {
    let names = path.rsplit('/').filter(|name| !matches!(*name, "" | "."));
    names.map(str::to_owned).collect()
}

fn path_of(names: &[String]) -> String {
    format!("/{}", names.join("/"))
}

/// Whether what the superblock claims is possible.
fn check(superblock: &[u8; SUPERBLOCK.1], size: u64) -> Result<(), Ext4Trouble> {
    let number = |at: usize| {
        let bytes = superblock[at..].first_chunk().copied();
        u64::from(u32::from_le_bytes(bytes.unwrap_or_default()))
    };
    let is_64_bit = number(0x60) & 0x80 != 0;
    let high = if is_64_bit { number(0x150) } else { 0 };
    let blocks = high << 32 | number(0x04);
    let (block_size, per_group) = (number(0x18), number(0x20));
    if block_size > 6 {
        return Err(Ext4Trouble::Damaged(
            "its blocks would be larger than 64 KiB",
        ));
    }
    if blocks > size >> (10 + block_size) {
        return Err(Ext4Trouble::Damaged("it is larger than its partition"));
    }
    if per_group == 0 || blocks / per_group >= MAX_GROUPS {
        return Err(Ext4Trouble::Damaged("it has too many groups of blocks"));
    }
    Ok(())
}

/// As people write 16 bytes that name something.
pub(super) fn uuid(bytes: &[u8; 16]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}
