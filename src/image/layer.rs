//! One layer of an OCI image: a tar stream in, an EROFS image and the boot files out, in one pass.
//!
//! ```text
//!   tar ──▶ archive ──▶ Entry ──▶ paths ──▶ merge (whiteouts, duplicates, links) ──▶ erofs::Tree
//!           headers,      │                                                              │
//!           PAX, sparse   └─ data ──▶ erofs::ImageWriter ──▶ blob ◀── finish ────────────┘
//!                              └────▶ kernel, initrd
//! ```
//! The tar reader is our own: a layer is hostile input, and every header, extension and map that
//! is held in memory has a bound here. (The `tar` crate splits PAX records at newlines, which
//! breaks binary values such as `security.capability`, reads long names without a bound, and does
//! not know PAX sparse files.)
//!
//! Invariants:
//! - What is not understood is refused by name, never skipped or guessed.
//! - Memory is bounded by [`Limits`], whatever the tar says; file data is never held.
//! - The three files exist only after a success.

mod archive;
mod header;
mod merge;
mod paths;
mod pax;
mod sparse;

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use self::archive::{Archive, Entry, EntryKind};
use self::merge::Layer;
use self::sparse::SparseMap;
use super::boot_files::{BootFile, NewFile, SyncedFile};
pub use super::erofs::Compression;
use super::erofs::{
    Attributes, Content, ErofsError, ImageWriter, Kind, Node, SparseFile, XattrError, Xattrs,
    device_number,
};

/// Files that a conversion makes; none may exist before.
#[derive(Clone, Copy, Debug)]
pub struct LayerPaths<'a> {
    /// The EROFS image.
    pub blob: &'a Path,
    /// The kernel, if the layer has one.
    pub kernel: &'a Path,
    /// The initial RAM disk, if the layer has one.
    pub initrd: &'a Path,
}

/// What a layer may unpack to; a layer that asks for more is refused as a bomb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of file data. Holes of sparse files do not count, only the chunks around their data
    /// and the map of these.
    pub max_bytes: u64,
    /// Files, directories and other inodes or names, those that a later entry replaces included.
    pub max_entries: u64,
    /// Bytes of names, link targets, extended attributes and indexes, which are held in memory.
    pub max_metadata_bytes: u64,
}

impl Default for Limits {
    /// 64 GiB: twice the largest layers published today (CUDA, ML models). 2,000,000 entries: ten
    /// times a desktop; together they take about 500 MB of memory. 256 MiB of metadata: 128 bytes
    /// for each of them.
    fn default() -> Self {
        Self {
            max_bytes: 64 << 30,
            max_entries: 2_000_000,
            max_metadata_bytes: 256 << 20,
        }
    }
}

/// What a conversion made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerReport {
    /// Size of the EROFS image in bytes.
    pub blob_size: u64,
    /// Whether the kernel file was made.
    pub has_kernel: bool,
    /// Whether the initrd file was made.
    pub has_initrd: bool,
    /// Entries of the archive, extension headers not counted.
    pub entries: u64,
}

/// The name of an archive's entry, as it stands there; shown with escapes and cut to 256 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct EntryName(Box<[u8]>);

