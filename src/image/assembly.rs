//! What a pull and an import share: layers become blobs, and blobs an image.
//!
//! ```text
//!   documents ──▶ layers, each once, some at a time: here already? made by someone else?
//!                    │ else in one pass:
//!                    ▼
//!   supply ─▶ sha-256 ─▶ decompress ─▶ sha-256 ─▶ converter ─▶ staging ─▶ blobs, boot
//!   (this thread)  (a thread a layer)                            both digests matched
//! ```
//! All layers are read on the calling thread; each has a thread that hashes and converts, fed
//! through a bounded channel.
//!
//! Invariants: a layer is made by one process at a time, whoever else wants it waits and finds it;
//! nothing is published before both digests matched; work files are gone when [`Assembly::run`]
//! returns. Layers that were finished before a failure **stay**, even those of an image without a
//! kernel: another command may have found them meanwhile, a second try goes on from them, and `gc`
//! takes what nothing refers to. The caller keeps `gc` out until it has recorded the image.

use std::collections::HashMap;
use std::io;
use std::num::NonZeroUsize;
use std::thread;

use tokio::runtime::Runtime;

use super::blobs::{BlobStore, LayerLock, Staging, StoredLayer};
use super::cancel::Cancel;
use super::layer::{Compression, Limits};
use super::manifest::{Layer, Platform};
use super::progress::{Progress, PullEvent};
use super::reference::Reference;
use crate::units::Digest;

mod error;
mod line;
mod making;

pub use error::AssemblyError;
use line::Line;
pub(super) use line::Supply;

/// How layers become an image.
#[derive(Debug)]
pub struct AssemblyOptions {
    /// Layers fetched and converted at the same time.
    pub parallel: NonZeroUsize,
    /// What the image must be made for.
    pub platform: Platform,
    /// How file data is stored in the blobs.
    pub compression: Compression,
    /// What a layer may cost.
    pub limits: Limits,
    /// Ends the work early.
    pub cancel: Cancel,
}

impl Default for AssemblyOptions {
    fn default() -> Self {
        Self {
            parallel: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            platform: Platform::host(),
            compression: Compression::Lz4,
            limits: Limits::default(),
            cancel: Cancel::new(),
        }
    }
}

/// An image whose layers are all present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyImage {
    /// Its name.
    pub reference: Reference,
    /// Digest of the platform's manifest, which is the digest of the image; of its config, where
    /// there is no manifest.
    pub manifest_digest: Digest,
    /// Digest of the config.
    pub config_digest: Digest,
    /// The processor it is made for, in OCI's words.
    pub architecture: &'static str,
    /// When it was built, by its own account.
    pub created: Option<jiff::Timestamp>,
    /// Bottom first; a layer may stand there twice.
    pub layers: Vec<ReadyLayer>,
    /// The topmost layer that has a kernel.
    pub kernel_layer: Digest,
    /// The topmost layer that has an initial RAM disk.
    pub initrd_layer: Digest,
    /// Bytes on disk of all its blobs and boot files, each counted once.
    pub size: u64,
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyLayer {
    /// Digest of the layer as it is transferred; its blob has this name.
    pub digest: Digest,
    /// Digest of its tar, by the image's config; checked when the blob was made.
    pub diff_id: Digest,
    /// Media type.
    pub media_type: &'static str,
    /// Bytes transferred.
    pub compressed_size: u64,
    /// Bytes of the blob.
    pub blob_size: u64,
    /// It was present already and nothing was transferred.
    pub cached: bool,
}

impl ReadyImage {
    /// Whether every layer was present already.
    pub fn was_up_to_date(&self) -> bool {
        self.layers.iter().all(|layer| layer.cached)
    }
}

/// What an image's documents say.
#[derive(Debug)]
pub(super) struct Documents {
    pub(super) manifest_digest: Digest,
    pub(super) config_digest: Digest,
    pub(super) created: Option<jiff::Timestamp>,
    /// Bottom first.
    pub(super) layers: Vec<Layer>,
}

/// What became of a layer.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) stored: StoredLayer,
    pub(super) cached: bool,
}

/// A layer that is wanted.
#[derive(Debug)]
pub(super) enum Claim {
    /// It is here.
    Here(Fetched),
    /// It is not, and nobody else may make it now.
    Ours(LayerLock),
}

/// An image that is being made.
#[derive(Clone, Copy)]
pub(super) struct Assembly<'a> {
    pub(super) image: &'a Reference,
    pub(super) options: &'a AssemblyOptions,
    pub(super) store: &'a BlobStore,
    pub(super) progress: &'a dyn Progress,
}

