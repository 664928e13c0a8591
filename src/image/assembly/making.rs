//! What a layer's thread does: convert what arrives, check both digests, publish.

use std::io;

use tokio::sync::mpsc;

use super::{AssemblyError, AssemblyOptions};
use crate::image::blobs::{BlobStore, LayerLock, StagedLayer, StoredLayer, uuid_of};
use crate::image::decode::{self, Chunk, Received};
use crate::image::layer;
use crate::image::manifest::Layer;
use crate::image::reference::Reference;
use crate::units::Digest;

/// How much more of a layer is fetched, only to see whether its digest explains why it could not be
/// converted.
const MAX_POST_MORTEM: u64 = 32 << 20;

/// What a layer's thread does.
pub(super) struct Making<'a> {
    pub(super) image: &'a Reference,
    pub(super) options: &'a AssemblyOptions,
    pub(super) store: &'a BlobStore,
    pub(super) layer: &'a Layer,
    /// Whether nobody else could be asked for the layer.
    pub(super) is_last_source: bool,
}

impl Making<'_> {
    /// Converts what arrives, checks both digests, and only then publishes.
    pub(super) fn make(
        &self,
        chunks: mpsc::Receiver<Chunk>,
        staged: &StagedLayer,
        lock: &LayerLock,
    ) -> Result<StoredLayer, AssemblyError> {
        let mut received = Received::new(chunks);
        let converted = self.convert(&mut received, staged);
        let worth_asking = self.layer.size - received.count().min(self.layer.size);
        let diff_id = match converted {
            Err(error) if worth_asking > self.post_mortem(&error) => return Err(error),
            converted => {
                // If the layer is not what was asked for, then that is what is wrong with it.
                match (received.finish(), converted) {
                    (Ok(actual), _) if actual != self.layer.digest => {
                        return Err(AssemblyError::LayerDigest {
                            image: self.image.to_string(),
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
            return Err(AssemblyError::DiffId {
                image: self.image.to_string(),
                layer: self.layer.digest,
                expected: self.layer.diff_id,
                actual: diff_id,
            });
        }
        Ok(self.store.publish(staged, lock)?)
    }

    /// How much of a layer is fetched that could not be converted: all, if it may have been the fault of who
    /// sent it, and somebody else may send another.
    fn post_mortem(&self, error: &AssemblyError) -> u64 {
        let is_content = match error {
            AssemblyError::Decode { .. } => true,
            AssemblyError::Convert { source, .. } => source.is_content(),
            _ => false,
        };
        match is_content && !self.is_last_source {
            true => u64::MAX,
            false => MAX_POST_MORTEM,
        }
    }

    /// Converts the tar within `received`, and gives its digest.
    fn convert(
        &self,
        received: &mut Received,
        staged: &StagedLayer,
    ) -> Result<Digest, AssemblyError> {
        let mut tar = decode::unwrap(received, self.layer.wrapping)
            .map_err(|source| self.undecodable(source))?;
        let (compression, limits) = (self.options.compression, &self.options.limits);
        layer::convert(&mut tar, compression, limits, &staged.paths())
            .and_then(|converted| converted.finish(uuid_of(&self.layer.digest)))
            .map_err(|source| AssemblyError::Convert {
                image: self.image.to_string(),
                layer: self.layer.digest,
                source: Box::new(source),
            })?;
        Ok(tar.digest())
    }

    fn undecodable(&self, source: io::Error) -> AssemblyError {
        AssemblyError::Decode {
            image: self.image.to_string(),
            layer: self.layer.digest,
            source,
        }
    }
}
