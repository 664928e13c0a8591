//! Disk images that clouds start from: fetched from a server or read from a file, checked, and kept as qcow2.
//!
//! ```text
//!   url ────▶ connections ─▶ file ─▶ sha-256 ─┐                          ┌▶ unpack ─┐
//!   stream ───────────────▶ file, sha-256 ────┴▶ here already? what is it? ─▶ normalise ─▶ <root>/blobs/<hex>.qcow2
//! ```
//! `<hex>` is the digest of what was transferred, as its publisher names it in a list of sums.
//!
//! Invariants: what is published is qcow2 version 3 without a backing file, and whole; no file is opened that an
//! image names; what fails leaves nothing; logins are in no message and no record.

use std::fmt;
use std::io::Read;
use std::num::NonZeroUsize;

use sha2::{Digest as _, Sha256};

use super::blobs::{BlobStore, StoredDisk};
use super::cancel::Cancel;
use super::progress::{DiskStep, Progress};
use super::retry::RetryPolicy;
use crate::units::{ByteSize, Digest};

mod answer;
mod connection;
pub mod content;
mod error;
mod follower;
mod landing;
mod making;
mod pieces;
mod transfer;
mod unpack;
mod url;

#[cfg(test)]
mod tests;

pub use error::{CloudError, TransferError};
use landing::{cannot_keep, cannot_read};
use making::Making;
use transfer::{Transfer, Transferred};
pub use url::{CloudUrl, InvalidCloudUrl};

/// The largest disk image: 1 TiB. What is offered for clouds has some GiB; what is larger is a mistake, or
/// meant to fill the disk.
const LIMIT: u64 = 1 << 40;

/// Bytes of a stream that are read at once.
const BUFFER: usize = 1 << 20;

/// How to get a disk image.
#[derive(Debug)]
pub struct CloudOptions {
    /// What it must be, by its publisher.
    pub expected: Option<Digest>,
    /// When to repeat a failed request.
    pub retry: RetryPolicy,
    /// Connections at once.
    pub connections: NonZeroUsize,
    /// Bytes that a connection asks for at once; a smaller file comes over one.
    pub piece: u64,
    /// Bytes that it may have, packed or not.
    pub limit: u64,
    /// Ends the work early.
    pub cancel: Cancel,
}

impl Default for CloudOptions {
    fn default() -> Self {
        Self {
            expected: None,
            retry: RetryPolicy::default(),
            connections: transfer::CONNECTIONS,
            piece: transfer::PIECE,
            limit: LIMIT,
            cancel: Cancel::new(),
        }
    }
}

/// What is known of a disk image that was fetched from the same address before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The server's mark of the version.
    pub etag: Option<String>,
    /// When it was changed, in the server's words.
    pub last_modified: Option<String>,
    /// Digest of what was transferred.
    pub digest: Digest,
}

/// A disk image that is present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyDisk {
    /// Digest of what was transferred; the blob has this name.
    pub digest: Digest,
    /// Bytes of the disk that a guest sees.
    pub virtual_size: u64,
    /// Bytes that the blob occupies.
    pub size_on_disk: u64,
    /// The server's mark of this version, if there is a server that said so.
    pub etag: Option<String>,
    /// When it was changed, in the words of that server.
    pub last_modified: Option<String>,
}

impl ReadyDisk {
    fn new(digest: Digest, stored: StoredDisk) -> Self {
        Self {
            digest,
            virtual_size: stored.virtual_size,
            size_on_disk: stored.size_on_disk,
            etag: None,
            last_modified: None,
        }
    }
}

/// How a pull ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pulled {
    /// What is known is present, and still what the server has.
    Unchanged,
    /// The disk image is present.
    Ready(ReadyDisk),
}

/// Gets the disk image at `url` into `store`. Nothing is transferred if what is expected by its digest is
/// present, or if what is `known` is present and the server has no other.
///
/// # Errors
/// See [`CloudError`]; nothing is left.
pub fn pull(
    url: &CloudUrl,
    known: Option<&Known>,
    options: &CloudOptions,
    store: &BlobStore,
    progress: &dyn Progress,
) -> Result<Pulled, CloudError> {
    if let Some(expected) = &options.expected
        && let Some(stored) = store.find_disk(expected)?
    {
        return Ok(Pulled::Ready(ReadyDisk::new(*expected, stored)));
    }
    // What is expected and not here is not what is known.
    let known = match known.filter(|_| options.expected.is_none()) {
        Some(known) if store.find_disk(&known.digest)?.is_some() => Some(known),
        _ => None,
    };
    let making = Making::begin(url.to_string(), options, store, progress)?;
    let (path, file) = making.new_file("received")?;
    let transfer = Transfer {
        url,
        known,
        options,
        file: &file,
        folder: store.staging_folder(),
        progress,
    };
    let transferred = making.runtime.block_on(async {
        tokio::select! {
            biased;
            () = options.cancel.cancelled() => Err(making.cancelled()),
            done = transfer.run() => done,
        }
    })?;
    match transferred {
        Transferred::Unchanged => Ok(Pulled::Unchanged),
        Transferred::Whole { digest, version } => Ok(Pulled::Ready(ReadyDisk {
            etag: version.etag,
            last_modified: version.last_modified,
            ..making.make(path, digest)?
        })),
    }
}

/// Gets a disk image out of a file or stream into `store`. `what` names it in messages, and `total` says how
/// many bytes there are, if that is known.
///
/// # Errors
/// See [`CloudError`]; nothing is left.
pub fn import(
    what: &dyn fmt::Display,
    input: impl Read,
    total: Option<u64>,
    options: &CloudOptions,
    store: &BlobStore,
    progress: &dyn Progress,
) -> Result<ReadyDisk, CloudError> {
    let making = Making::begin(what.to_string(), options, store, progress)?;
    let (path, file) = making.new_file("received")?;
    making.tell(DiskStep::Reading, total);
    let digest = keep(&making, input, &file)?;
    making.make(path, digest)
}

/// Copies a stream into a file, and gives its digest.
fn keep(
    making: &Making<'_>,
    mut input: impl Read,
    to: &std::fs::File,
) -> Result<Digest, CloudError> {
    let (what, options) = (&making.what, making.options);
    let (mut hasher, mut at) = (Sha256::new(), 0);
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = unpack::fill(&mut input, &mut buffer);
        if options.cancel.is_cancelled() {
            // A read that was cancelled is told by whoever reads as an error of its own.
            return Err(making.cancelled());
        }
        let bytes = &buffer[..read.map_err(|source| cannot_read(what, source))?];
        if at == 0
            && let content::Sniffed::Foreign(found) = content::sniff(bytes)
        {
            return Err(CloudError::Foreign {
                what: what.to_owned(),
                depth: 0,
                found,
            });
        }
        if bytes.is_empty() {
            to.set_len(at).map_err(|source| cannot_keep(what, source))?;
            return Ok(Digest::finish(hasher));
        }
        hasher.update(bytes);
        unpack::write_sparse(to, at, bytes).map_err(|source| cannot_keep(what, source))?;
        at += bytes.len() as u64;
        if at > options.limit {
            return Err(CloudError::TooLarge {
                what: what.to_owned(),
                size: ByteSize::from_bytes(at),
                limit: ByteSize::from_bytes(options.limit),
            });
        }
        making.goes_on(bytes.len() as u64);
    }
}