impl EntryName {
    fn new(name: &[u8]) -> Self {
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
    /// The stream of the layer failed.
    #[error("cannot read the layer's tar stream at entry {entry}")]
    Read {
        /// The entry that was being read, or the last one before.
        entry: EntryName,
        /// What the stream said.
        #[source]
        source: io::Error,
    },
    /// The stream ended within an entry.
    #[error("the layer's tar stream ends within entry {entry}")]
    Truncated {
        /// The entry that was being read, or the last one before.
        entry: EntryName,
    },
    /// An entry that is broken, hostile or beyond what an EROFS layer can hold.
    #[error("entry {entry} of the layer is refused")]
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

/// Converts the tar stream of one layer, and reads it to its end, also what follows the archive.
///
/// Entries become what overlayfs expects of a lower layer: `.wh.NAME` a character device 0:0,
/// `.wh..wh..opq` the attribute `trusted.overlay.opaque` of its directory (OCI image-spec,
/// layer.md, "Whiteouts"). The same tar and `uuid` give the same bytes. All files are synced; their
/// folders are not.
///
/// # Errors
/// The stream, an entry or a file, as [`LayerError`] says; none of the files exists then.
pub fn convert(
    tar: &mut dyn Read,
    uuid: [u8; 16],
    compression: Compression,
    limits: &Limits,
    to: &LayerPaths<'_>,
) -> Result<LayerReport, LayerError> {
    let blob = create(to.blob)?;
    let image_error = |source| LayerError::Image {
        path: to.blob.to_owned(),
        source,
    };
    let handle = blob.file().try_clone();
    let handle = handle.map_err(|error| image_error(ErofsError::Write(error)))?;
    let folder = to.blob.parent().unwrap_or(Path::new("."));
    let mut conversion = Conversion {
        image: ImageWriter::new(handle, folder, uuid, compression).map_err(image_error)?,
        layer: Layer::new(*limits),
        kernel: None,
        initrd: None,
        to: *to,
    };
    let mut archive = Archive::new(tar);
    let mut entries = 0;
    while let Some(entry) = archive.next_entry()? {
        entries += 1;
        conversion.entry(&mut archive, entry)?;
    }
    archive.drain()?;
    let tree = conversion
        .layer
        .into_tree()
        .map_err(|reason| archive.refused(reason))?;
    let blob_size = conversion.image.finish(&tree).map_err(image_error)?;
    let kernel = sync(conversion.kernel, to.kernel)?;
    let initrd = sync(conversion.initrd, to.initrd)?;
    let blob = sync(Some(blob), to.blob)?;
    let report = LayerReport {
        blob_size,
        has_kernel: kernel.is_some(),
        has_initrd: initrd.is_some(),
        entries,
    };
    for file in [kernel, initrd, blob].into_iter().flatten() {
        file.keep();
    }
    Ok(report)
}

fn create(path: &Path) -> Result<NewFile, LayerError> {
    NewFile::create(path).map_err(|source| LayerError::Create {
        path: path.to_owned(),
        source,
    })
}

fn sync(file: Option<NewFile>, path: &Path) -> Result<Option<SyncedFile>, LayerError> {
    let synced = file.map(NewFile::sync).transpose();
    synced.map_err(|source| LayerError::Create {
        path: path.to_owned(),
        source,
    })
}

/// A conversion under way.
struct Conversion<'a> {
    image: ImageWriter,
    layer: Layer,
    kernel: Option<NewFile>,
    initrd: Option<NewFile>,
    to: LayerPaths<'a>,
}

impl Conversion<'_> {
    /// Puts one entry into the tree, its data into the image.
    fn entry(&mut self, archive: &mut Archive<'_>, entry: Entry) -> Result<(), LayerError> {
        let refuse = |reason| LayerError::Refused {
            entry: EntryName::new(&entry.path),
            reason,
        };
        let path = paths::components(&entry.path).map_err(refuse)?;
        if merge::is_marker(&path) {
            // Whiteouts carry no data; if one does, the reader skips it.
            return self.layer.marker(&path).map_err(refuse);
        }
        if let EntryKind::HardLink = entry.kind {
            let target = paths::components(&entry.link).map_err(refuse)?;
            return self.layer.hard_link(&path, &target).map_err(refuse);
        }
        let xattrs = Xattrs::encode(&entry.xattrs).map_err(|error| refuse(error.into()))?;
        let kind = self.kind(archive, &entry, &path, &xattrs)?;
        let attributes = Attributes {
            permissions: entry.permissions,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs,
        };
        let node = Node { attributes, kind };
        self.layer.place(&path, node).map_err(refuse)
    }

    fn kind(
        &mut self,
        archive: &mut Archive<'_>,
        entry: &Entry,
        path: &[&[u8]],
        xattrs: &Xattrs,
    ) -> Result<Kind, LayerError> {
        let refuse = |reason| LayerError::Refused {
            entry: EntryName::new(&entry.path),
            reason,
        };
        let device = || {
            let (major, minor) = entry.device;
            device_number(major, minor).ok_or_else(|| refuse(Refusal::DeviceNumber))
        };
        Ok(match entry.kind {
            EntryKind::Directory | EntryKind::HardLink => Kind::Directory(Default::default()),
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::Character => Kind::Character(device()?),
            EntryKind::Block => Kind::Block(device()?),
            EntryKind::Symlink => {
                let target = paths::link_target(&entry.link).map_err(refuse)?;
                let content = self.image.symlink(target, xattrs);
                Kind::Symlink(content.map_err(|source| self.image_error(source))?)
            }
            EntryKind::File => Kind::File(match &entry.sparse {
                Some(map) => self.sparse(archive, entry, map, path)?,
                None => self.dense(archive, entry, path, xattrs)?,
            }),
        })
    }

