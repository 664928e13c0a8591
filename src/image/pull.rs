//! Pulls an image: from a name in a registry to verified layers on disk.
//!
//! ```text
//!   reference ──▶ index ──platform──▶ manifest ──▶ config
//!                                        │ each layer, some at a time, in one pass:
//!                                        ▼
//!   registry ─▶ sha-256 ─▶ decompress ─▶ sha-256 ─▶ converter ─▶ staging ─▶ blobs, boot
//!   (this thread)  (a thread a layer)                              both digests matched
//! ```
//! All network I/O runs on the calling thread; each layer has a thread that hashes and converts,
//! fed through a bounded channel.
//!
//! Invariants: a layer is made by one process at a time, whoever else wants it waits and finds it;
//! nothing is published before both digests matched; work files are gone when [`pull`] returns.
//! Layers that were finished before a pull failed **stay**, even those of an image without a
//! kernel: another pull may have found them meanwhile, a second try goes on from them, and `gc`
//! takes what nothing refers to. The caller keeps `gc` out until it has recorded the image.

use std::collections::HashMap;
use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread::{self, Scope};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use oci_spec::image::ImageManifest;
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};

use super::blobs::{BlobStore, LayerLock, StagedLayer, Staging, StoredLayer};
use super::cancel::Cancel;
use super::download::{self, Download};
use super::layer::{Compression, Limits};
use super::manifest::{self, Document, Layer, ManifestError, Platform};
use super::progress::{LayerRef, Progress, PullEvent};
use super::reference::Reference;
use super::registry::{RegistryError, Repository};
use super::retry::RetryPolicy;
use crate::units::Digest;

mod error;
mod making;

#[cfg(test)]
mod fault_server;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_processes;
#[cfg(test)]
mod tests_with_a_registry;

pub use error::PullError;
use making::Making;

/// Chunks between the network and a layer's thread. A chunk is one read from a socket, up to some
/// 100 KiB, so that a layer waits with a few MiB at most.
const CHANNEL_CHUNKS: usize = 32;

/// How to pull.
#[derive(Debug)]
pub struct PullOptions {
    /// Docker's `config.json`, which need not exist; without it access is anonymous.
    pub docker_config: Option<PathBuf>,
    /// Layers fetched and converted at the same time.
    pub parallel: NonZeroUsize,
    /// When to repeat a failed request.
    pub retry: RetryPolicy,
    /// What the image must be made for.
    pub platform: Platform,
    /// How file data is stored in the blobs.
    pub compression: Compression,
    /// What a layer may cost.
    pub limits: Limits,
    /// Ends the pull early.
    pub cancel: Cancel,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            docker_config: None,
            parallel: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            retry: RetryPolicy::default(),
            platform: Platform::host(),
            compression: Compression::Lz4,
            limits: Limits::default(),
            cancel: Cancel::new(),
        }
    }
}

/// An image whose layers are all present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PulledImage {
    /// The name it was pulled by.
    pub reference: Reference,
    /// Digest of the platform's manifest, which is the digest of the image.
    pub manifest_digest: Digest,
    /// Digest of the config.
    pub config_digest: Digest,
    /// The processor it is made for, in OCI's words.
    pub architecture: &'static str,
    /// When it was built, by its own account.
    pub created: Option<jiff::Timestamp>,
    /// Bottom first; a layer may stand there twice.
    pub layers: Vec<PulledLayer>,
    /// The topmost layer that has a kernel.
    pub kernel_layer: Digest,
    /// The topmost layer that has an initial RAM disk.
    pub initrd_layer: Digest,
    /// Bytes on disk of all its blobs and boot files, each counted once.
    pub size: u64,
}

/// A layer of a pulled image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PulledLayer {
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

impl PulledImage {
    /// Whether every layer was present already.
    pub fn was_up_to_date(&self) -> bool {
        self.layers.iter().all(|layer| layer.cached)
    }
}

/// Pulls an image into `store`. Layers that are present are not transferred again; if all are, only
/// the image's documents are read.
///
/// # Errors
/// See [`PullError`]; no work files are left.
pub fn pull(
    reference: &Reference,
    options: &PullOptions,
    store: &BlobStore,
    progress: &dyn Progress,
) -> Result<PulledImage, PullError> {
    let worker_failed = |source| PullError::Worker {
        image: reference.to_string(),
        source,
    };
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(worker_failed)?;
    let repository = Repository::new(reference, options.docker_config.clone())
        .map_err(|source| registry_failed(reference, source))?;
    let pull = Pull {
        reference,
        options,
        store,
        progress,
        repository,
    };
    let image = runtime.block_on(pull.unless_cancelled(pull.resolve()))?;
    // The threads are joined before the staging folder goes, and with it what they left.
    let staging = store.stage()?;
    let stored = thread::scope(|scope| {
        let fetch = pull.fetch_all(&image, &staging, scope);
        runtime.block_on(pull.unless_cancelled(fetch))
    })?;
    pull.finish(image, &stored)
}

