//! The writer of an image: data as it arrives, then the tree, then the superblock.

use std::fs::File;
use std::path::Path;

use super::ErofsError;
use super::data::{Compression, Content, DataWriter, DenseFile, Run, SparseFile, Stored};
use super::format::{
    self, BLOCK, DirectoryLength, Dirent, HOLE, InodeHeader, Layout, Superblock, XATTR_HEADER,
};
use super::plan::{self, Plan};
use super::tree::{Kind, NodeId, Tree};
use super::xattr::Xattrs;

/// The plan puts the root into slot 1; a superblock has 16 bits for it.
const ROOT_NID: u16 = 1;

/// An image that is being written. Without [`ImageWriter::finish`] its file is no image.
#[derive(Debug)]
pub struct ImageWriter {
    data: DataWriter,
}

impl ImageWriter {
    /// Begins an image in an empty file. `spill_folder` takes an unnamed temporary file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(
        file: File,
        spill_folder: &Path,
        compression: Compression,
    ) -> Result<Self, ErofsError> {
        Ok(Self {
            data: DataWriter::new(file, spill_folder, compression)?,
        })
    }

    /// Begins a file of `size` bytes, whose inode will have these attributes.
    pub fn file(&mut self, size: u64, xattrs: &Xattrs) -> DenseFile<'_> {
        DenseFile::new(&mut self.data, size, plan::room_for_tail(xattrs.len()))
    }

    /// Begins a file of `size` bytes that has holes.
    pub fn sparse(&mut self, size: u64) -> SparseFile<'_> {
        SparseFile::new(&mut self.data, size)
    }

    /// Stores the target of a symbolic link, which must be shorter than a block.
    ///
    /// # Errors
    /// The image cannot be written.
    pub fn symlink(&mut self, target: &[u8], xattrs: &Xattrs) -> Result<Content, ErofsError> {
        self.data.short(target, plan::room_for_tail(xattrs.len()))
    }

    /// Writes the tree and the superblock, and syncs; returns the size of the image in bytes.
    ///
    /// # Errors
    /// The image cannot be written or becomes too large.
    pub fn finish(mut self, tree: &Tree, uuid: [u8; 16]) -> Result<u64, ErofsError> {
        let plan = Plan::new(tree);
        let directories = self.data.take_blocks(plan.directory_blocks)?;
        for id in &plan.order {
            self.directory_blocks(tree, &plan, *id)?;
        }
        // fsck.erofs 1.5 reads an xattr header behind every inode, also one without xattrs: there
        // must be bytes behind the last.
        let metadata_bytes = plan.metadata_bytes + XATTR_HEADER as u64;
        let meta_blocks = metadata_bytes.div_ceil(BLOCK as u64);
        let meta_block = self.data.take_blocks(meta_blocks)?;
        let mut inodes = InodeWriter {
            data: &mut self.data,
            tree,
            plan: &plan,
            directories,
            position: 0,
        };
        for (number, id) in (1u32..).zip(&plan.order) {
            inodes.inode(*id, number)?;
        }
        inodes.fill_to(meta_blocks * BLOCK as u64)?;
        let superblock = Superblock {
            uuid,
            root_nid: ROOT_NID,
            inodes: plan.order.len() as u64,
            blocks: self.data.next_block(),
            meta_block,
            lz4_max_blocks: self
                .data
                .has_compressed
                .then_some(DataWriter::LZ4_MAX_BLOCKS),
            has_chunked_files: self.data.has_chunked,
        };
        self.data.finish(&superblock.encode())
    }

    /// Writes the blocks of a directory that do not stand inline.
    fn directory_blocks(&mut self, tree: &Tree, plan: &Plan, id: NodeId) -> Result<(), ErofsError> {
        let length = plan.place(id).directory;
        let has_inline_tail = length.tail <= room(tree, id);
        if length.tail == 0 || (has_inline_tail && length.full_blocks == 0) {
            return Ok(());
        }
        for_each_directory_block(tree, plan, id, |index, block| {
            if index == length.full_blocks && has_inline_tail {
                return Ok(());
            }
            self.data.raw(block)?;
            self.data.zeros((BLOCK - block.len()) as u64)
        })
    }
}

fn room(tree: &Tree, id: NodeId) -> usize {
    plan::room_for_tail(tree.node(id).attributes.xattrs.len())
}

/// Calls `emit` with the number and content of each block of a directory.
fn for_each_directory_block(
    tree: &Tree,
    plan: &Plan,
    id: NodeId,
    mut emit: impl FnMut(u64, &[u8]) -> Result<(), ErofsError>,
) -> Result<(), ErofsError> {
    let mut length = DirectoryLength::default();
    let mut block = Vec::new();
    for (name, child) in plan::entries(tree, id, plan.place(id).parent) {
        if length.push(name) {
            emit(length.full_blocks - 1, &format::directory_block(&block))?;
            block.clear();
        }
        block.push(Dirent {
            name,
            nid: plan.place(child).nid(),
            kind: plan::dirent_type(&tree.node(child).kind),
        });
    }
    emit(length.full_blocks, &format::directory_block(&block))
}

/// Emits inodes in the order of the plan.
struct InodeWriter<'a> {
    data: &'a mut DataWriter,
    tree: &'a Tree,
    plan: &'a Plan,
    /// First block of all directories.
    directories: u32,
    /// Bytes of metadata written.
    position: u64,
}