    fn dense(
        &mut self,
        archive: &mut Archive<'_>,
        entry: &Entry,
        path: &[&[u8]],
        xattrs: &Xattrs,
    ) -> Result<Content, LayerError> {
        self.charge(entry, entry.size)?;
        let mut copy = self.boot_copy(entry, path)?;
        let image_error = image_error(self.to.blob);
        let mut file = self.image.file(entry.size, xattrs);
        while let Some(cluster) = file.next_cluster() {
            archive.read_data(cluster)?;
            if let Some(copy) = &mut copy {
                copy.write(cluster)?;
            }
            file.commit().map_err(&image_error)?;
        }
        let content = file.finish();
        self.keep_copy(copy);
        Ok(content)
    }

    fn sparse(
        &mut self,
        archive: &mut Archive<'_>,
        entry: &Entry,
        map: &SparseMap,
        path: &[&[u8]],
    ) -> Result<Content, LayerError> {
        /// Bytes that are moved at once.
        const BUFFER: usize = 64 << 10;
        let segments = map.segments.iter();
        let segments = segments.map(|segment| (segment.offset, segment.len));
        self.charge(entry, SparseFile::image_bytes(map.size, segments))?;
        let mut copy = self.boot_copy(entry, path)?;
        let image_error = image_error(self.to.blob);
        let mut file = self.image.sparse(map.size);
        let mut buffer = vec![0; BUFFER];
        for segment in &map.segments {
            let (mut offset, mut left) = (segment.offset, segment.len);
            while left > 0 {
                let part = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
                archive.read_data(&mut buffer[..part])?;
                if let Some(copy) = &mut copy {
                    copy.write_at(offset, &buffer[..part])?;
                }
                file.write_at(offset, &buffer[..part])
                    .map_err(&image_error)?;
                offset += part as u64;
                left -= part as u64;
            }
        }
        if let Some(copy) = &mut copy {
            copy.set_size(map.size)?;
        }
        let content = file.finish().map_err(&image_error)?;
        self.keep_copy(copy);
        Ok(content)
    }

    /// The empty file that a kernel or initrd is to be copied to.
    fn boot_copy(&mut self, entry: &Entry, path: &[&[u8]]) -> Result<Option<BootCopy>, LayerError> {
        let Some(kind) = BootFile::of(path) else {
            return Ok(None);
        };
        let (slot, path) = match kind {
            BootFile::Kernel => (&mut self.kernel, self.to.kernel),
            BootFile::Initrd => (&mut self.initrd, self.to.initrd),
        };
        let file = match slot.take() {
            Some(file) => file,
            None => create(path)?,
        };
        let mut copy = BootCopy {
            kind,
            file,
            entry: EntryName::new(&entry.path),
            path: path.to_owned(),
        };
        copy.set_size(0)?;
        copy.attempt(|mut file| file.rewind())?;
        Ok(Some(copy))
    }

    fn keep_copy(&mut self, copy: Option<BootCopy>) {
        match copy {
            Some(copy) if copy.kind == BootFile::Kernel => self.kernel = Some(copy.file),
            Some(copy) => self.initrd = Some(copy.file),
            None => {}
        }
    }

    /// Counts bytes that an entry adds to the image.
    fn charge(&mut self, entry: &Entry, bytes: u64) -> Result<(), LayerError> {
        let charged = self.layer.charge_bytes(bytes);
        charged.map_err(|reason| LayerError::Refused {
            entry: EntryName::new(&entry.path),
            reason,
        })
    }

    fn image_error(&self, source: ErofsError) -> LayerError {
        image_error(self.to.blob)(source)
    }
}

fn image_error(path: &Path) -> impl Fn(ErofsError) -> LayerError {
    move |source| LayerError::Image {
        path: path.to_owned(),
        source,
    }
}

/// A kernel or initrd that is being copied.
struct BootCopy {
    kind: BootFile,
    file: NewFile,
    entry: EntryName,
    path: PathBuf,
}

impl BootCopy {
    fn write(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        self.attempt(|mut file| file.write_all(bytes))
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), LayerError> {
        self.attempt(|mut file| {
            file.seek(SeekFrom::Start(offset))?;
            file.write_all(bytes)
        })
    }

    fn set_size(&mut self, size: u64) -> Result<(), LayerError> {
        self.attempt(|file| file.set_len(size))
    }

    fn attempt(
        &mut self,
        act: impl FnOnce(&std::fs::File) -> io::Result<()>,
    ) -> Result<(), LayerError> {
        act(self.file.file()).map_err(|source| LayerError::BootFile {
            entry: self.entry.clone(),
            path: self.path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests;