fn registry_failed(reference: &Reference, source: RegistryError) -> PullError {
    PullError::Registry {
        image: reference.to_string(),
        source: Box::new(source),
    }
}

/// An image whose documents are read.
struct Resolved {
    manifest_digest: Digest,
    config_digest: Digest,
    created: Option<jiff::Timestamp>,
    layers: Vec<Layer>,
}

/// What became of a layer.
struct Fetched {
    stored: StoredLayer,
    cached: bool,
}

struct Pull<'a> {
    reference: &'a Reference,
    options: &'a PullOptions,
    store: &'a BlobStore,
    progress: &'a dyn Progress,
    repository: Repository,
}

impl Pull<'_> {
    async fn unless_cancelled<T>(
        &self,
        work: impl Future<Output = Result<T, PullError>>,
    ) -> Result<T, PullError> {
        tokio::select! {
            biased;
            () = self.options.cancel.cancelled() => Err(PullError::Cancelled {
                image: self.reference.to_string(),
            }),
            done = work => done,
        }
    }

    fn registry_failed(&self, source: RegistryError) -> PullError {
        registry_failed(self.reference, source)
    }

    fn unusable(&self, source: ManifestError) -> PullError {
        PullError::Manifest {
            image: self.reference.to_string(),
            source,
        }
    }

    /// Reads the image's documents.
    async fn resolve(&self) -> Result<Resolved, PullError> {
        let platform = self.options.platform;
        let (manifest, manifest_digest) = self.platform_manifest().await?;
        let config_digest = manifest::config_of(&manifest);
        let config_digest = config_digest.map_err(|error| self.unusable(error))?;
        let what = format!("config {}", config_digest.short());
        let config = download::repeat(&self.options.retry, self.progress, async || {
            self.repository.small_blob(&what, &config_digest).await
        });
        let config = config.await.map_err(|error| self.registry_failed(error))?;
        let config = manifest::read_config(&config, platform);
        let config = config.map_err(|error| self.unusable(error))?;
        let layers = manifest::layers(&manifest, &config).map_err(|error| self.unusable(error))?;
        Ok(Resolved {
            manifest_digest,
            config_digest,
            created: config.created,
            layers,
        })
    }

    /// The manifest for the platform, by way of an index if there is one.
    async fn platform_manifest(&self) -> Result<(Box<ImageManifest>, Digest), PullError> {
        let wanted = self.reference.digest();
        let target = match (wanted, self.reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        let index = match self.document(&target, wanted).await? {
            (Document::Manifest(manifest), digest) => return Ok((manifest, digest)),
            (Document::Index(index), _) => index,
        };
        let chosen = manifest::choose(&index, self.options.platform);
        let chosen = chosen.map_err(|error| self.unusable(error))?;
        match self.document(&chosen.to_string(), Some(&chosen)).await? {
            (Document::Manifest(manifest), digest) => Ok((manifest, digest)),
            (Document::Index(_), _) => Err(self.unusable(ManifestError::NestedIndex)),
        }
    }

    async fn document(
        &self,
        target: &str,
        expected: Option<&Digest>,
    ) -> Result<(Document, Digest), PullError> {
        let fetched = download::repeat(&self.options.retry, self.progress, async || {
            self.repository.manifest(target, expected).await
        });
        let fetched = fetched.await.map_err(|error| self.registry_failed(error))?;
        let document = manifest::read(&fetched.body, fetched.content_type.as_deref());
        let document = document.map_err(|error| self.unusable(error))?;
        Ok((document, fetched.digest))
    }

    /// Makes all layers present, some at a time; the first error ends them all.
    async fn fetch_all<'scope, 'env>(
        &'env self,
        image: &'env Resolved,
        staging: &'env Staging,
        scope: &'scope Scope<'scope, 'env>,
    ) -> Result<HashMap<Digest, Fetched>, PullError> {
        let mut unique: Vec<&Layer> = Vec::new();
        for layer in &image.layers {
            if !unique.iter().any(|other| other.digest == layer.digest) {
                unique.push(layer);
            }
        }
        let told: Vec<LayerRef> = unique
            .iter()
            .map(|layer| LayerRef {
                digest: layer.digest,
                compressed_size: layer.size,
            })
            .collect();
        self.progress.event(PullEvent::Resolved {
            manifest: image.manifest_digest,
            layers: &told,
        });
        stream::iter(unique)
            .map(|layer| async move {
                let fetched = self.fetch(layer, staging, scope).await?;
                Ok((layer.digest, fetched))
            })
            .buffer_unordered(self.options.parallel.get())
            .try_collect()
            .await
    }

    /// Makes one layer present.
    async fn fetch<'scope, 'env>(
        &'env self,
        layer: &'env Layer,
        staging: &'env Staging,
        scope: &'scope Scope<'scope, 'env>,
    ) -> Result<Fetched, PullError> {
        let digest = layer.digest;
        if let Some(stored) = self.store.find(&digest)? {
            return Ok(self.cached(digest, stored));
        }
        let lock = match self.store.try_lock(&digest)? {
            Some(lock) => lock,
            None => {
                let event = PullEvent::LayerWaiting { layer: digest };
                self.progress.event(event);
                self.store.lock(&digest).await?
            }
        };
        // Whoever had the lock may have made it.
        if let Some(stored) = self.store.find(&digest)? {
            return Ok(self.cached(digest, stored));
        }
        let stored = self.transfer(layer, staging.layer(&digest)?, lock, scope);
        let stored = stored.await?;
        self.progress.event(PullEvent::LayerDone {
            layer: digest,
            blob_size: stored.blob_size,
        });
        Ok(Fetched {
            stored,
            cached: false,
        })
    }

    fn cached(&self, layer: Digest, stored: StoredLayer) -> Fetched {
        self.progress.event(PullEvent::LayerCached { layer });
        Fetched {
            stored,
            cached: true,
        }
    }

    /// Downloads a layer here and converts it in a thread, both at the same time.
    async fn transfer<'scope, 'env>(
        &'env self,
        layer: &'env Layer,
        staged: StagedLayer,
        lock: LayerLock,
        scope: &'scope Scope<'scope, 'env>,
    ) -> Result<StoredLayer, PullError> {
        self.progress.event(PullEvent::LayerStarted {
            layer: layer.digest,
            total: layer.size,
        });
        let (to, chunks) = mpsc::channel(CHANNEL_CHUNKS);
        let (answer, answered) = oneshot::channel();
        let making = Making {
            image: self.reference,
            options: self.options,
            store: self.store,
            layer,
        };
        thread::Builder::new()
            .name(format!("layer-{}", &layer.digest.hex()[..8]))
            .spawn_scoped(scope, move || {
                // After a cancellation or another layer's error nobody waits for the answer.
                let _ = answer.send(making.make(chunks, &staged, &lock));
            })
            .map_err(|source| self.worker_failed(source))?;
        let download = Download::new(&self.repository, layer, self.progress);
        let download = download.run(&self.options.retry, to);
        let (downloaded, made) = tokio::join!(download, answered);
        // A download that failed is why the thread failed; otherwise the thread knows why.
        downloaded.map_err(|error| self.registry_failed(error))?;
        made.map_err(|_| self.worker_failed(io::Error::other("the layer's thread ended early")))?
    }

    fn worker_failed(&self, source: io::Error) -> PullError {
        PullError::Worker {
            image: self.reference.to_string(),
            source,
        }
    }

    /// Finds the boot files and adds up.
    fn finish(
        &self,
        image: Resolved,
        fetched: &HashMap<Digest, Fetched>,
    ) -> Result<PulledImage, PullError> {
        let topmost = |has: fn(&StoredLayer) -> bool| {
            let mut down = image.layers.iter().rev();
            down.find(|layer| has(&fetched[&layer.digest].stored))
        };
        let kernel = topmost(|stored| stored.kernel_size.is_some());
        let initrd = topmost(|stored| stored.initrd_size.is_some());
        let (kernel, initrd) = match (kernel, initrd) {
            (Some(kernel), Some(initrd)) => (kernel.digest, initrd.digest),
            (None, None) => return Err(self.not_bootable("a kernel or an initramfs")),
            (None, _) => return Err(self.not_bootable("a kernel")),
            (_, None) => return Err(self.not_bootable("an initramfs")),
        };
        let layers = image.layers.iter().map(|layer| PulledLayer {
            digest: layer.digest,
            diff_id: layer.diff_id,
            media_type: layer.media_type,
            compressed_size: layer.size,
            blob_size: fetched[&layer.digest].stored.blob_size,
            cached: fetched[&layer.digest].cached,
        });
        Ok(PulledImage {
            reference: self.reference.clone(),
            manifest_digest: image.manifest_digest,
            config_digest: image.config_digest,
            architecture: self.options.platform.architecture,
            created: image.created,
            layers: layers.collect(),
            kernel_layer: kernel,
            initrd_layer: initrd,
            size: fetched.values().map(|fetched| fetched.stored.size()).sum(),
        })
    }

    fn not_bootable(&self, missing: &'static str) -> PullError {
        PullError::NotBootable {
            image: self.reference.to_string(),
            missing,
        }
    }
}
