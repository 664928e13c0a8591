//! File data on its way to disk: plain blocks, LZ4 clusters, chunks of sparse files, inline tails.
//!
//! ```text
//!  dense file      │ 64 KiB cluster │ 64 KiB cluster │ ... │ last: up to 64 KiB + 4095 │
//!                    ▼ LZ4, if it saves a block    ▼ else: its blocks as they are
//!                  │ 0s + compressed │ plain blocks ...
//!  none compressed: one plain run; what does not fill a block becomes the inode's inline tail
//!  sparse file     │ chunk │ hole │ chunk │ chunk │    only chunks with data are stored
//! ```
//! Invariants: the blocks of one file follow each other without a gap; a compressed cluster takes
//! fewer blocks than its data.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use tempfile::SpooledTempFile;

use super::ErofsError;
use super::format::BLOCK;

/// Bytes of data that are compressed as one. Measured on 1.4 GB of /usr: 64 KiB is the fastest
/// (128 KiB saves 4 % more and takes a quarter longer, 16 KiB costs 20 % of size).
const CLUSTER: usize = 64 << 10;
/// Blocks of the largest cluster: the last one of a file also takes what would not fill a block.
const MAX_CLUSTER_BLOCKS: u16 = 17;
/// Buffer before the image file: data goes out in writes of this many bytes.
const OUT_BUFFER: usize = 1 << 20;
/// Bytes of tails that wait in memory; more go to a file.
const SPILL_IN_MEMORY: usize = 16 << 20;
/// A sparse file has at most this many chunks: 4 MiB of map.
const MAX_CHUNKS: u64 = 1 << 20;

const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// How file data is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// As it is.
    None,
    /// LZ4 in 64 KiB clusters, where that saves space.
    Lz4,
}

/// The stored content of a file or a symbolic link.
#[derive(Debug)]
pub struct Content {
    pub(super) size: u64,
    pub(super) stored: Stored,
}

impl Content {
    /// Memory it takes beside its own size, in bytes.
    pub fn heap_bytes(&self) -> usize {
        match &self.stored {
            Stored::Flat { .. } => 0,
            Stored::Compressed { clusters, .. } => clusters.len(),
            Stored::Chunked { runs, .. } => size_of_val(&**runs),
        }
    }
}

#[derive(Debug)]
pub(super) enum Stored {
    /// Full blocks from `start` on, then the tail.
    Flat { start: u32, tail: Option<Tail> },
    /// Clusters from block `start` on; one byte each: its compressed blocks, or 0 for plain ones.
    Compressed {
        start: u32,
        blocks: u32,
        clusters: Box<[u8]>,
    },
    /// Chunks of 2^`chunk_bits` bytes; those in no run are holes.
    Chunked { chunk_bits: u8, runs: Box<[Run]> },
}

/// Where a tail waits in the spill file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tail {
    offset: u64,
    pub(super) len: u16,
}

/// Chunks that follow each other in the file and on disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) chunk: u32,
    pub(super) count: u32,
    pub(super) block: u32,
}

/// The data part of an image.
pub(super) struct DataWriter {
    out: BufWriter<File>,
    next_block: u32,
    spill: SpooledTempFile,
    spill_bytes: u64,
    compression: Compression,
    cluster: Box<[u8]>,
    packed: Box<[u8]>,
    table: CompressTable,
    pub(super) has_compressed: bool,
    pub(super) has_chunked: bool,
}

impl std::fmt::Debug for DataWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataWriter")
            .field("next_block", &self.next_block)
            .field("compression", &self.compression)
            .finish_non_exhaustive()
    }
}

impl DataWriter {
    /// Blocks of the largest cluster that can come out compressed.
    pub(super) const LZ4_MAX_BLOCKS: u16 = MAX_CLUSTER_BLOCKS - 1;
    /// Logical blocks of every cluster but the last.
    pub(super) const CLUSTER_BLOCKS: u64 = (CLUSTER / BLOCK) as u64;

