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
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};

use super::blobs::{BlobError, BlobStore, LayerLock, StagedLayer, Staging, StoredLayer, uuid_of};
use super::cancel::Cancel;
use super::decode::{self, Chunk, Received};
use super::download::{self, Download};
use super::layer::{self, Compression, LayerError, Limits};
use super::manifest::{self, Document, Layer, ManifestError, Platform};
use super::progress::{LayerRef, Progress, PullEvent};
use super::reference::Reference;
use super::registry::{RegistryError, Repository};
use super::retry::RetryPolicy;
use crate::units::Digest;

/// Chunks between the network and a layer's thread. A chunk is one read from a socket, up to some
/// 100 KiB, so that a layer waits with a few MiB at most.
const CHANNEL_CHUNKS: usize = 32;

/// How much more of a layer is fetched, only to see whether its digest explains why it could not be
/// converted.
const MAX_POST_MORTEM: u64 = 32 << 20;

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
    /// Digest of its tar, by the image's config.
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

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry did not give what was asked of it.
    #[error("cannot pull {reference}")]
    Registry {
        /// The image.
        reference: Reference,
        /// Why.
        #[source]
        source: RegistryError,
    },
    /// The image's documents cannot be used.
    #[error("cannot use {reference}")]
    Manifest {
        /// The image.
        reference: Reference,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// The bytes are not those that the manifest names.
    #[error(
        "layer {layer} of {reference} arrived as {actual}: it was changed on the way or in the registry"
    )]
    LayerDigest {
        /// The image.
        reference: Reference,
        /// The layer.
        layer: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// The tar is not the one that the config names.
    #[error(
        "layer {layer} of {reference} unpacks to {actual}, but the image's config says {expected}"
    )]
    DiffId {
        /// The image.
        reference: Reference,
        /// The layer.
        layer: Digest,
        /// The diff id in the config.
        expected: Digest,
        /// The digest of the tar.
        actual: Digest,
    },
    /// The layer is not compressed as it says, or its end is missing.
    #[error("cannot decompress layer {layer} of {reference}")]
    Decode {
        /// The image.
        reference: Reference,
        /// The layer.
        layer: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The layer could not become a blob.
    #[error("cannot convert layer {layer} of {reference}")]
    Convert {
        /// The image.
        reference: Reference,
        /// The layer.
        layer: Digest,
        /// Why.
        #[source]
        source: Box<LayerError>,
    },
    /// A file operation on the layers failed.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// The image cannot boot.
    #[error(
        "{reference} is not a VM image: none of its layers has {missing}; a VM image brings its own kernel as boot/vmlinuz* and its initramfs as boot/initrd.img*"
    )]
    NotBootable {
        /// The image.
        reference: Reference,
        /// What is missing.
        missing: &'static str,
    },
    /// The system gives no thread, timer or event queue.
    #[error("cannot start a worker to pull {reference}")]
    Worker {
        /// The image.
        reference: Reference,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The caller wanted it so.
    #[error("the pull of {reference} was cancelled")]
    Cancelled {
        /// The image.
        reference: Reference,
    },
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
        reference: reference.clone(),
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
        reference: reference.clone(),
        source,
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
                reference: self.reference.clone(),
            }),
            done = work => done,
        }
    }

    fn registry_failed(&self, source: RegistryError) -> PullError {
        registry_failed(self.reference, source)
    }

    fn unusable(&self, source: ManifestError) -> PullError {
        PullError::Manifest {
            reference: self.reference.clone(),
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
    async fn platform_manifest(
        &self,
    ) -> Result<(oci_spec::image::ImageManifest, Digest), PullError> {
        let mut target = match (self.reference.digest(), self.reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        let mut expected = self.reference.digest().copied();
        // An index, then a manifest; an index within an index is used by nobody.
        for _ in 0..2 {
            let fetched = download::repeat(&self.options.retry, self.progress, async || {
                self.repository.manifest(&target, expected.as_ref()).await
            });
            let fetched = fetched.await.map_err(|error| self.registry_failed(error))?;
            let read = manifest::read(&fetched.body, fetched.content_type.as_deref());
            match read.map_err(|error| self.unusable(error))? {
                Document::Manifest(manifest) => return Ok((manifest, fetched.digest)),
                Document::Index(index) => {
                    let chosen = manifest::choose(&index, self.options.platform);
                    let chosen = chosen.map_err(|error| self.unusable(error))?;
                    target = chosen.to_string();
                    expected = Some(chosen);
                }
            }
        }
        Err(self.unusable(ManifestError::NestedIndex))
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
            reference: self.reference,
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
            reference: self.reference.clone(),
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
            reference: self.reference.clone(),
            missing,
        }
    }
}

/// What a layer's thread does.
struct Making<'a> {
    reference: &'a Reference,
    options: &'a PullOptions,
    store: &'a BlobStore,
    layer: &'a Layer,
}

impl Making<'_> {
    /// Converts what arrives, checks both digests, and only then publishes.
    fn make(
        &self,
        chunks: mpsc::Receiver<Chunk>,
        staged: &StagedLayer,
        lock: &LayerLock,
    ) -> Result<StoredLayer, PullError> {
        let mut received = Received::new(chunks);
        let converted = self.convert(&mut received, staged);
        let worth_asking = self.layer.size - received.count().min(self.layer.size);
        let diff_id = match converted {
            Err(error) if worth_asking > MAX_POST_MORTEM => return Err(error),
            converted => {
                // If the layer is not what was asked for, then that is what is wrong with it.
                match (received.finish(), converted) {
                    (Ok(actual), _) if actual != self.layer.digest => {
                        return Err(PullError::LayerDigest {
                            reference: self.reference.clone(),
                            layer: self.layer.digest,
                            actual,
                        });
                    }
                    (_, Err(error)) => return Err(error),
                    (Err(source), Ok(_)) => return Err(self.undecodable(source)),
                    (Ok(_), Ok(diff_id)) => diff_id,
                }
            }
        };
        if diff_id != self.layer.diff_id {
            return Err(PullError::DiffId {
                reference: self.reference.clone(),
                layer: self.layer.digest,
                expected: self.layer.diff_id,
                actual: diff_id,
            });
        }
        Ok(self.store.publish(staged, lock)?)
    }

    /// Converts the tar within `received`, and gives its digest.
    fn convert(&self, received: &mut Received, staged: &StagedLayer) -> Result<Digest, PullError> {
        let mut tar = decode::unwrap(received, self.layer.wrapping)
            .map_err(|source| self.undecodable(source))?;
        layer::convert(
            &mut tar,
            uuid_of(&self.layer.digest),
            self.options.compression,
            &self.options.limits,
            &staged.paths(),
        )
        .map_err(|source| PullError::Convert {
            reference: self.reference.clone(),
            layer: self.layer.digest,
            source: Box::new(source),
        })?;
        Ok(tar.digest())
    }

    fn undecodable(&self, source: io::Error) -> PullError {
        PullError::Decode {
            reference: self.reference.clone(),
            layer: self.layer.digest,
            source,
        }
    }
}
