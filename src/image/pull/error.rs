//! Why a pull fails.

use std::io;

use crate::image::blobs::BlobError;
use crate::image::layer::LayerError;
use crate::image::manifest::ManifestError;
use crate::image::registry::RegistryError;
use crate::units::Digest;

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry did not give what was asked of it.
    #[error("cannot pull {image}")]
    Registry {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: Box<RegistryError>,
    },
    /// The image's documents cannot be used.
    #[error("cannot use {image}")]
    Manifest {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// The bytes are not those that the manifest names.
    #[error(
        "layer {layer} of {image} arrived as {actual}: it was changed on the way or in the registry"
    )]
    LayerDigest {
        /// The image.
        image: String,
        /// The layer.
        layer: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// The tar is not the one that the config names.
    #[error("layer {layer} of {image} unpacks to {actual}, but the image's config says {expected}")]
    DiffId {
        /// The image.
        image: String,
        /// The layer.
        layer: Digest,
        /// The diff id in the config.
        expected: Digest,
        /// The digest of the tar.
        actual: Digest,
    },
    /// The layer is not compressed as it says, or its end is missing.
    #[error("cannot decompress layer {layer} of {image}")]
    Decode {
        /// The image.
        image: String,
        /// The layer.
        layer: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The layer could not become a blob.
    #[error("cannot convert layer {layer} of {image}")]
    Convert {
        /// The image.
        image: String,
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
        "{image} is not a VM image: none of its layers has {missing}; a VM image brings its own kernel as boot/vmlinuz* and its initramfs as boot/initrd.img*"
    )]
    NotBootable {
        /// The image.
        image: String,
        /// What is missing.
        missing: &'static str,
    },
    /// The system gives no thread, timer or event queue.
    #[error("cannot start a worker to pull {image}")]
    Worker {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The caller wanted it so.
    #[error("the pull of {image} was cancelled")]
    Cancelled {
        /// The image.
        image: String,
    },
}

impl PullError {
    /// Whether the pull ended because the caller wanted it so.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled { .. })
    }
}