    /// Begins at block 1 of an empty file.
    pub(super) fn new(
        file: File,
        spill_folder: &Path,
        compression: Compression,
    ) -> Result<Self, ErofsError> {
        let mut out = BufWriter::with_capacity(OUT_BUFFER, file);
        out.write_all(&ZEROS).map_err(ErofsError::Write)?;
        let largest = CLUSTER + BLOCK - 1;
        Ok(Self {
            out,
            next_block: 1,
            spill: tempfile::spooled_tempfile_in(SPILL_IN_MEMORY, spill_folder),
            spill_bytes: 0,
            compression,
            cluster: vec![0; largest].into(),
            packed: vec![0; get_maximum_output_size(largest)].into(),
            table: CompressTable::large(),
            has_compressed: false,
            has_chunked: false,
        })
    }

    /// The first block that nothing has been written to.
    pub(super) fn next_block(&self) -> u32 {
        self.next_block
    }

    /// Writes bytes and zeros up to the next block; returns the first block.
    pub(super) fn blocks(&mut self, bytes: &[u8]) -> Result<u32, ErofsError> {
        let first = self.take_blocks(bytes.len().div_ceil(BLOCK) as u64)?;
        self.raw(bytes)?;
        self.zeros((bytes.len().next_multiple_of(BLOCK) - bytes.len()) as u64)?;
        Ok(first)
    }

    /// Writes bytes into blocks that were taken before.
    pub(super) fn raw(&mut self, bytes: &[u8]) -> Result<(), ErofsError> {
        self.out.write_all(bytes).map_err(ErofsError::Write)
    }

    /// As [`DataWriter::raw`], zeros.
    pub(super) fn zeros(&mut self, mut count: u64) -> Result<(), ErofsError> {
        while count > 0 {
            let part = usize::try_from(count).unwrap_or(BLOCK).min(BLOCK);
            self.raw(&ZEROS[..part])?;
            count -= part as u64;
        }
        Ok(())
    }

    /// Reserves the next `count` blocks; returns the first.
    pub(super) fn take_blocks(&mut self, count: u64) -> Result<u32, ErofsError> {
        let first = self.next_block;
        let next = u64::from(first) + count;
        // The largest value is the address of a hole.
        if next >= u64::from(u32::MAX) {
            return Err(ErofsError::TooManyBlocks);
        }
        self.next_block = u32::try_from(next).map_err(|_| ErofsError::TooManyBlocks)?;
        Ok(first)
    }

    /// Stores what is shorter than a block, inline if it fits beside its inode.
    pub(super) fn short(&mut self, bytes: &[u8], room: usize) -> Result<Content, ErofsError> {
        let size = bytes.len() as u64;
        let stored = if bytes.len() <= room {
            Stored::Flat {
                start: 0,
                tail: self.tail(bytes)?,
            }
        } else {
            Stored::Flat {
                start: self.blocks(bytes)?,
                tail: None,
            }
        };
        Ok(Content { size, stored })
    }

    fn tail(&mut self, bytes: &[u8]) -> Result<Option<Tail>, ErofsError> {
        if bytes.is_empty() {
            return Ok(None);
        }
        self.spill.write_all(bytes).map_err(ErofsError::Spill)?;
        let offset = self.spill_bytes;
        self.spill_bytes += bytes.len() as u64;
        // A tail is shorter than a block.
        let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        Ok(Some(Tail { offset, len }))
    }

    /// Writes a tail into blocks that were taken before.
    pub(super) fn raw_tail(&mut self, tail: Tail) -> Result<(), ErofsError> {
        let mut buffer = [0; BLOCK];
        let bytes = &mut buffer[..usize::from(tail.len)];
        self.spill
            .seek(SeekFrom::Start(tail.offset))
            .and_then(|_| self.spill.read_exact(bytes))
            .map_err(ErofsError::Spill)?;
        self.raw(bytes)
    }

