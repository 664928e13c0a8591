//! A disk image that is read through its format.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping, StorageOpenOptions};

use super::{Format, ReadAt};

/// A file, as imago has it.
pub(super) type Storage = imago::file::File;

/// A disk image, of one file.
pub struct Image {
    access: FormatAccess<Storage>,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Image").field(&self.access.size()).finish()
    }
}

impl Image {
    /// Opens the image at `path` for reading.
    ///
    /// # Errors
    /// It cannot be opened, or is not of this format.
    pub fn open(path: &Path, format: Format) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(Self {
            access: match format {
                Format::Raw => {
                    let raw = Raw::builder(storage(file, path, false)?);
                    FormatAccess::new(raw.open(DenyImplicitOpenGate::default())?)
                }
                Format::Qcow2 => open_qcow2(file, path, false)?,
            },
        })
    }

    /// Opens the qcow2 image at `path`, which has no base, for writing.
    pub(super) fn open_to_write(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let access = open_qcow2(file, path, true)?;
        Ok(Self { access })
    }

    /// Bytes from `offset` on that are alike, and whether they may be anything but zero. None at the end
    /// of the disk.
    pub(super) fn run_at(&self, offset: u64) -> io::Result<Option<(u64, bool)>> {
        let left = self.size().saturating_sub(offset);
        if left == 0 {
            return Ok(None);
        }
        let (mapping, length) = self.access.get_mapping(offset, left)?;
        match mapping {
            Mapping::Zero { .. } => Ok(Some((length.min(left), false))),
            Mapping::Eof { .. } => Ok(None),
            _ => Ok(Some((length.min(left), true))),
        }
    }

    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.access.write(bytes, offset)
    }

    /// What was written is in the file, in order.
    pub(super) fn finish(self) -> io::Result<()> {
        self.access.flush()
    }
}

impl ReadAt for Image {
    fn size(&self) -> u64 {
        self.access.size()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.size()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.access.read(into, offset)
    }
}

pub(super) fn storage(file: File, path: &Path, writable: bool) -> io::Result<Storage> {
    let options = StorageOpenOptions::new().write(writable).filename(path);
    Storage::from_open_file(file, options)
}

fn open_qcow2(file: File, path: &Path, writable: bool) -> io::Result<FormatAccess<Storage>> {
    let qcow2 = Qcow2::<Storage>::builder(storage(file, path, writable)?)
        .write(writable)
        .backing(None)
        .data_file(None)
        .open(DenyImplicitOpenGate::default())?;
    Ok(FormatAccess::new(qcow2))
}
