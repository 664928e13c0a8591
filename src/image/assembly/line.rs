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

    /// Sends a whole layer into `to`, and then its end. Ends early, without an error, if the
    /// receiver is gone.
    async fn send(&self, layer: &Layer, to: mpsc::Sender<Chunk>) -> Result<(), Self::Error>;
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
        let lock = match self.assembly.claim(&layer.digest).await? {
            Claim::Here(fetched) => return Ok(fetched),
            Claim::Ours(lock) => lock,
        };
        let staged = self.staging.layer(&layer.digest);
        let staged = staged.map_err(AssemblyError::from)?;
        let stored = self.transfer(layer, staged, lock, scope).await?;
        Ok(self.assembly.made(&layer.digest, stored))
    }

    /// Reads a layer here and converts it in a thread, both at the same time.
    async fn transfer<'scope, 'env>(
        &'env self,
        layer: &'env Layer,
        staged: StagedLayer,
        lock: LayerLock,
        scope: &'scope Scope<'scope, 'env>,
    ) -> Result<StoredLayer, S::Error> {
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
        };
        thread::Builder::new()
            .name(format!("layer-{}", &layer.digest.hex()[..8]))
            .spawn_scoped(scope, move || {
                // After a cancellation or another layer's error nobody waits for the answer.
                let _ = answer.send(making.make(chunks, &staged, &lock));
            })
            .map_err(|source| self.assembly.worker_failed(source))?;
        let (sent, made) = tokio::join!(self.supply.send(layer, to), answered);
        // A supply that failed is why the thread failed; otherwise the thread knows why.
        sent?;
        let ended = || io::Error::other("the layer's thread ended early");
        let made = made.map_err(|_| self.assembly.worker_failed(ended()))?;
        Ok(made?)
    }
}
