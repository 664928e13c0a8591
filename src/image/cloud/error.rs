//! Why a disk image is not fetched or not used. An address stands in them without its login.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::content::{Foreign, Packing};
use crate::disk::MakeError;
use crate::disk::qcow2::HeaderError;
use crate::image::blobs::BlobError;
use crate::image::http::through;
use crate::units::{ByteSize, Digest};

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the messages say it, and the fields are what they name"
)]
pub enum CloudError {
    #[error(transparent)]
    Transfer(#[from] Box<TransferError>),
    #[error("{what} has {size}, and a disk image may have {limit}")]
    TooLarge {
        what: String,
        size: ByteSize,
        limit: ByteSize,
    },
    #[error("{what} has {size}, and in {} only {free} are free", folder.display())]
    NoSpace {
        what: String,
        size: ByteSize,
        free: ByteSize,
        folder: PathBuf,
    },
    #[error("{what} has the digest {actual}, not {expected}; nothing of it is kept")]
    Digest {
        what: String,
        expected: Digest,
        actual: Digest,
    },
    #[error("{what}{} is {found}, no disk image that can be used", unpacked(*.depth))]
    Foreign {
        what: String,
        /// How often it had to be unpacked to see that.
        depth: u32,
        found: Foreign,
    },
    #[error(
        "{what} is packed once more in itself ({packing}), and twice is the most that is unpacked"
    )]
    PackedTooOften { what: String, packing: Packing },
    #[error(
        "cannot unpack {what}: it is damaged, not whole, or needs more than 128 MiB of memory ({packing})"
    )]
    Unpack {
        what: String,
        packing: Packing,
        #[source]
        source: io::Error,
    },
    #[error("{what} unpacks to more than {limit}")]
    Bomb { what: String, limit: ByteSize },
    #[error(
        "{what} is a raw disk of {size} bytes, which is no multiple of its sectors of 512: it is damaged or not whole"
    )]
    Sectors { what: String, size: u64 },
    #[error("cannot use the qcow2 image {what}")]
    Header {
        what: String,
        #[source]
        source: HeaderError,
    },
    #[error("cannot convert {what}")]
    Normalise {
        what: String,
        #[source]
        source: MakeError,
    },
    #[error("cannot read {what}")]
    Read {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot keep {what}")]
    Write {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Blobs(#[from] BlobError),
    #[error("cannot start a worker for {what}")]
    Worker {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("cancelled before {what} was complete")]
    Cancelled { what: String },
}

/// Why a server did not give a file. All but the first and the last come from what it answers.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the messages say it, and the fields are what they name"
)]
pub enum TransferError {
    #[error("cannot prepare to fetch {url}")]
    Client {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("cannot follow where {url} leads")]
    Redirect {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("cannot reach {url}{}", through(.proxy.as_ref()))]
    Unreachable {
        url: String,
        /// Through which proxy it was asked.
        proxy: Option<String>,
        #[source]
        source: reqwest::Error,
    },
    #[error("the server broke off while it sent {url}")]
    Interrupted {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("the server ends {url} at byte {got} of {expected}")]
    Truncated {
        url: String,
        expected: u64,
        got: u64,
    },
    #[error("the server has no {url}")]
    Absent { url: String },
    #[error("the server{} refuses access to {url}: status {status}", through(.proxy.as_ref()))]
    Forbidden {
        url: String,
        /// Through which proxy it was asked, which may be who refuses.
        proxy: Option<String>,
        status: u16,
    },
    #[error("the server cannot send {url} now: status {status}")]
    Busy {
        url: String,
        status: u16,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    #[error("the server{} does not send {url}: status {status}", through(.proxy.as_ref()))]
    Refused {
        url: String,
        /// Through which proxy it was asked, which may be who refuses.
        proxy: Option<String>,
        status: u16,
    },
    #[error("the server sends a wrong part of {url}: {answer:?} instead of bytes {from} to {to}")]
    WrongPart {
        url: String,
        from: u64,
        to: u64,
        answer: String,
    },
    #[error("the server sends more than the part of {url} that ends with byte {last}")]
    TooMuch { url: String, last: u64 },
    #[error("{url} is another file than it was when the transfer began")]
    Changed { url: String },
    #[error("{url} has changed {times} times while it was fetched")]
    Unstable { url: String, times: u32 },
}

impl CloudError {
    /// Whether it ended because the caller wanted that.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled { .. })
    }
}

impl TransferError {
    /// Whether the same request may succeed later.
    pub(super) fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Interrupted { .. }
                | Self::Truncated { .. }
                | Self::Busy { .. }
        )
    }

    /// How long the server asks to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl From<TransferError> for CloudError {
    fn from(error: TransferError) -> Self {
        Box::new(error).into()
    }
}

fn unpacked(depth: u32) -> &'static str {
    match depth {
        0 => "",
        _ => ", unpacked,",
    }
}
