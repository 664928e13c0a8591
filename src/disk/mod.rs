//! Disk images: what is in them, and how they are made.
//!
//! Invariant: no file is opened that an image only names.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

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
