//! The on-disk structures, as bytes. Pure.
//!
//! Source: `fs/erofs/erofs_fs.h` of Linux; the names of its structs stand at each encoder. All
//! integers are little-endian.

/// Size of a block in bytes. Every kernel mounts 4 KiB blocks; other sizes need Linux 6.4.
pub(super) const BLOCK: usize = 4096;
/// Size of an inode slot in bytes; a node id (nid) counts slots from the metadata's first block.
pub(super) const SLOT: u64 = 32;
/// Size in bytes of `struct erofs_inode_extended`, the only form written: the compact one has no
/// mtime.
pub(super) const INODE: usize = 64;
/// Size in bytes of `struct erofs_xattr_ibody_header`.
pub(super) const XATTR_HEADER: usize = 12;
/// Size in bytes of `struct erofs_dirent`.
pub(super) const DIRENT: usize = 12;
/// Size in bytes of `struct z_erofs_lcluster_index`.
pub(super) const CLUSTER_INDEX: usize = 8;
/// Bytes between the (8-aligned) end of the xattrs and the first cluster index:
/// `struct z_erofs_map_header` and 8 bytes of padding.
pub(super) const CLUSTER_HEADER: usize = 16;
/// Block address of a hole in a chunk map (`EROFS_NULL_ADDR`).
pub(super) const HOLE: u32 = u32::MAX;

const SUPERBLOCK_OFFSET: usize = 1024;
const SUPERBLOCK: usize = 128;
const MAGIC: u32 = 0xE0F5_E1E2;
const COMPAT_CHECKSUM: u32 = 0x1;
const COMPAT_MTIME: u32 = 0x2;
const INCOMPAT_ZERO_PADDING: u32 = 0x1;
const INCOMPAT_COMPR_CFGS_AND_BIG_PCLUSTER: u32 = 0x2;
const INCOMPAT_CHUNKED_FILE: u32 = 0x4;
const ALGORITHM_LZ4: u16 = 1;
/// The farthest an LZ4 match may reach back (LZ4 block format).
const LZ4_MAX_DISTANCE: u16 = u16::MAX;

/// What the superblock says (`struct erofs_super_block`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Superblock {
    pub(super) uuid: [u8; 16],
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    /// Blocks of the whole image.
    pub(super) blocks: u32,
    /// First block of the inodes.
    pub(super) meta_block: u32,
    /// Blocks of the largest compressed cluster, if any file is compressed.
    pub(super) lz4_max_blocks: Option<u16>,
    pub(super) has_chunked_files: bool,
}

impl Superblock {
    /// The first block of the image. Build time is 0, so that equal layers give equal images.
    pub(super) fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut incompat = 0;
        if self.has_chunked_files {
            incompat |= INCOMPAT_CHUNKED_FILE;
        }
        let sb = &mut block[SUPERBLOCK_OFFSET..];
        put(sb, 0, &MAGIC.to_le_bytes());
        put(sb, 8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        put(sb, 12, &[12]); // log2 of the block size
        put(sb, 14, &self.root_nid.to_le_bytes());
        put(sb, 16, &self.inodes.to_le_bytes());
        put(sb, 36, &self.blocks.to_le_bytes());
        put(sb, 40, &self.meta_block.to_le_bytes());
        put(sb, 48, &self.uuid);
        if let Some(max_blocks) = self.lz4_max_blocks {
            incompat |= INCOMPAT_ZERO_PADDING | INCOMPAT_COMPR_CFGS_AND_BIG_PCLUSTER;
            put(sb, 84, &ALGORITHM_LZ4.to_le_bytes());
            // struct z_erofs_lz4_cfgs, after its length.
            put(sb, SUPERBLOCK, &14u16.to_le_bytes());
            put(sb, SUPERBLOCK + 2, &LZ4_MAX_DISTANCE.to_le_bytes());
            put(sb, SUPERBLOCK + 4, &max_blocks.to_le_bytes());
        }
        put(sb, 80, &incompat.to_le_bytes());
        let checksum = crc32c(sb);
        put(sb, 4, &checksum.to_le_bytes());
        block
    }
}

/// How an inode's data is stored (bits 1 to 3 of `i_format`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    FlatPlain = 0,
    CompressedFull = 1,
    FlatInline = 2,
    ChunkBased = 4,
}

/// `struct erofs_inode_extended`.
#[derive(Clone, Copy, Debug)]
pub(super) struct InodeHeader {
    pub(super) layout: Layout,
    /// Bytes of the xattr entries, without their header.
    pub(super) xattr_bytes: usize,
    /// File type and permissions, as in `st_mode`.
    pub(super) mode: u16,
    pub(super) size: u64,
    /// First block, number of compressed blocks, device number or chunk format.
    pub(super) location: u32,
    /// The 32-bit number shown to old programs; unique in the image.
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime_seconds: i64,
    pub(super) mtime_nanoseconds: u32,
    pub(super) links: u32,
}

