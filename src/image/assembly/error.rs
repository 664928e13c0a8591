//! Why layers do not become an image.

use std::io;

use crate::image::blobs::BlobError;
use crate::image::layer::LayerError;
use crate::units::Digest;

/// Why an image was not completed.
#[derive(Debug, thiserror::Error)]
pub enum AssemblyError {
    /// The bytes are not those that the manifest names.
    #[error(
        "layer {layer} of {image} arrived as {actual}: it was changed on the way or where it comes from"
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
    #[error("cannot start a worker for {image}")]
    Worker {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The caller wanted it so.
    #[error("cancelled before {image} was complete")]
    Cancelled {
        /// The image.
        image: String,
    },
}
