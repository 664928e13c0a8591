//! What has been fetched or read becomes a disk image of the store.
//!
//! ```text
//!   staged file ─▶ its digest as expected? here already? ─▶ what is it? ─▶ unpack, at most twice
//!                    ─▶ qcow2: header looked at ─▶ normalised ─▶ blobs/<digest>.qcow2
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tokio::runtime::Runtime;

use super::content::{self, FOOTER, Packing, Sniffed};
use super::error::CloudError;
use super::landing::{cannot_keep, cannot_read, head_of};
use super::unpack::{self, Failed};
use super::{CloudOptions, ReadyDisk};
use crate::disk::{self, Format};
use crate::image::blobs::{BlobStore, LayerLock, Staging, StoredDisk};
use crate::image::progress::{DiskStep, Progress, PullEvent};
use crate::sys::failpoint;
use crate::units::{ByteSize, Digest};

/// How often something is unpacked: more than that is no way in which anybody offers a disk.
const MAX_DEPTH: u32 = 2;

/// Bytes of a sector, of which a disk has a whole number.
const SECTOR: u64 = 512;

/// What is in a file that can be used.
enum Admitted {
    /// With the bytes of the disk.
    Disk(Format, u64),
    Packed(File, Packing),
}

/// The making of one disk image.
pub(super) struct Making<'a> {
    pub(super) what: String,
    pub(super) options: &'a CloudOptions,
    pub(super) store: &'a BlobStore,
    pub(super) progress: &'a dyn Progress,
    staging: Staging,
    pub(super) runtime: Runtime,
}

impl<'a> Making<'a> {
    /// Makes a folder for what comes of `what`.
    pub(super) fn begin(
        what: String,
        options: &'a CloudOptions,
        store: &'a BlobStore,
        progress: &'a dyn Progress,
    ) -> Result<Self, CloudError> {
        let (staging, runtime) = (store.stage()?, runtime(&what)?);
        Ok(Self {
            what,
            options,
            store,
            progress,
            staging,
            runtime,
        })
    }

