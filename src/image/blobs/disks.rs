//! Disk images on disk, one file each.
//!
//! ```text
//!   blobs/<disk hex>.qcow2                qcow2 version 3, without a backing file
//!   staging/pull-<random>/<name>.disk     one that is fetched, unpacked or converted
//! ```
//! `<disk hex>` is the digest of the image as it was transferred, which is what its publisher names; not that
//! of the file, which may have been unpacked and converted.
//!
//! Invariant: a disk image under its final name is whole, and no other file is opened for it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{BlobError, BlobStore, LayerLock, Staging, failed};
use crate::disk;
use crate::store::atomic;
use crate::sys::failpoint;
use crate::units::Digest;

/// A disk image that is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredDisk {
    /// Bytes of the disk that a guest sees.
    pub virtual_size: u64,
    /// Bytes that the file occupies.
    pub size_on_disk: u64,
}

impl BlobStore {
    /// The file of a disk image, present or not.
    pub fn disk_path(&self, image: &Digest) -> PathBuf {
        self.blobs.join(format!("{}.qcow2", image.hex()))
    }

    /// The disk image, if it is present and whole. A file that is empty, cut short or of another kind does
    /// not count.
    ///
    /// # Errors
    /// The file is there and cannot be opened.
    pub fn find_disk(&self, image: &Digest) -> Result<Option<StoredDisk>, BlobError> {
        let path = self.disk_path(image);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let metadata = file.metadata().map_err(failed("look at", &path))?;
        let header = disk::qcow2::inspect(&file).ok();
        Ok(header.map(|header| StoredDisk {
            virtual_size: header.virtual_size,
            // POSIX leaves the unit open; in Linux it is 512 bytes whatever the file system.
            size_on_disk: metadata.blocks() * 512,
        }))
    }

    /// Publishes the disk image that was made at `made`.
    ///
    /// # Errors
    /// It cannot be synced or renamed; it is then not present.
    pub fn publish_disk(&self, made: &Path, lock: &LayerLock) -> Result<StoredDisk, BlobError> {
        let path = self.disk_path(&lock.layer);
        atomic::publish(made, &path).map_err(failed("publish", &path))?;
        failpoint::reach("disk image: published");
        let found = self.find_disk(&lock.layer)?;
        found.ok_or_else(|| {
            let source = io::Error::other("what was written is no qcow2 image");
            failed("use", &path)(source)
        })
    }

    /// The folder of work files.
    pub(in crate::image) fn staging_folder(&self) -> &Path {
        &self.staging
    }
}

impl Staging {
    /// Where to put a disk image that is not done yet; `name` tells what state it is in.
    pub fn disk(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.disk"))
    }
}
