//! The header of a qcow2 file (QEMU, `docs/interop/qcow2.rst`), read with distrust.
//!
//! ```text
//!   header ─▶ L1 table ─▶ L2 tables ─▶ clusters         all within the file, and bounded
//!      └─▶ backing file, data file: named, never opened
//! ```
//! A base image comes from anywhere. An engine opens what the header names, as root: so a file that
//! names another one is refused here, before anything else reads it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// `QFI\xfb`.
pub const MAGIC: [u8; 4] = [b'Q', b'F', b'I', 0xfb];

/// Of version 2; version 3 goes on to 104 bytes, and to the kind of compression.
const SIZE_OF_V2: usize = 72;
const SIZE_OF_V3: usize = 104;
const COMPRESSION_TYPE: usize = 104;

/// Cluster sizes that the format allows: 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// The largest disk that the engines open (Cloud Hypervisor's limit).
const MAX_SIZE: u64 = 16 << 40;

/// The largest tables that QEMU itself opens (`QCOW_MAX_L1_SIZE`, `QCOW_MAX_REFTABLE_SIZE`).
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFTABLE_BYTES: u64 = 8 << 20;

/// The longest name of a backing file that the format allows.
const MAX_NAME: usize = 1023;

/// Incompatible features, by bit.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;

/// In an entry of the L1 table, and of an L2 table, where the next thing stands.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const IS_COMPRESSED: u64 = 1 << 62;

/// What is believed of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Bytes of the disk.
    pub virtual_size: u64,
    /// Clusters may be compressed by zstd, not zlib.
    pub zstd: bool,
    /// Whoever wrote it did not close it: its reference counts may be wrong.
    pub dirty: bool,
    /// Its clusters have parts.
    pub subclusters: bool,
    /// It holds states of the disk that were saved inside of it.
    pub snapshots: u32,
    cluster_bits: u32,
    l1_offset: u64,
    l1_entries: u64,
}

/// Why a file is refused as a qcow2 image.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum HeaderError {
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    #[error("it is no qcow2 image")]
    Magic,
    #[error("it is cut short: its {0} lies behind the end of the file")]
    Short(&'static str),
    #[error("it is a qcow2 image of version {0}, and only 2 and 3 are known")]
    Version(u32),
    #[error("it takes its data from another file, {0:?}, which is never opened")]
    Backing(String),
    #[error("it keeps its data in another file, which is never opened")]
    DataFile,
    #[error("it is encrypted")]
    Encrypted,
    #[error("it says of itself that it is corrupt: qemu-img check -r may repair it")]
    Corrupt,
    #[error("it needs a feature that is not known (incompatible bit {0})")]
    Feature(u32),
    #[error("its {what} is {given}, which no qcow2 image has")]
    Field { what: &'static str, given: u64 },
    #[error("its disk has {0} bytes, more than the 16 TiB that an engine opens")]
    TooLarge(u64),
    #[error("its {0} is larger than any disk of its size needs")]
    Table(&'static str),
}

/// Numbers in the header, by their offset.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[at..at + 4]);
        u32::from_be_bytes(bytes)
    }

    fn u64(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[at..at + 8]);
        u64::from_be_bytes(bytes)
    }
}

/// Reads and checks the header of `file`, and that its tables lie within it.
///
/// # Errors
/// See [`HeaderError`]; nothing but `file` was opened.
pub fn inspect(file: &File) -> Result<Header, HeaderError> {
    let length = file.metadata()?.len();
    let mut bytes = [0; COMPRESSION_TYPE + 8];
    let read = read_up_to(file, &mut bytes)?;
    if !bytes.starts_with(&MAGIC) {
        return Err(HeaderError::Magic);
    }
    if read < SIZE_OF_V2 {
        return Err(HeaderError::Short("header"));
    }
    let fields = Fields(&bytes);
    let version = fields.u32(4);
    let features = match version {
        2 => 0,
        3 if read < SIZE_OF_V3 => return Err(HeaderError::Short("header")),
        3 => fields.u64(72),
        other => return Err(HeaderError::Version(other)),
    };
    refuse_references(file, &fields, features)?;
    let header = read_fields(&fields, version, features)?;
    check_places(&fields, &header, length)?;
    check_tables(file, &header, length)?;
    Ok(header)
}

/// What would make a reader open another file, or ask for a key.
fn refuse_references(file: &File, fields: &Fields<'_>, features: u64) -> Result<(), HeaderError> {
    let (backing, length) = (fields.u64(8), fields.u32(16));
    if backing != 0 || length != 0 {
        let mut name = [0; MAX_NAME];
        let length = usize::try_from(length).unwrap_or(MAX_NAME).min(MAX_NAME);
        // Only for the message: a name that cannot be read is refused like any other.
        let known = file.read_exact_at(&mut name[..length], backing).is_ok();
        let name = if known { &name[..length] } else { &[] };
        return Err(HeaderError::Backing(
            String::from_utf8_lossy(name).into_owned(),
        ));
    }
    if features & DATA_FILE != 0 {
        return Err(HeaderError::DataFile);
    }
    if fields.u32(32) != 0 {
        return Err(HeaderError::Encrypted);
    }
    if features & CORRUPT != 0 {
        return Err(HeaderError::Corrupt);
    }
    match features & !KNOWN {
        0 => Ok(()),
        unknown => Err(HeaderError::Feature(unknown.trailing_zeros())),
    }
}

