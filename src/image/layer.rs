//! One layer of an OCI image: a tar stream in, an EROFS image and the boot files out, in one pass.
//!
//! ```text
//!   tar ──▶ archive ──▶ Entry ──▶ paths ──▶ merge (whiteouts, duplicates, links) ──▶ erofs::Tree
//!           headers,      │                                                              │
//!           PAX, sparse   └─ data ──▶ erofs::ImageWriter ──▶ blob ◀── finish ────────────┘
//!                              └────▶ kernel, initrd
//! ```
//! The tar reader is our own: a layer is hostile input, and every header, extension and map that
//! is held in memory has a bound here. (The `tar` crate splits PAX records at newlines, which
//! breaks binary values such as `security.capability`, reads long names without a bound, and does
//! not know PAX sparse files.)
//!
//! Invariants:
//! - What is not understood is refused by name, never skipped or guessed.
//! - Memory and time are bounded by [`Limits`], whatever the tar says; file data is never held.
//! - The three files exist only after a success.

mod archive;
mod bounded;
mod conversion;
mod error;
mod header;
mod merge;
mod paths;
mod pax;
mod sparse;

use std::io::Read;
use std::path::Path;

pub(super) use self::archive::{Archive, Entry, EntryKind, InodeKind};
use self::bounded::Bounded;
use self::conversion::{Conversion, Done};
pub use self::error::{EntryName, LayerError, Refusal};
pub(super) use self::header::is_header;
pub(super) use self::paths::components;
use super::boot_files::{NewFile, SyncedFile};
pub use super::erofs::Compression;
use super::erofs::{ErofsError, ImageWriter};
use crate::sys::failpoint;

/// Files that a conversion makes; none may exist before.
#[derive(Clone, Copy, Debug)]
pub struct LayerPaths<'a> {
    /// The EROFS image.
    pub blob: &'a Path,
    /// The kernel, if the layer has one.
    pub kernel: &'a Path,
    /// The initial RAM disk, if the layer has one.
    pub initrd: &'a Path,
}

/// What a layer may unpack to; a layer that asks for more is refused as a bomb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of file data. Holes of sparse files do not count, only the chunks around their data
    /// and the map of these.
    pub max_bytes: u64,
    /// Files, directories and other inodes or names, those that a later entry replaces included.
    pub max_entries: u64,
    /// Bytes of names, link targets, extended attributes and indexes, which are held in memory.
    pub max_metadata_bytes: u64,
}

impl Default for Limits {
    /// 64 GiB: twice the largest layers published today (CUDA, ML models). 2,000,000 entries: ten
    /// times a desktop; together they take about 500 MB of memory. 256 MiB of metadata: 128 bytes
    /// for each of them.
    fn default() -> Self {
        Self {
            max_bytes: 64 << 30,
            max_entries: 2_000_000,
            max_metadata_bytes: 256 << 20,
        }
    }
}

/// What a conversion made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerReport {
    /// Size of the EROFS image in bytes.
    pub blob_size: u64,
    /// Whether the kernel file was made.
    pub has_kernel: bool,
    /// Whether the initrd file was made.
    pub has_initrd: bool,
    /// Entries of the archive, extension headers not counted.
    pub entries: u64,
}

/// Converts the tar stream of one layer, and reads it to its end, also what follows the archive. What
/// is made needs a UUID yet, which may depend on what the stream was.
///
/// Entries become what overlayfs expects of a lower layer: `.wh.NAME` a character device 0:0,
/// `.wh..wh..opq` the attribute `trusted.overlay.opaque` of its directory (OCI image-spec,
/// layer.md, "Whiteouts"). The same tar and UUID give the same bytes.
///
/// # Errors
/// The stream, an entry or a file, as [`LayerError`] says; none of the files exists then.
pub fn convert<'a>(
    tar: &mut dyn Read,
    compression: Compression,
    limits: &Limits,
    to: &LayerPaths<'a>,
) -> Result<Converted<'a>, LayerError> {
    let blob = create(to.blob)?;
    let image_error = |source| image_error(to.blob, source);
    let handle = blob.file().try_clone();
    let handle = handle.map_err(|error| image_error(ErofsError::Write(error)))?;
    let folder = to.blob.parent().filter(|it| !it.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let image = ImageWriter::new(handle, folder, compression).map_err(image_error)?;
    let mut conversion = Conversion::new(image, limits, to);
    let mut tar = Bounded::new(tar, limits);
    let mut archive = Archive::new(&mut tar);
    let mut entries = 0;
    while let Some(entry) = archive.next_entry()? {
        entries += 1;
        conversion.entry(&mut archive, &entry)?;
    }
    archive.drain()?;
    let done = conversion
        .finish()
        .map_err(|reason| archive.refused(reason))?;
    failpoint::reach("layer: data written");
    Ok(Converted {
        to: *to,
        entries,
        blob,
        done,
    })
}

/// A layer whose tar has passed. Without [`Converted::finish`] nothing of it stays.
#[derive(Debug)]
pub struct Converted<'a> {
    to: LayerPaths<'a>,
    entries: u64,
    blob: NewFile,
    done: Done,
}

impl Converted<'_> {
    /// Completes the image with its UUID. All files are synced; their folders are not.
    ///
    /// # Errors
    /// A file cannot be written; none of them exists then.
    pub fn finish(self, uuid: [u8; 16]) -> Result<LayerReport, LayerError> {
        let Self { to, done, .. } = self;
        let finished = done.image.finish(&done.tree, uuid);
        let blob_size = finished.map_err(|source| image_error(to.blob, source))?;
        let kernel = sync(done.kernel, to.kernel)?;
        let initrd = sync(done.initrd, to.initrd)?;
        let blob = sync(Some(self.blob), to.blob)?;
        let report = LayerReport {
            blob_size,
            has_kernel: kernel.is_some(),
            has_initrd: initrd.is_some(),
            entries: self.entries,
        };
        for file in [kernel, initrd, blob].into_iter().flatten() {
            file.keep();
        }
        failpoint::reach("layer: files complete");
        Ok(report)
    }
}

fn image_error(path: &Path, source: ErofsError) -> LayerError {
    LayerError::Image {
        path: path.to_owned(),
        source,
    }
}

fn create(path: &Path) -> Result<NewFile, LayerError> {
    let file = NewFile::create(path).map_err(|source| LayerError::Create {
        path: path.to_owned(),
        source,
    })?;
    failpoint::reach("layer: file made");
    Ok(file)
}

fn sync(file: Option<NewFile>, path: &Path) -> Result<Option<SyncedFile>, LayerError> {
    let synced = file.map(NewFile::sync).transpose();
    synced.map_err(|source| LayerError::Create {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
