//! Layers on their way from a supply to the blobs, some at a time.

use std::collections::HashMap;
use std::io;
use std::thread::{self, Scope};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::sync::{mpsc, oneshot};

use super::making::Making;
use super::{Assembly, AssemblyError, Claim, Documents, Fetched};
use crate::image::blobs::{LayerLock, StagedLayer, Staging, StoredLayer};
use crate::image::decode::Chunk;
use crate::image::manifest::Layer;
use crate::image::progress::{LayerRef, PullEvent};
use crate::units::Digest;

/// Chunks between the supply and a layer's thread. A chunk is one read from a socket or file, up to
/// some 100 KiB, so that a layer waits with a few MiB at most.
const CHANNEL_CHUNKS: usize = 32;

/// Where layers come from.
pub(in crate::image) trait Supply {
    /// Why one does not come.
    type Error: From<AssemblyError>;

    /// How many sources there are that may each have a layer.
    fn sources(&self) -> usize;

    /// What has come from the one of this number is not `layer`, but has another digest; the next one is asked.
    fn passes_over(&self, source: usize, layer: &Layer, actual: Digest);

    /// Sends a whole layer into `to`, and then its end, without those of the sources that come before
    /// `first`. Ends early, without an error, if the receiver is gone.
    async fn send(
        &self,
        layer: &Layer,
        first: usize,
        to: mpsc::Sender<Chunk>,
    ) -> Result<(), Self::Error>;
}

/// A layer that is being made, and the right to.
struct Work {
    staged: StagedLayer,
    lock: LayerLock,
}

/// Layers that come from a supply.
pub(super) struct Line<'a, S> {
    assembly: &'a Assembly<'a>,
    supply: &'a S,
    staging: &'a Staging,
}

impl<'a, S: Supply> Line<'a, S> {
    pub(super) fn new(assembly: &'a Assembly<'a>, supply: &'a S, staging: &'a Staging) -> Self {
        Self {
            assembly,
            supply,
            staging,
        }
    }

    /// Makes all layers present, some at a time; the first error ends them all.
    pub(super) async fn fetch_all<'scope, 'env>(
        &'env self,
        image: &'env Documents,
        scope: &'scope Scope<'scope, 'env>,
    ) -> Result<HashMap<Digest, Fetched>, S::Error> {
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
        self.assembly.progress.event(PullEvent::Resolved {
            manifest: image.manifest_digest,
            layers: &told,
        });
        stream::iter(unique)
            .map(|layer| async move {
                let fetched = self.fetch(layer, scope).await?;
                Ok((layer.digest, fetched))
            })
            .buffer_unordered(self.assembly.options.parallel.get())
            .try_collect()
            .await
    }

    /// Makes one layer present.
    async fn fetch<'scope, 'env>(
        &'env self,
        layer: &'env Layer,
        scope: &'scope Scope<'scope, 'env>,
    ) -> Result<Fetched, S::Error> {
        let mut lock = match self.assembly.claim(&layer.digest).await? {
            Claim::Here(fetched) => return Ok(fetched),
            Claim::Ours(lock) => lock,
        };
        let mut source = 0;
        loop {
            let staged = self.staging.layer(&layer.digest);
            let staged = staged.map_err(AssemblyError::from)?;
            let work = Work { staged, lock };
            let (made, work) = self.transfer(layer, work, source, scope).await?;
            match made {
                // What the next one sends may be what was asked for.
                Err(AssemblyError::LayerDigest { actual, .. }) if !self.is_last(source) => {
                    self.supply.passes_over(source, layer, actual);
                    work.staged.discard().map_err(AssemblyError::from)?;
                    (source, lock) = (source + 1, work.lock);
                }
                made => return Ok(self.assembly.made(&layer.digest, made?)),
            }
        }
    }

    fn is_last(&self, source: usize) -> bool {
        source + 1 >= self.supply.sources()
    }

    /// Reads a layer here and converts it in a thread, both at the same time.
    async fn transfer<'scope, 'env>(
        &'env self,
        layer: &'env Layer,
        work: Work,
        source: usize,
        scope: &'scope Scope<'scope, 'env>,
    ) -> Result<(Result<StoredLayer, AssemblyError>, Work), S::Error> {
        self.assembly.progress.event(PullEvent::LayerStarted {
            layer: layer.digest,
            total: layer.size,
        });
        let (to, chunks) = mpsc::channel(CHANNEL_CHUNKS);
        let (answer, answered) = oneshot::channel();
        let making = Making {
            image: self.assembly.image,
            options: self.assembly.options,
            store: self.assembly.store,
            layer,
            is_last_source: self.is_last(source),
        };
        thread::Builder::new()
            .name(format!("layer-{}", &layer.digest.hex()[..8]))
            .spawn_scoped(scope, move || {
                // After a cancellation or another layer's error nobody waits for the answer.
                let made = making.make(chunks, &work.staged, &work.lock);
                let _ = answer.send((made, work));
            })
            .map_err(|source| self.assembly.worker_failed(source))?;
        let (sent, made) = tokio::join!(self.supply.send(layer, source, to), answered);
        // A supply that failed is why the thread failed; otherwise the thread knows why.
        sent?;
        let ended = || io::Error::other("the layer's thread ended early");
        Ok(made.map_err(|_| self.assembly.worker_failed(ended()))?)
    }
}