impl InodeHeader {
    pub(super) fn encode(&self) -> [u8; INODE] {
        let mut out = [0; INODE];
        let format = 1 | ((self.layout as u16) << 1);
        put(&mut out, 0, &format.to_le_bytes());
        put(&mut out, 2, &xattr_count(self.xattr_bytes).to_le_bytes());
        put(&mut out, 4, &self.mode.to_le_bytes());
        put(&mut out, 8, &self.size.to_le_bytes());
        put(&mut out, 16, &self.location.to_le_bytes());
        put(&mut out, 20, &self.number.to_le_bytes());
        put(&mut out, 24, &self.uid.to_le_bytes());
        put(&mut out, 28, &self.gid.to_le_bytes());
        // The kernel reads the field as signed: times before 1970 survive.
        put(&mut out, 32, &self.mtime_seconds.to_le_bytes());
        put(&mut out, 40, &self.mtime_nanoseconds.to_le_bytes());
        put(&mut out, 44, &self.links.to_le_bytes());
        out
    }
}

/// Bytes of an inode's xattr area: nothing, or a header and `entries` bytes.
pub(super) fn xattr_area(entries: usize) -> usize {
    if entries == 0 {
        0
    } else {
        XATTR_HEADER + entries
    }
}

/// `i_xattr_icount` for `entries` bytes, which `Xattrs` keeps to 64 KiB and a multiple of 4.
fn xattr_count(entries: usize) -> u16 {
    if entries == 0 {
        0
    } else {
        u16::try_from(entries / 4 + 1).unwrap_or(u16::MAX)
    }
}

/// File types in directory entries (`EROFS_FT_*`, the same as in ext4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DirentType {
    File = 1,
    Directory = 2,
    Character = 3,
    Block = 4,
    Fifo = 5,
    Symlink = 7,
}

/// An entry of a directory that is being written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dirent<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) kind: DirentType,
}

/// Splits names into directory blocks: in order, as many as fit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DirectoryLength {
    /// Blocks before the last.
    pub(super) full_blocks: u64,
    /// Bytes of the last block.
    pub(super) tail: usize,
}

impl DirectoryLength {
    /// Counts a name; true if it begins a new block.
    pub(super) fn push(&mut self, name: &[u8]) -> bool {
        let need = DIRENT + name.len();
        let is_new_block = self.tail + need > BLOCK;
        if is_new_block {
            self.full_blocks += 1;
            self.tail = 0;
        }
        self.tail += need;
        is_new_block
    }

    /// Size of the directory in bytes.
    pub(super) fn size(self) -> u64 {
        self.full_blocks * BLOCK as u64 + self.tail as u64
    }
}

/// The content of one directory block, without padding.
pub(super) fn directory_block(entries: &[Dirent<'_>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK);
    let mut name_offset = entries.len() * DIRENT;
    for entry in entries {
        out.extend(entry.nid.to_le_bytes());
        // At most BLOCK, because the entries came out of DirectoryLength.
        out.extend(u16::try_from(name_offset).unwrap_or(u16::MAX).to_le_bytes());
        out.extend([entry.kind as u8, 0]);
        name_offset += entry.name.len();
    }
    for entry in entries {
        out.extend(entry.name);
    }
    out
}

/// `struct z_erofs_map_header` and padding: LZ4, 4 KiB logical clusters, big physical clusters.
pub(super) fn cluster_header() -> [u8; CLUSTER_HEADER] {
    const ADVISE_BIG_PCLUSTER_1: u16 = 0x2;
    let mut out = [0; CLUSTER_HEADER];
    put(&mut out, 4, &ADVISE_BIG_PCLUSTER_1.to_le_bytes());
    out
}

/// An uncompressed block at `block`.
pub(super) fn index_plain(block: u32) -> [u8; CLUSTER_INDEX] {
    index(0, block.to_le_bytes())
}

/// The first block of a compressed cluster that is stored from `block` on.
pub(super) fn index_head(block: u32) -> [u8; CLUSTER_INDEX] {
    index(1, block.to_le_bytes())
}

/// A later block of a compressed cluster: its distance from the head and to the next head. The
/// first of them holds the number of compressed blocks in place of the distance 1.
pub(super) fn index_body(from_head: u16, to_next: u16, compressed: u16) -> [u8; CLUSTER_INDEX] {
    const HOLDS_BLOCK_COUNT: u16 = 0x800;
    let first = if from_head == 1 {
        compressed | HOLDS_BLOCK_COUNT
    } else {
        from_head
    };
    let [a, b] = first.to_le_bytes();
    let [c, d] = to_next.to_le_bytes();
    index(2, [a, b, c, d])
}

fn index(kind: u16, rest: [u8; 4]) -> [u8; CLUSTER_INDEX] {
    let mut out = [0; CLUSTER_INDEX];
    put(&mut out, 0, &kind.to_le_bytes());
    put(&mut out, 4, &rest);
    out
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

/// CRC-32C (Castagnoli) without the final inversion, as the kernel's `crc32c(~0, ..)` gives it. It
/// runs once an image over 3 KiB, so it needs no table.
fn crc32c(data: &[u8]) -> u32 {
    data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82F6_3B78 * (crc & 1))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis_without_the_last_inversion() {
        // RFC 3720, B.4: 32 bytes of zeros give 0x8A9136AA.
        assert_eq!(!crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(!crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn a_directory_block_takes_entries_up_to_its_last_byte() {
        let mut length = DirectoryLength::default();
        // 16 entries of 12 + 244 bytes fill a block exactly.
        for _ in 0..16 {
            assert!(!length.push(&[b'x'; 244]));
        }
        assert_eq!((length.full_blocks, length.tail), (0, BLOCK));
        assert!(length.push(b"y"));
        assert_eq!((length.full_blocks, length.tail), (1, 13));
    }
}
