//! EROFS images, written front to back in one pass; the kernel reads them from Linux 5.15 on.
//!
//! ```text
//!  block 0     1 ...                 ...                    meta_blkaddr ...              blocks
//!  ┌──────────┬─────────────────────┬──────────────────────┬─────────────────────────────┐
//!  │ 1 KiB 0s │ file data, as it    │ full blocks of       │ inodes: header, xattrs, and │
//!  │ super    │ arrives: plain,     │ directories          │ tail | cluster index |      │
//!  │ block    │ LZ4, chunks         │                      │ chunk map                   │
//!  └──────────┴─────────────────────┴──────────────────────┴─────────────────────────────┘
//!    written     ImageWriter::file,      ImageWriter::finish: the tree is laid out (plan),
//!    last        ::sparse                then emitted
//! ```
//! Memory: the tree (about 200 bytes a node, names and xattrs on top), one byte for each 64 KiB of
//! compressed data, and a few fixed buffers. Tails of files (what does not fill a block) wait for
//! their inode in an unnamed spill file once they pass 16 MiB. File data is never held.
//!
//! Invariants:
//! - The same calls give the same bytes: nothing depends on time, addresses or hash order.
//! - Only features of Linux 5.15 are used, and a feature is announced only if a file needs it:
//!   LZ4 with 0-padding and big physical clusters (5.13), chunk-based files (5.15).
//! - An image is valid only after [`ImageWriter::finish`]: before that its superblock is zeros.
//!
//! Source of the format: `fs/erofs/erofs_fs.h` and `Documentation/filesystems/erofs.rst` of Linux.

mod data;
mod format;
mod plan;
mod tree;
mod writer;
mod xattr;

pub use data::{Compression, Content, DenseFile, SparseFile};
pub use tree::{Attributes, Kind, Node, NodeId, Timestamp, Tree, device_number};
pub use writer::ImageWriter;
pub use xattr::{XattrError, Xattrs};

use std::io;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The image file refused a write, a seek or a sync.
    #[error("cannot write the EROFS image")]
    Write(#[source] io::Error),
    /// The unnamed file that holds tails of files could not be written or read back.
    #[error("cannot use the spill file of the EROFS image")]
    Spill(#[source] io::Error),
    /// Block addresses have 32 bits.
    #[error("the EROFS image would have more than 2^32 blocks of 4 KiB")]
    TooManyBlocks,
    /// The compressor refused its input; its output buffer is always large enough, so this is a
    /// defect of the library.
    #[error("cannot compress a cluster of the EROFS image")]
    Compress(#[source] lz4_flex::block::CompressError),
}
