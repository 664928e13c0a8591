//! What is on a partition, told by the bytes that mark it.
//!
//! ```text
//!  0  LUKS, xfs, squashfs │ 3 NTFS │ 54, 82 FAT │ 536 LVM │ 1024 ext's superblock, f2fs, EROFS │ 4086 swap
//! 32769 ISO 9660 │ 65600 btrfs
//! ```

use super::partitions::Partition;
use crate::disk::ReadAt;

/// ext2, ext3 and ext4, which are read alike.
pub(super) const EXT4: &str = "ext4";

/// Name, offset in bytes, and what stands there.
const MARKS: [(&str, u64, &[u8]); 14] = [
    (EXT4, 1024 + 56, &[0x53, 0xef]),
    ("xfs", 0, b"XFSB"),
    ("btrfs", 0x1_0040, b"_BHRfS_M"),
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("LVM", 512 + 24, b"LVM2 001"),
    ("swap", 4096 - 10, b"SWAPSPACE2"),
    ("vfat", 82, b"FAT32   "),
    ("vfat", 54, b"FAT16   "),
    ("vfat", 54, b"FAT12   "),
    ("ntfs", 3, b"NTFS    "),
    ("squashfs", 0, b"hsqs"),
    ("erofs", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("f2fs", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    ("iso9660", 32769, b"CD001"),
];

/// The name of what `partition` holds; nothing where that has no mark, or cannot be read.
pub(super) fn name(disk: &dyn ReadAt, partition: &Partition) -> Option<&'static str> {
    let is_there = |offset: u64, mark: &[u8]| {
        let mut bytes = [0; 10];
        let bytes = &mut bytes[..mark.len()];
        offset + mark.len() as u64 <= partition.size
            && disk.read_at(partition.start + offset, bytes).is_ok()
            && bytes == mark
    };
    let found = MARKS
        .iter()
        .find(|(_, offset, mark)| is_there(*offset, mark));
    found.map(|(name, ..)| *name)
}