impl Assembly<'_> {
    /// Makes the layers of `documents` present that are not, and an image of them. Work files are in
    /// `staging`.
    pub(super) fn run<S: Supply>(
        &self,
        documents: &Documents,
        supply: &S,
        staging: &Staging,
        runtime: &Runtime,
    ) -> Result<ReadyImage, S::Error> {
        let line = Line::new(self, supply, staging);
        let fetched = thread::scope(|scope| {
            let fetch = line.fetch_all(documents, scope);
            runtime.block_on(self.unless_cancelled(fetch))
        })?;
        Ok(self.finish(documents, &fetched)?)
    }

    /// What `work` gives, unless it is cancelled.
    pub(super) async fn unless_cancelled<T, E: From<AssemblyError>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        tokio::select! {
            biased;
            () = self.options.cancel.cancelled() => Err(self.cancelled().into()),
            done = work => done,
        }
    }

    pub(super) fn cancelled(&self) -> AssemblyError {
        AssemblyError::Cancelled {
            image: self.image.to_string(),
        }
    }

    /// An event loop on this thread.
    pub(super) fn runtime(&self) -> Result<Runtime, AssemblyError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.map_err(|source| self.worker_failed(source))
    }

    fn worker_failed(&self, source: io::Error) -> AssemblyError {
        AssemblyError::Worker {
            image: self.image.to_string(),
            source,
        }
    }

    /// Finds a layer, or gets the right to make it.
    pub(super) async fn claim(&self, layer: &Digest) -> Result<Claim, AssemblyError> {
        if let Some(stored) = self.store.find(layer)? {
            return Ok(self.here(layer, stored));
        }
        let lock = match self.store.try_lock(layer)? {
            Some(lock) => lock,
            None => {
                let event = PullEvent::LayerWaiting { layer: *layer };
                self.progress.event(event);
                self.store.lock(layer).await?
            }
        };
        // Whoever had the lock may have made it.
        Ok(match self.store.find(layer)? {
            Some(stored) => self.here(layer, stored),
            None => Claim::Ours(lock),
        })
    }

    fn here(&self, layer: &Digest, stored: StoredLayer) -> Claim {
        self.progress
            .event(PullEvent::LayerCached { layer: *layer });
        Claim::Here(Fetched {
            stored,
            cached: true,
        })
    }

    /// What became of a layer that was made here.
    pub(super) fn made(&self, layer: &Digest, stored: StoredLayer) -> Fetched {
        self.progress.event(PullEvent::LayerDone {
            layer: *layer,
            blob_size: stored.blob_size,
        });
        Fetched {
            stored,
            cached: false,
        }
    }

    /// Finds the boot files and adds up.
    pub(super) fn finish(
        &self,
        image: &Documents,
        fetched: &HashMap<Digest, Fetched>,
    ) -> Result<ReadyImage, AssemblyError> {
        let topmost = |has: fn(&StoredLayer) -> bool| {
            let mut down = image.layers.iter().rev();
            down.find(|layer| has(&fetched[&layer.digest].stored))
        };
        let kernel = topmost(|stored| stored.kernel_size.is_some());
        let initrd = topmost(|stored| stored.initrd_size.is_some());
        let (kernel, initrd) = self.bootable(kernel, initrd)?;
        let layers = image.layers.iter().map(|layer| ReadyLayer {
            digest: layer.digest,
            diff_id: layer.diff_id,
            media_type: layer.media_type,
            compressed_size: layer.size,
            blob_size: fetched[&layer.digest].stored.blob_size,
            cached: fetched[&layer.digest].cached,
        });
        Ok(ReadyImage {
            reference: self.image.clone(),
            manifest_digest: image.manifest_digest,
            config_digest: image.config_digest,
            architecture: self.options.platform.architecture,
            created: image.created,
            layers: layers.collect(),
            kernel_layer: kernel.digest,
            initrd_layer: initrd.digest,
            size: fetched.values().map(|fetched| fetched.stored.size()).sum(),
        })
    }

    /// What an image must have to boot.
    pub(super) fn bootable<T>(
        &self,
        kernel: Option<T>,
        initrd: Option<T>,
    ) -> Result<(T, T), AssemblyError> {
        let missing = match (kernel, initrd) {
            (Some(kernel), Some(initrd)) => return Ok((kernel, initrd)),
            (None, None) => "a kernel or an initramfs",
            (None, _) => "a kernel",
            (_, None) => "an initramfs",
        };
        Err(AssemblyError::NotBootable {
            image: self.image.to_string(),
            missing,
        })
    }
}