    /// Writes all out, puts `first_block` in place, and syncs; returns the image's size in bytes.
    pub(super) fn finish(self, first_block: &[u8; BLOCK]) -> Result<u64, ErofsError> {
        let file = self
            .out
            .into_inner()
            .map_err(|error| ErofsError::Write(error.into_error()))?;
        file.write_all_at(first_block, 0)
            .and_then(|()| file.sync_all())
            .map_err(ErofsError::Write)?;
        Ok(u64::from(self.next_block) * BLOCK as u64)
    }
}

/// A file that is being stored, cluster by cluster.
#[derive(Debug)]
pub struct DenseFile<'a> {
    data: &'a mut DataWriter,
    size: u64,
    left: u64,
    /// Largest tail that fits beside the inode, in bytes.
    room: usize,
    /// Bytes of the cluster that was handed out last.
    pending: usize,
    start: u32,
    blocks: u32,
    clusters: Vec<u8>,
    is_compressed: bool,
    tail: Option<Tail>,
}

impl<'a> DenseFile<'a> {
    pub(super) fn new(data: &'a mut DataWriter, size: u64, room: usize) -> Self {
        Self {
            size,
            left: size,
            room,
            pending: 0,
            start: data.next_block,
            blocks: 0,
            clusters: Vec::new(),
            is_compressed: false,
            tail: None,
            data,
        }
    }

    /// The place for the next bytes of the file, to be filled wholly and then
    /// [committed](DenseFile::commit). None at the end.
    pub fn next_cluster(&mut self) -> Option<&mut [u8]> {
        self.pending = match usize::try_from(self.left) {
            Ok(left) if left < CLUSTER + BLOCK => left,
            _ => CLUSTER,
        };
        (self.pending > 0).then(|| &mut self.data.cluster[..self.pending])
    }

    /// Stores the cluster that was handed out last.
    ///
    /// # Errors
    /// The image cannot be written or becomes too large.
    pub fn commit(&mut self) -> Result<(), ErofsError> {
        let len = std::mem::take(&mut self.pending);
        self.left -= len as u64;
        let plain_blocks = len.div_ceil(BLOCK);
        if self.data.compression == Compression::Lz4 && plain_blocks > 1 {
            let packed = compress_into_with_table(
                &self.data.cluster[..len],
                &mut self.data.packed,
                &mut self.data.table,
            )
            .map_err(ErofsError::Compress)?;
            if packed.div_ceil(BLOCK) < plain_blocks {
                return self.commit_packed(packed);
            }
        }
        self.commit_plain(len)
    }

    /// The compressed bytes stand at the end of their blocks, zeros before them (0-padding).
    fn commit_packed(&mut self, packed: usize) -> Result<(), ErofsError> {
        let blocks = packed.div_ceil(BLOCK);
        self.data.take_blocks(blocks as u64)?;
        self.data.zeros((blocks * BLOCK - packed) as u64)?;
        self.data
            .out
            .write_all(&self.data.packed[..packed])
            .map_err(ErofsError::Write)?;
        // Fewer than MAX_CLUSTER_BLOCKS.
        self.clusters.push(u8::try_from(blocks).unwrap_or(u8::MAX));
        self.blocks += u32::from(u8::try_from(blocks).unwrap_or(u8::MAX));
        self.is_compressed = true;
        Ok(())
    }

    fn commit_plain(&mut self, len: usize) -> Result<(), ErofsError> {
        let cluster = std::mem::take(&mut self.data.cluster);
        let result = self.plain(&cluster[..len]);
        self.data.cluster = cluster;
        result
    }

    fn plain(&mut self, bytes: &[u8]) -> Result<(), ErofsError> {
        let (full, rest) = bytes.split_at(bytes.len() / BLOCK * BLOCK);
        let (full, rest) = if self.is_compressed || rest.len() > self.room {
            (bytes, &[][..])
        } else {
            (full, rest)
        };
        let before = self.data.next_block;
        self.data.blocks(full)?;
        self.blocks += self.data.next_block - before;
        self.tail = self.data.tail(rest)?;
        self.clusters.push(0);
        Ok(())
    }

