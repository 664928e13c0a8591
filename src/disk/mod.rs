//! Disk images: what is in them, and how they are made.
//!
//! ```text
//!   qcow2     what a header says, and whether it may be believed: pure but for reads of its own file
//!   image     a disk to read, raw or qcow2
//!   make      copies: into the one form that is stored, and into the disks of VMs
//! ```
//! Reading and writing of clusters is imago's, which is QEMU's maintainer's. What a stranger wrote is
//! looked at by `qcow2` before imago sees it.
//!
//! Invariant: no file is opened that an image only names.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod image;
mod make;
pub mod qcow2;

#[cfg(test)]
mod tests;

pub use image::Image;
pub use make::{MakeError, Normal, Watch, flatten, normalise};

/// How a disk's file is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Sector by sector.
    Raw,
    /// QEMU's format (`docs/interop/qcow2.rst`), version 2 or 3.
    Qcow2,
}

/// A disk as its guest sees it, to be read.
pub trait ReadAt {
    /// Bytes of the disk.
    fn size(&self) -> u64;

    /// Fills `into` with what stands at `offset`.
    ///
    /// # Errors
    /// The disk ends before, or its file cannot be read.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
}

/// A raw disk.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    size: u64,
}

impl RawDisk {
    /// The disk that `file` is, byte by byte.
    ///
    /// # Errors
    /// Its length cannot be told.
    pub fn new(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }
}

impl ReadAt for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }
}
