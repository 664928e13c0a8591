//! Why an import fails.

use std::io;

use crate::image::assembly::AssemblyError;
use crate::image::layer::{EntryName, LayerError, Refusal};
use crate::image::manifest::ManifestError;
use crate::units::Digest;

/// What was not imported.
#[derive(Debug, thiserror::Error)]
#[error("cannot import {input}")]
pub struct ImportError {
    /// A path, or what else was read.
    pub input: String,
    /// Why.
    #[source]
    pub reason: Box<Reason>,
}

impl ImportError {
    /// Whether the import ended because the caller wanted it so.
    pub fn is_cancelled(&self) -> bool {
        matches!(
            *self.reason,
            Reason::Assembly(AssemblyError::Cancelled { .. })
        )
    }
}

/// Why something was not imported.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the messages say it, and the fields are what they name"
)]
pub enum Reason {
    #[error("cannot read {what}")]
    Read {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("it is empty")]
    Empty,
    #[error("it is a {0} disk image; what can be imported are tars and OCI layouts")]
    DiskImage(&'static str),
    #[error(
        "it is compressed by {0}; what can be read is compressed once by gzip or zstd, or not at all"
    )]
    Compressed(&'static str),
    #[error("it is no tar, nor one that gzip or zstd has compressed")]
    Unknown,
    #[error("the folder has neither oci-layout nor manifest.json, so it is no OCI layout")]
    NoLayout,
    #[error("it unpacks to more than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("cannot keep a copy of it while it is read")]
    Keep(#[source] io::Error),
    /// The tar itself, or the one layer that it is.
    #[error(transparent)]
    Tar(#[from] LayerError),
    #[error("its entry {entry} is refused")]
    Member {
        entry: EntryName,
        #[source]
        source: MemberRefusal,
    },
    #[error("it lacks {name:?}, which an image in it needs")]
    Lacking { name: String },
    #[error("{name:?} in it has {size} bytes, and at most {limit} are possible")]
    DocumentTooLarge { name: String, size: u64, limit: u64 },
    #[error("{name:?} in it has the digest {actual}, not {expected}")]
    DigestMismatch {
        name: String,
        expected: Digest,
        actual: Digest,
    },
    #[error("{name:?} in it has {actual} bytes, and its documents say {expected}")]
    SizeMismatch {
        name: String,
        expected: u64,
        actual: u64,
    },
    #[error("{name:?} in it is malformed")]
    Malformed {
        name: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("it is an OCI layout of version {0:?}; version 1.0.0 is known")]
    LayoutVersion(String),
    #[error("it holds no image")]
    NoImage,
    #[error("it holds several images ({}), none or more than one of that name", names.join(", "))]
    SeveralImages { names: Vec<String> },
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Assembly(#[from] AssemblyError),
}

/// What is wrong with a member of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message says what its variant is")]
pub enum MemberRefusal {
    #[error(transparent)]
    Name(#[from] Refusal),
    #[error("there are two of that name")]
    Twice,
    #[error("it links to what is outside")]
    LinkOut,
    #[error("it is a link to a link to a link, and so on")]
    LinkLoop,
    #[error("it is no file")]
    NoFile,
    #[error("it is a file with holes")]
    Sparse,
}