    /// What was stored. All clusters must have been committed.
    pub fn finish(self) -> Content {
        let stored = if self.is_compressed {
            self.data.has_compressed = true;
            Stored::Compressed {
                start: self.start,
                blocks: self.blocks,
                clusters: self.clusters.into(),
            }
        } else {
            Stored::Flat {
                start: self.start,
                tail: self.tail,
            }
        };
        Content {
            size: self.size,
            stored,
        }
    }
}

/// A file with holes that is being stored, from front to back.
#[derive(Debug)]
pub struct SparseFile<'a> {
    data: &'a mut DataWriter,
    size: u64,
    chunk_bits: u8,
    runs: Vec<Run>,
    /// The open chunk: where it ends in the file, and how far it has been written.
    open: Option<(u64, u64)>,
}

impl<'a> SparseFile<'a> {
    pub(super) fn new(data: &'a mut DataWriter, size: u64) -> Self {
        Self {
            data,
            size,
            chunk_bits: chunk_bits(size),
            runs: Vec::new(),
            open: None,
        }
    }

    /// Bytes that a file of this size with data at these places (offset and length, in order)
    /// takes in an image: its chunks and their map.
    pub fn image_bytes(size: u64, segments: impl Iterator<Item = (u64, u64)>) -> u64 {
        let bits = chunk_bits(size);
        let mut chunks = 0u64;
        let mut next = 0;
        for (offset, len) in segments.filter(|(_, len)| *len > 0) {
            let first = (offset >> bits).max(next);
            next = ((offset + len - 1) >> bits) + 1;
            chunks += next.saturating_sub(first);
        }
        (chunks << bits) + 4 * size.div_ceil(1 << bits)
    }

    /// Stores bytes at an offset, which must not lie before the end of the last ones. The rest of
    /// a chunk becomes zeros.
    ///
    /// # Errors
    /// The image cannot be written or becomes too large.
    pub fn write_at(&mut self, mut offset: u64, mut bytes: &[u8]) -> Result<(), ErofsError> {
        while !bytes.is_empty() {
            let (end, written) = match self.open {
                Some((end, written)) if offset < end => (end, written),
                _ => {
                    self.close_chunk()?;
                    self.open_chunk(offset >> self.chunk_bits)?
                }
            };
            self.data.zeros(offset - written)?;
            let part = usize::try_from(end - offset)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            self.data.raw(&bytes[..part])?;
            offset += part as u64;
            bytes = &bytes[part..];
            self.open = Some((end, offset));
        }
        Ok(())
    }

    fn open_chunk(&mut self, chunk: u64) -> Result<(u64, u64), ErofsError> {
        let start = chunk << self.chunk_bits;
        let end = (start + (1 << self.chunk_bits)).min(self.size);
        let block = self
            .data
            .take_blocks((end - start).div_ceil(BLOCK as u64))?;
        // Fewer than MAX_CHUNKS.
        let chunk = u32::try_from(chunk).unwrap_or(u32::MAX);
        match self.runs.last_mut() {
            Some(run) if run.chunk + run.count == chunk => run.count += 1,
            _ => self.runs.push(Run {
                chunk,
                count: 1,
                block,
            }),
        }
        Ok((end, start))
    }

    fn close_chunk(&mut self) -> Result<(), ErofsError> {
        match self.open.take() {
            Some((end, written)) => self
                .data
                .zeros(end.next_multiple_of(BLOCK as u64) - written),
            None => Ok(()),
        }
    }

    /// What was stored.
    ///
    /// # Errors
    /// The image cannot be written.
    pub fn finish(mut self) -> Result<Content, ErofsError> {
        self.close_chunk()?;
        self.data.has_chunked = true;
        Ok(Content {
            size: self.size,
            stored: Stored::Chunked {
                chunk_bits: self.chunk_bits,
                runs: self.runs.into(),
            },
        })
    }
}

/// Log2 of the bytes of a chunk: small, as long as the map stays small.
fn chunk_bits(size: u64) -> u8 {
    let mut bits = 12;
    while (size >> bits) >= MAX_CHUNKS {
        bits += 1;
    }
    bits
}