    /// A new file for what is fetched or read.
    pub(super) fn new_file(&self, name: &str) -> Result<(PathBuf, File), CloudError> {
        let path = self.staging.disk(name);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path);
        let file = file.map_err(|source| cannot_keep(&self.what, source))?;
        Ok((path, file))
    }

    /// Makes the file at `path`, whose content has this digest, a disk image of the store.
    pub(super) fn make(&self, path: PathBuf, digest: Digest) -> Result<ReadyDisk, CloudError> {
        if let Some(expected) = self.options.expected.filter(|expected| *expected != digest) {
            return Err(CloudError::Digest {
                what: self.what.clone(),
                expected,
                actual: digest,
            });
        }
        failpoint::reach("disk image: received");
        // What can be seen from outside needs no lock, whose file stays.
        self.admit(&path, 0)?;
        let stored = match self.claim(&digest)? {
            Ok(stored) => stored,
            Err(lock) => self.made(path, &lock)?,
        };
        Ok(ReadyDisk::new(digest, stored))
    }

    /// What is here, or the right to make it.
    fn claim(&self, digest: &Digest) -> Result<Result<StoredDisk, LayerLock>, CloudError> {
        let lock = match self.store.try_lock(digest)? {
            Some(lock) => lock,
            None => {
                let event = PullEvent::LayerWaiting { layer: *digest };
                self.progress.event(event);
                self.runtime.block_on(async {
                    tokio::select! {
                        biased;
                        () = self.options.cancel.cancelled() => Err(self.cancelled()),
                        lock = self.store.lock(digest) => Ok(lock?),
                    }
                })?
            }
        };
        Ok(self.store.find_disk(digest)?.ok_or(lock))
    }

    fn made(&self, path: PathBuf, lock: &LayerLock) -> Result<StoredDisk, CloudError> {
        let (path, format, size) = self.disk_in(path)?;
        failpoint::reach("disk image: unpacked");
        let normal = self.staging.disk("normal");
        self.tell(DiskStep::Converting, Some(size));
        disk::normalise(&path, format, &normal, &|bytes| self.goes_on(bytes)).map_err(
            |source| match self.options.cancel.is_cancelled() {
                true => self.cancelled(),
                false => CloudError::Normalise {
                    what: self.what.clone(),
                    source,
                },
            },
        )?;
        failpoint::reach("disk image: converted");
        self.tell(DiskStep::Storing, None);
        Ok(self.store.publish_disk(&normal, lock)?)
    }

    /// The disk that the file is, or that is in it.
    fn disk_in(&self, mut path: PathBuf) -> Result<(PathBuf, Format, u64), CloudError> {
        let mut depth = 0;
        loop {
            let (file, packing) = match self.admit(&path, depth)? {
                Admitted::Disk(format, size) => return Ok((path, format, size)),
                Admitted::Packed(file, packing) => (file, packing),
            };
            depth += 1;
            path = self.unpack(&path, &file, packing, depth)?;
        }
    }

    /// What is in the file at `path`, which was unpacked so many times, if it can be used.
    fn admit(&self, path: &Path, depth: u32) -> Result<Admitted, CloudError> {
        let (file, found) = look(path).map_err(|source| cannot_read(&self.what, source))?;
        let what = || self.what.clone();
        match found {
            Sniffed::Packed(packing) if depth == MAX_DEPTH => Err(CloudError::PackedTooOften {
                what: what(),
                packing,
            }),
            Sniffed::Packed(packing) => Ok(Admitted::Packed(file, packing)),
            Sniffed::Qcow2 => {
                let size = self.check_header(&file)?;
                Ok(Admitted::Disk(Format::Qcow2, size))
            }
            Sniffed::Raw => {
                let size = self.check_sectors(&file)?;
                Ok(Admitted::Disk(Format::Raw, size))
            }
            Sniffed::Foreign(found) => Err(CloudError::Foreign {
                what: what(),
                depth,
                found,
            }),
        }
    }

    /// Unpacks a file, and removes it, because both may be large.
    fn unpack(
        &self,
        path: &Path,
        file: &File,
        packing: Packing,
        depth: u32,
    ) -> Result<PathBuf, CloudError> {
        let total = file.metadata().map(|metadata| metadata.len()).ok();
        self.tell(DiskStep::Unpacking, total);
        let (inner, to) = self.new_file(&format!("unpacked-{depth}"))?;
        let watch = |bytes| self.goes_on(bytes);
        let what = || self.what.clone();
        unpack::unpack(packing, file, &to, self.options.limit, &watch).map_err(|failed| {
            match failed {
                Failed::Read(source) => CloudError::Unpack {
                    what: what(),
                    packing,
                    source,
                },
                Failed::Write(source) => cannot_keep(&self.what, source),
                Failed::TooLarge => CloudError::Bomb {
                    what: what(),
                    limit: ByteSize::from_bytes(self.options.limit),
                },
                Failed::Cancelled => self.cancelled(),
            }
        })?;
        fs::remove_file(path).map_err(|source| cannot_keep(&self.what, source))?;
        Ok(inner)
    }

    pub(super) fn tell(&self, step: DiskStep, total: Option<u64>) {
        self.progress.event(PullEvent::DiskStep { step, total });
    }

    /// Tells how much more is done; whether to go on.
    pub(super) fn goes_on(&self, bytes: u64) -> bool {
        self.progress.event(PullEvent::DiskAdvanced { bytes });
        !self.options.cancel.is_cancelled()
    }

    fn check_header(&self, file: &File) -> Result<u64, CloudError> {
        match disk::qcow2::inspect(file) {
            Ok(header) => Ok(header.virtual_size),
            Err(source) => Err(CloudError::Header {
                what: self.what.clone(),
                source,
            }),
        }
    }

    fn check_sectors(&self, file: &File) -> Result<u64, CloudError> {
        let metadata = file.metadata();
        let size = metadata
            .map_err(|source| cannot_read(&self.what, source))?
            .len();
        match size.is_multiple_of(SECTOR) {
            true => Ok(size),
            false => Err(CloudError::Sectors {
                what: self.what.clone(),
                size,
            }),
        }
    }

    pub(super) fn cancelled(&self) -> CloudError {
        CloudError::Cancelled {
            what: self.what.clone(),
        }
    }
}

/// The file there, and what it is.
fn look(path: &Path) -> io::Result<(File, Sniffed)> {
    let file = File::open(path)?;
    let head = head_of(&file)?;
    let mut footer = [0; FOOTER];
    let size = file.metadata()?.len();
    if let Some(at) = size.checked_sub(FOOTER as u64) {
        file.read_exact_at(&mut footer, at)?;
    }
    let found = content::sniff_ends(&head, &footer);
    Ok((file, found))
}

/// An event loop on this thread.
fn runtime(what: &str) -> Result<Runtime, CloudError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.map_err(|source| CloudError::Worker {
        what: what.to_owned(),
        source,
    })
}
