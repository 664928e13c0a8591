//! Entries, one by one: their data to the image and to the boot files, their inode to the tree.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::super::boot_files::{BootFile, NewFile};
use super::super::erofs::{
    Attributes, Content, ErofsError, ImageWriter, Kind, Node, SparseFile, Tree, Xattrs,
    device_number,
};
use super::archive::{Archive, Entry, EntryKind, InodeKind};
use super::merge::{self, Layer};
use super::sparse::SparseMap;
use super::{EntryName, LayerError, LayerPaths, Limits, Refusal, paths};

/// A conversion under way.
pub(super) struct Conversion<'a> {
    image: ImageWriter,
    layer: Layer,
    kernel: Option<NewFile>,
    initrd: Option<NewFile>,
    to: LayerPaths<'a>,
}

/// A conversion that has seen all entries.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) image: ImageWriter,
    pub(super) tree: Tree,
    pub(super) kernel: Option<NewFile>,
    pub(super) initrd: Option<NewFile>,
}

impl<'a> Conversion<'a> {
    pub(super) fn new(image: ImageWriter, limits: &Limits, to: &LayerPaths<'a>) -> Self {
        Self {
            image,
            layer: Layer::new(*limits),
            kernel: None,
            initrd: None,
            to: *to,
        }
    }

    pub(super) fn finish(self) -> Result<Done, Refusal> {
        Ok(Done {
            image: self.image,
            tree: self.layer.into_tree()?,
            kernel: self.kernel,
            initrd: self.initrd,
        })
    }

    /// Puts one entry into the tree, its data into the image.
    pub(super) fn entry(
        &mut self,
        archive: &mut Archive<'_>,
        entry: &Entry,
    ) -> Result<(), LayerError> {
        let refuse = |reason| LayerError::Refused {
            entry: EntryName::new(&entry.path),
            reason,
        };
        let path = paths::components(&entry.path).map_err(refuse)?;
        if merge::is_marker(&path) {
            // Whiteouts carry no data; if one does, the reader skips it.
            return self.layer.marker(&path).map_err(refuse);
        }
        let EntryKind::Inode(kind) = entry.kind else {
            let target = paths::components(&entry.link).map_err(refuse)?;
            return self.layer.hard_link(&path, &target).map_err(refuse);
        };
        let xattrs = Xattrs::encode(&entry.xattrs).map_err(|error| refuse(error.into()))?;
        let kind = self.inode(archive, entry, kind, &path, &xattrs)?;
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

    /// What the entry's inode is, with its data stored.
    fn inode(
        &mut self,
        archive: &mut Archive<'_>,
        entry: &Entry,
        kind: InodeKind,
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
        Ok(match kind {
            InodeKind::Directory => Kind::Directory(BTreeMap::new()),
            InodeKind::Fifo => Kind::Fifo,
            InodeKind::Character => Kind::Character(device()?),
            InodeKind::Block => Kind::Block(device()?),
            InodeKind::Symlink => {
                let target = paths::link_target(&entry.link).map_err(refuse)?;
                self.charge(entry, target.len() as u64)?;
                let content = self.image.symlink(target, xattrs);
                Kind::Symlink(content.map_err(image_error(self.to.blob))?)
            }
            InodeKind::File => Kind::File(match &entry.sparse {
                Some(map) => self.sparse(archive, entry, map, path)?,
                None => self.dense(archive, entry, path, xattrs)?,
            }),
        })
    }

    /// Stores a file without holes.
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

    /// Stores the data of a file with holes.
    fn sparse(
        &mut self,
        archive: &mut Archive<'_>,
        entry: &Entry,
        map: &SparseMap,
        path: &[&[u8]],
    ) -> Result<Content, LayerError> {
        // Bytes that are moved at once.
        const BUFFER: usize = 64 << 10;
        let segments = map.segments.iter();
        let segments = segments.map(|segment| (segment.offset, segment.len));
        self.charge(entry, SparseFile::image_bytes(map.size, segments))?;
        let mut copy = self.boot_copy(entry, path)?;
        if copy.is_some() {
            // The copy has the file's whole size, and its readers read all of it.
            self.charge(entry, map.size)?;
        }
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
            None => super::create(path)?,
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

    fn attempt(&mut self, act: impl FnOnce(&File) -> io::Result<()>) -> Result<(), LayerError> {
        act(self.file.file()).map_err(|source| LayerError::BootFile {
            entry: self.entry.clone(),
            path: self.path.clone(),
            source,
        })
    }
}
