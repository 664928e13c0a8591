//! What a pull or an import tells while it works. The library calls back, the CLI draws.

use std::time::Duration;

use crate::units::Digest;

/// Receives the events of a pull or an import. Called from the thread that does it, so it must not wait.
pub trait Progress: Sync {
    /// Something happened.
    fn event(&self, event: PullEvent<'_>);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _event: PullEvent<'_>) {}
}

/// A layer as the events name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerRef {
    /// Digest of the layer as it is transferred.
    pub digest: Digest,
    /// Bytes to transfer.
    pub compressed_size: u64,
}

/// What is done to get a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskStep {
    /// It is fetched from a server.
    Fetching,
    /// It is read from a file or stream.
    Reading,
    /// It was compressed, and is unpacked.
    Unpacking,
    /// It becomes what is stored.
    Converting,
    /// It is written down, so that no power failure takes it.
    Storing,
}

/// What happens during a pull or an import. Per layer: either [`LayerCached`](PullEvent::LayerCached), or
/// `LayerStarted`, any number of `LayerAdvanced` and `Retry`, and `LayerDone` if all went well. A layer that is
/// fetched again from its beginning, for a host had sent another one, is started again.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum PullEvent<'a> {
    /// An import begins to read a file or stream whose layers are not known yet.
    StreamStarted {
        /// Bytes to read, if that is known.
        total: Option<u64>,
    },
    /// More of it has been read.
    StreamAdvanced {
        /// Bytes since the last such event.
        bytes: u64,
    },
    /// The image is known; these layers make it up, bottom first, each named once.
    Resolved {
        /// Digest of the platform's manifest.
        manifest: Digest,
        /// The layers.
        layers: &'a [LayerRef],
    },
    /// Someone else converts this layer; it is waited for.
    LayerWaiting {
        /// The layer.
        layer: Digest,
    },
    /// The layer is on this host already.
    LayerCached {
        /// The layer.
        layer: Digest,
    },
    /// The layer's transfer begins.
    LayerStarted {
        /// The layer.
        layer: Digest,
        /// Bytes to transfer.
        total: u64,
    },
    /// More of the layer has arrived.
    LayerAdvanced {
        /// The layer.
        layer: Digest,
        /// Bytes since the last such event.
        bytes: u64,
    },
    /// A request failed and is repeated; a layer goes on where it broke off.
    Retry {
        /// The layer, or none for the image's manifest or config.
        layer: Option<Digest>,
        /// What went wrong, for a log line.
        reason: &'a dyn std::error::Error,
        /// How long the pull waits first.
        delay: Duration,
    },
    /// A host of a registry failed, and the next one is asked.
    NextHost {
        /// What went wrong, for a log line.
        reason: &'a dyn std::error::Error,
    },
    /// A step of getting a disk image begins, or is done once more from its beginning; the step before is over.
    DiskStep {
        /// What is done.
        step: DiskStep,
        /// Bytes to fetch, read or convert, if that is known.
        total: Option<u64>,
    },
    /// More of a disk image has been fetched, read or converted.
    DiskAdvanced {
        /// Bytes since the last such event.
        bytes: u64,
    },
    /// A server did not give a disk image, or gives another than before, and is asked again.
    DiskRetry {
        /// What went wrong, for a log line.
        reason: &'a dyn std::error::Error,
        /// How long the pull waits first.
        delay: Duration,
    },
    /// The layer is verified, converted and published.
    LayerDone {
        /// The layer.
        layer: Digest,
        /// Bytes of its blob.
        blob_size: u64,
    },
}