fn read_fields(fields: &Fields<'_>, version: u32, features: u64) -> Result<Header, HeaderError> {
    let wrong = |what, given: u64| Err(HeaderError::Field { what, given });
    let (cluster_bits, size) = (fields.u32(20), fields.u64(24));
    if !CLUSTER_BITS.contains(&cluster_bits) {
        return wrong("number of cluster bits", cluster_bits.into());
    }
    if size > MAX_SIZE {
        return Err(HeaderError::TooLarge(size));
    }
    if size == 0 || !size.is_multiple_of(512) {
        return wrong("disk's size", size);
    }
    let mut zstd = false;
    if version == 3 {
        let (order, header_size) = (fields.u32(96), fields.u32(100));
        if order > 6 {
            return wrong("width of reference counts", order.into());
        }
        if header_size < 104 || header_size > 1 << cluster_bits || header_size % 8 != 0 {
            return wrong("header's size", header_size.into());
        }
        if features & COMPRESSION != 0 {
            let kind = if header_size > 104 {
                fields.0[COMPRESSION_TYPE]
            } else {
                0
            };
            if kind > 1 {
                return wrong("kind of compression", kind.into());
            }
            zstd = kind == 1;
        }
    }
    Ok(Header {
        version,
        virtual_size: size,
        zstd,
        dirty: features & DIRTY != 0,
        subclusters: features & EXTENDED_L2 != 0,
        snapshots: fields.u32(60),
        cluster_bits,
        l1_offset: fields.u64(40),
        l1_entries: fields.u32(36).into(),
    })
}

impl Header {
    /// It is stored as it is: every program that is used here reads it.
    pub fn is_normal(&self) -> bool {
        self.version == 3 && self.is_simple() && self.snapshots == 0
    }

    /// imago reads it; QEMU reads all.
    pub(super) fn is_simple(&self) -> bool {
        !self.zstd && !self.dirty && !self.subclusters
    }

    /// Bytes of an entry of an L2 table.
    fn entry(&self) -> u64 {
        if self.subclusters { 16 } else { 8 }
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }
}

/// Both tables that the header names: where they are, and how large.
fn check_places(fields: &Fields<'_>, header: &Header, length: u64) -> Result<(), HeaderError> {
    let cluster = header.cluster();
    // An L2 table is a cluster of entries, each of which is a cluster of the disk.
    let needed = header
        .virtual_size
        .div_ceil(cluster * (cluster / header.entry()));
    if header.l1_entries < needed {
        return Err(HeaderError::Short("L1 table"));
    }
    let l1 = header.l1_entries * 8;
    if l1 > MAX_L1_BYTES {
        return Err(HeaderError::Table("L1 table"));
    }
    let reftable = u64::from(fields.u32(56)) << header.cluster_bits;
    if reftable > MAX_REFTABLE_BYTES {
        return Err(HeaderError::Table("table of reference counts"));
    }
    let places = [
        ("L1 table", header.l1_offset, l1),
        ("table of reference counts", fields.u64(48), reftable),
    ];
    for (what, offset, bytes) in places {
        if offset == 0 || offset % cluster != 0 {
            return Err(HeaderError::Field {
                what: "place of a table",
                given: offset,
            });
        }
        if offset.checked_add(bytes).is_none_or(|end| end > length) {
            return Err(HeaderError::Short(what));
        }
    }
    Ok(())
}

/// That every L2 table, and every cluster that one names, begins within the file: a download that was
/// cut short ends somewhere in them.
fn check_tables(file: &File, header: &Header, length: u64) -> Result<(), HeaderError> {
    let cluster = header.cluster();
    let mut l1 = vec![0; usize::try_from(header.l1_entries * 8).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut l1, header.l1_offset)?;
    let mut l2 = vec![0; usize::try_from(cluster).unwrap_or(usize::MAX)];
    let mut tables = 0;
    for offset in l1
        .chunks_exact(8)
        .map(|entry| Fields(entry).u64(0) & OFFSET_MASK)
    {
        if offset == 0 {
            continue;
        }
        tables += 1;
        // More than fit into the file: one of them is named again and again.
        if tables > length / cluster {
            return Err(HeaderError::Table("number of L2 tables"));
        }
        if offset.checked_add(cluster).is_none_or(|end| end > length) {
            return Err(HeaderError::Short("L2 table"));
        }
        file.read_exact_at(&mut l2, offset)?;
        // An empty place is 0; behind the entry of a cluster with parts stands what they are.
        let width = usize::try_from(header.entry()).unwrap_or(8);
        let mut entries = l2.chunks_exact(width).map(|entry| Fields(entry).u64(0));
        if entries.any(|entry| place(entry, header.cluster_bits) > length) {
            return Err(HeaderError::Short("data"));
        }
    }
    Ok(())
}

/// Where the data begins that an entry of an L2 table names.
fn place(entry: u64, cluster_bits: u32) -> u64 {
    if entry & IS_COMPRESSED != 0 {
        // The bits above hold the compressed size.
        return entry & ((1 << (62 - (cluster_bits - 8))) - 1);
    }
    entry & OFFSET_MASK
}

fn read_up_to(file: &File, into: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < into.len() {
        match file.read_at(&mut into[read..], read as u64) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}