impl InodeWriter<'_> {
    fn inode(&mut self, id: NodeId, number: u32) -> Result<(), ErofsError> {
        let place = *self.plan.place(id);
        let node = self.tree.node(id);
        let attributes = &node.attributes;
        let (layout, location, size) = self.shape(id);
        self.fill_to(place.offset)?;
        let header = InodeHeader {
            layout,
            xattr_bytes: attributes.xattrs.len(),
            mode: attributes.permissions | file_type(&node.kind),
            size,
            location,
            number,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime_seconds: attributes.mtime.seconds,
            mtime_nanoseconds: attributes.mtime.nanoseconds,
            links: place.links,
        };
        self.put(&header.encode())?;
        if !attributes.xattrs.is_empty() {
            self.put(&[0; XATTR_HEADER])?;
            self.put(attributes.xattrs.bytes())?;
        }
        match &node.kind {
            Kind::Directory(_) if layout == Layout::FlatInline => self.directory_tail(id),
            Kind::File(content) | Kind::Symlink(content) => self.body(content),
            _ => Ok(()),
        }
    }

    /// Layout, location field and size of an inode.
    fn shape(&self, id: NodeId) -> (Layout, u32, u64) {
        match &self.tree.node(id).kind {
            Kind::Directory(_) => {
                let place = self.plan.place(id);
                // The blocks of all directories were taken, so their sum has 32 bits.
                let block = self.directories
                    + u32::try_from(place.directory_block).unwrap_or(u32::MAX - self.directories);
                let layout = if place.directory.tail <= room(self.tree, id) {
                    Layout::FlatInline
                } else {
                    Layout::FlatPlain
                };
                (layout, block, place.directory.size())
            }
            Kind::File(content) | Kind::Symlink(content) => {
                let (layout, location) = match &content.stored {
                    Stored::Flat { start, tail: None } => (Layout::FlatPlain, *start),
                    Stored::Flat { start, .. } => (Layout::FlatInline, *start),
                    Stored::Compressed { blocks, .. } => (Layout::CompressedFull, *blocks),
                    Stored::Chunked { chunk_bits, .. } => {
                        // Log2 of the chunk's blocks; 12 is that of a block's bytes.
                        (Layout::ChunkBased, u32::from(chunk_bits - 12))
                    }
                };
                (layout, location, content.size)
            }
            Kind::Character(device) | Kind::Block(device) => (Layout::FlatPlain, *device, 0),
            Kind::Fifo => (Layout::FlatPlain, 0, 0),
        }
    }

    fn directory_tail(&mut self, id: NodeId) -> Result<(), ErofsError> {
        let last = self.plan.place(id).directory.full_blocks;
        let (tree, plan) = (self.tree, self.plan);
        for_each_directory_block(tree, plan, id, |index, block| {
            if index == last {
                self.put(block)
            } else {
                Ok(())
            }
        })
    }

    fn body(&mut self, content: &Content) -> Result<(), ErofsError> {
        match &content.stored {
            Stored::Flat { tail: None, .. } => Ok(()),
            Stored::Flat {
                tail: Some(tail), ..
            } => {
                self.position += u64::from(tail.len);
                self.data.raw_tail(*tail)
            }
            Stored::Compressed {
                start, clusters, ..
            } => self.cluster_index(content.size, *start, clusters),
            Stored::Chunked { chunk_bits, runs } => {
                let chunks = content.size.div_ceil(1 << *chunk_bits);
                self.chunk_map(chunks, *chunk_bits, runs)
            }
        }
    }

    fn cluster_index(&mut self, size: u64, start: u32, stored: &[u8]) -> Result<(), ErofsError> {
        self.fill_to(self.position.next_multiple_of(8))?;
        self.put(&format::cluster_header())?;
        let mut block = start;
        for (packed, data) in plan::clusters(size, stored) {
            if packed == 0 {
                for _ in 0..data {
                    self.put(&format::index_plain(block))?;
                    block += 1;
                }
                continue;
            }
            self.put(&format::index_head(block))?;
            for i in 1..data {
                self.put(&format::index_body(i, data - i, u16::from(packed)))?;
            }
            block += u32::from(packed);
        }
        Ok(())
    }

    fn chunk_map(&mut self, chunks: u64, chunk_bits: u8, runs: &[Run]) -> Result<(), ErofsError> {
        let blocks_per_chunk = 1u32 << (chunk_bits - 12);
        let mut next = 0;
        for run in runs {
            self.holes(u64::from(run.chunk) - next)?;
            for i in 0..run.count {
                self.put(&(run.block + i * blocks_per_chunk).to_le_bytes())?;
            }
            next = u64::from(run.chunk + run.count);
        }
        self.holes(chunks - next)
    }

    fn holes(&mut self, count: u64) -> Result<(), ErofsError> {
        for _ in 0..count {
            self.put(&HOLE.to_le_bytes())?;
        }
        Ok(())
    }

    fn fill_to(&mut self, position: u64) -> Result<(), ErofsError> {
        self.data.zeros(position - self.position)?;
        self.position = position;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ErofsError> {
        self.position += bytes.len() as u64;
        self.data.raw(bytes)
    }
}

/// The type bits of `st_mode`.
fn file_type(kind: &Kind) -> u16 {
    match kind {
        Kind::Directory(_) => 0o040_000,
        Kind::File(_) => 0o100_000,
        Kind::Symlink(_) => 0o120_000,
        Kind::Character(_) => 0o020_000,
        Kind::Block(_) => 0o060_000,
        Kind::Fifo => 0o010_000,
    }
}
