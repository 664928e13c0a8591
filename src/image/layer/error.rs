//! Why a layer is not converted: each error names the entry or the file.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::super::erofs::{ErofsError, XattrError};

/// The name of an archive's entry, as it stands there; shown with escapes and cut to 256 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct EntryName(Box<[u8]>);

impl EntryName {
    pub(in crate::image) fn new(name: &[u8]) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 256;
        let text = String::from_utf8_lossy(&self.0[..self.0.len().min(SHOWN)]);
        let dots = if self.0.len() > SHOWN { "..." } else { "" };
        write!(f, "\"{}{dots}\"", text.escape_debug())
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a layer could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The stream failed.
    #[error("cannot read the tar stream at entry {entry}")]
    Read {
        /// The entry that was being read, or the last one before.
        entry: EntryName,
        /// What the stream said.
        #[source]
        source: io::Error,
    },
    /// The stream ended within an entry.
    #[error("the tar stream ends within entry {entry}")]
    Truncated {
        /// The entry that was being read, or the last one before.
        entry: EntryName,
    },
    /// An entry that is broken, hostile or beyond what an EROFS layer can hold.
    #[error("entry {entry} is refused")]
    Refused {
        /// The entry.
        entry: EntryName,
        /// What is wrong with it.
        #[source]
        reason: Refusal,
    },
    /// A file exists already or cannot be created or synced.
    #[error("cannot create {}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A boot file cannot be written.
    #[error("cannot copy entry {entry} to {}", path.display())]
    BootFile {
        /// The entry.
        entry: EntryName,
        /// The file that it is copied to.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The image cannot be written.
    #[error("cannot make the image {}", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// What the writer said.
        #[source]
        source: ErofsError,
    },
}

impl LayerError {
    /// Whether it is the stream that is wrong, and not this host.
    pub fn is_content(&self) -> bool {
        matches!(
            self,
            Self::Read { .. } | Self::Truncated { .. } | Self::Refused { .. }
        )
    }
}

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message says what its variant is")]
pub enum Refusal {
    #[error("its header has a wrong checksum")]
    Checksum,
    #[error("its {0} is not a number that fits")]
    Number(&'static str),
    #[error("its extension header is malformed: {0}")]
    Extension(&'static str),
    #[error("its extension header takes more than 1 MiB")]
    ExtensionTooLarge,
    #[error("entries of type {:?} are not supported", char::from(*.0))]
    Type(u8),
    #[error("it has data but is no file")]
    DataOfNoFile,
    #[error("an end-of-archive record stands alone after it")]
    LoneEnd,
    #[error("its sparse map is malformed: {0}")]
    Sparse(&'static str),
    #[error("its name leaves the root folder")]
    LeavesRoot,
    #[error("a name in its path has more than 255 bytes")]
    NameTooLong,
    #[error("its path has more than 4096 bytes")]
    PathTooLong,
    #[error("its name has a NUL or is empty")]
    BadName,
    #[error("it lies below a symbolic link of the same layer")]
    BelowSymlink,
    #[error("it lies below a file of the same layer")]
    BelowFile,
    #[error("it lies below a whiteout name or is a whiteout of nothing")]
    BadWhiteout,
    #[error("only a directory can be the root")]
    RootNotDirectory,
    #[error("its link target is empty, too long or has a NUL")]
    BadLinkTarget,
    #[error("it is a hard link to what the layer does not have before it")]
    LinkTargetMissing,
    #[error("it is a hard link to a directory")]
    LinkToDirectory,
    #[error("its device number does not fit into 12 bits of major and 20 of minor")]
    DeviceNumber,
    #[error(transparent)]
    Xattrs(#[from] XattrError),
    #[error("with it the layer unpacks to more than {0} bytes")]
    TooManyBytes(u64),
    #[error("with it the layer has more than {0} files")]
    TooManyEntries(u64),
    #[error("with it names and attributes of the layer take more than {0} bytes")]
    TooMuchMetadata(u64),
}
