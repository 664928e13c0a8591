//! A tar stream as entries, each with what its extension headers say.
//!
//! ```text
//!   [L long name] [K long link] [x PAX records]  header  [S more segments] [1.0 map]  data, padded
//!   └───────────── at most 1 MiB each ─────────┘         └─ at most 2^18 segments ─┘
//! ```
//! Invariants: after [`Archive::next_entry`] the stream stands at the entry's data; what is not
//! read of it is skipped by the next call; a stream that ends anywhere but between entries is an
//! error.

use std::collections::BTreeMap;
use std::io::{BufReader, ErrorKind, Read};

use super::super::erofs::Timestamp;
use super::header::{self, GnuSparse, Header, RECORD};
use super::pax::{self, Pax, PaxSparse};
use super::sparse::{self, MAX_SEGMENTS, Segment, SparseMap};
use super::{EntryName, LayerError, Refusal};

/// Largest extension header in bytes: a path and 64 KiB of attributes take far less.
const MAX_EXTENSION: u64 = 1 << 20;
/// Buffer for headers; data of 64 KiB and more passes it by.
const BUFFER: usize = 64 << 10;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::image) enum EntryKind {
    /// Another name of an inode that came before.
    HardLink,
    Inode(InodeKind),
}

/// What a new inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::image) enum InodeKind {
    File,
    Directory,
    Symlink,
    Character,
    Block,
    Fifo,
}

/// One entry.
#[derive(Debug)]
pub(in crate::image) struct Entry {
    /// As it stands in the archive: not normalised, not checked.
    pub(in crate::image) path: Vec<u8>,
    /// The target of a link, likewise.
    pub(in crate::image) link: Vec<u8>,
    pub(in crate::image) kind: EntryKind,
    /// The low 12 bits of `st_mode`.
    pub(super) permissions: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Major and minor number.
    pub(super) device: (u32, u32),
    /// Bytes of data that follow; 0 for all but files.
    pub(in crate::image) size: u64,
    /// Where the data belongs, if the file has holes.
    pub(in crate::image) sparse: Option<SparseMap>,
}

/// Extension headers that wait for their entry.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Pax>,
}

/// A tar stream.
pub(in crate::image) struct Archive<'a> {
    stream: BufReader<&'a mut dyn Read>,
    /// Data of the entry that has not been read, and its padding, in bytes.
    left: u64,
    padding: u64,
    /// Bytes before what is read next.
    offset: u64,
    /// The name for errors.
    current: Vec<u8>,
}

impl<'a> Archive<'a> {
    pub(in crate::image) fn new(stream: &'a mut dyn Read) -> Self {
        Self {
            stream: BufReader::with_capacity(BUFFER, stream),
            left: 0,
            padding: 0,
            offset: 0,
            current: b"(start)".to_vec(),
        }
    }

    /// The next entry; none at the end of the archive, which is two empty records or the end of
    /// the stream.
    pub(in crate::image) fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_data()?;
            let Some(record) = self.header_record()? else {
                return self.end(&extensions).map(|()| None);
            };
            let header = Header::parse(&record).map_err(|reason| self.refused(reason))?;
            let name = header.name();
            match header.kind() {
                b'L' => {
                    let value = self.extension(&header, extensions.name.is_some())?;
                    extensions.name = Some(until_nul(value));
                }
                b'K' => {
                    let value = self.extension(&header, extensions.link.is_some())?;
                    extensions.link = Some(until_nul(value));
                }
                b'x' => {
                    let value = self.extension(&header, extensions.pax.is_some())?;
                    let pax = Pax::parse(&value).map_err(|reason| self.refused(reason))?;
                    extensions.pax = Some(pax);
                }
                b'g' => {
                    self.current = name;
                    let value = self.extension(&header, false)?;
                    pax::check_global(&value).map_err(|reason| self.refused(reason))?;
                }
                _ => return self.entry(&header, name, extensions).map(Some),
            }
        }
    }

    /// Where in the stream the next byte stands: after [`Archive::next_entry`] the entry's data.
    pub(in crate::image) fn offset(&self) -> u64 {
        self.offset
    }

    /// Fills the buffer with data of the entry.
    pub(super) fn read_data(&mut self, buffer: &mut [u8]) -> Result<(), LayerError> {
        self.left = self
            .left
            .checked_sub(buffer.len() as u64)
            .ok_or_else(|| self.refused(Refusal::Number("size")))?;
        self.read(buffer)
    }

    /// Reads the stream to its end.
    pub(in crate::image) fn drain(&mut self) -> Result<(), LayerError> {
        self.current = b"(end)".to_vec();
        let mut buffer = vec![0; BUFFER];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(self.failed(source)),
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header<'_>,
        name: Vec<u8>,
        extensions: Extensions,
    ) -> Result<Entry, LayerError> {
        let pax = extensions.pax.unwrap_or_default();
        let sparse_name = pax.sparse.name.clone();
        let path = sparse_name.or(pax.path).or(extensions.name).unwrap_or(name);
        self.current.clone_from(&path);
        let link = pax.link.or(extensions.link);
        let size = header.size().map_err(|reason| self.refused(reason))?;
        let kind = kind(header.kind(), &path).map_err(|reason| self.refused(reason))?;
        let mut entry = Entry {
            kind,
            link: link.unwrap_or_else(|| header.link().to_vec()),
            path,
            permissions: 0,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            xattrs: pax.xattrs,
            device: (0, 0),
            size: 0,
            sparse: None,
        };
        entry
            .fill(header, pax.uid, pax.gid, pax.mtime)
            .map_err(|reason| self.refused(reason))?;
        let size = pax.size.unwrap_or(size);
        self.data(header, &mut entry, size, &pax.sparse)?;
        Ok(entry)
    }

    /// Finds out how much data follows, and where it belongs.
    fn data(
        &mut self,
        header: &Header<'_>,
        entry: &mut Entry,
        size: u64,
        sparse: &PaxSparse,
    ) -> Result<(), LayerError> {
        // Offsets are signed in Linux, and sums with padding must not overflow.
        if size > i64::MAX.cast_unsigned() - BUFFER as u64 {
            return Err(self.refused(Refusal::Number("size")));
        }
        match entry.kind {
            EntryKind::Inode(InodeKind::File) => {}
            // Tar programs agree that a hard link has no data, whatever its size says; about
            // others they disagree, which would let an entry hide from some of them.
            EntryKind::HardLink => return Ok(()),
            _ if size == 0 => return Ok(()),
            _ => return Err(self.refused(Refusal::DataOfNoFile)),
        }
        let map = if header.kind() == b'S' {
            Some(self.old_gnu_map(header)?)
        } else if sparse.is_present() {
            None
        } else {
            self.begin_data(size);
            entry.size = size;
            return Ok(());
        };
        self.begin_data(size);
        let (real_size, segments) = match map {
            Some(map) => map,
            None => self.pax_map(sparse)?,
        };
        let map = SparseMap::new(real_size, segments, self.left);
        entry.sparse = Some(map.map_err(|reason| self.refused(reason))?);
        entry.size = self.left;
        Ok(())
    }

    fn begin_data(&mut self, size: u64) {
        self.left = size;
        self.padding = size.next_multiple_of(RECORD as u64) - size;
    }

    /// The segments in the header and in the records after it.
    fn old_gnu_map(&mut self, header: &Header<'_>) -> Result<(u64, Vec<Segment>), LayerError> {
        let parsed = header.gnu_sparse();
        let GnuSparse {
            size,
            mut segments,
            mut has_more,
        } = parsed.map_err(|reason| self.refused(reason))?;
        while has_more {
            let mut record = [0; RECORD];
            self.read(&mut record)?;
            let more = header::gnu_sparse_more(&record);
            let (next, is_followed) = more.map_err(|reason| self.refused(reason))?;
            if next.is_empty() || segments.len() > MAX_SEGMENTS {
                return Err(self.refused(Refusal::Sparse("it has too many segments")));
            }
            segments.extend(next);
            has_more = is_followed;
        }
        Ok((size, segments))
    }

    fn pax_map(&mut self, sparse: &PaxSparse) -> Result<(u64, Vec<Segment>), LayerError> {
        let missing = Refusal::Sparse("it does not say the file's size");
        let size = sparse.size.ok_or_else(|| self.refused(missing))?;
        let numbers = match (sparse.major, sparse.minor) {
            (Some(1), Some(0)) => self.numbers_before_data()?,
            (None | Some(0), _) => sparse.map.clone(),
            _ => return Err(self.refused(Refusal::Sparse("its format is unknown"))),
        };
        let segments = sparse::segments(&numbers).map_err(|reason| self.refused(reason))?;
        Ok((size, segments))
    }

    /// Format 1.0: the number of segments, their offsets and lengths, a line each, at the start of
    /// the data and padded to a record.
    fn numbers_before_data(&mut self) -> Result<Vec<u64>, LayerError> {
        let broken = Refusal::Sparse("a number is broken");
        let mut numbers = Vec::new();
        let mut wanted = 1;
        let mut line = Vec::new();
        while numbers.len() < wanted {
            let mut record = [0; RECORD];
            self.read_data(&mut record)?;
            for byte in record {
                if numbers.len() == wanted {
                    break;
                }
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                let number = pax::decimal(&line).ok_or_else(|| self.refused(broken))?;
                line.clear();
                if numbers.is_empty() {
                    let count = usize::try_from(number).ok();
                    let count = count.filter(|count| *count <= MAX_SEGMENTS);
                    let many = Refusal::Sparse("it has too many segments");
                    wanted = 1 + 2 * count.ok_or_else(|| self.refused(many))?;
                }
                numbers.push(number);
            }
            // No number has more than 20 digits.
            if line.len() > 20 {
                return Err(self.refused(broken));
            }
        }
        numbers.remove(0);
        Ok(numbers)
    }

    /// The content of an extension header.
    fn extension(&mut self, header: &Header<'_>, is_second: bool) -> Result<Vec<u8>, LayerError> {
        if is_second {
            let second = Refusal::Extension("there are two of a kind");
            return Err(self.refused(second));
        }
        let size = header.size().map_err(|reason| self.refused(reason))?;
        if size > MAX_EXTENSION {
            return Err(self.refused(Refusal::ExtensionTooLarge));
        }
        self.begin_data(size);
        // At most 1 MiB.
        let mut value = vec![0; usize::try_from(size).unwrap_or_default()];
        self.read_data(&mut value)?;
        Ok(value)
    }

    /// The next record that is not the end of the archive.
    fn header_record(&mut self) -> Result<Option<[u8; RECORD]>, LayerError> {
        let Some(record) = self.record_or_end()? else {
            return Ok(None);
        };
        if record != [0; RECORD] {
            return Ok(Some(record));
        }
        match self.record_or_end()? {
            Some(record) if record != [0; RECORD] => Err(self.refused(Refusal::LoneEnd)),
            _ => Ok(None),
        }
    }

    /// The next record, or none if the stream ends before it.
    fn record_or_end(&mut self) -> Result<Option<[u8; RECORD]>, LayerError> {
        let mut record = [0; RECORD];
        loop {
            match self.stream.read(&mut record[..1]) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(self.failed(source)),
            }
        }
        self.offset += 1;
        self.read(&mut record[1..])?;
        Ok(Some(record))
    }

    fn end(&self, extensions: &Extensions) -> Result<(), LayerError> {
        let Extensions { name, link, pax } = extensions;
        if name.is_some() || link.is_some() || pax.is_some() {
            return Err(LayerError::Truncated {
                entry: EntryName::new(&self.current),
            });
        }
        Ok(())
    }

    fn skip_data(&mut self) -> Result<(), LayerError> {
        let mut left = self.left + self.padding;
        (self.left, self.padding) = (0, 0);
        let mut buffer = [0; 4096];
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(4096).min(4096);
            self.read(&mut buffer[..part])?;
            left -= part as u64;
        }
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<(), LayerError> {
        self.offset += buffer.len() as u64;
        self.stream.read_exact(buffer).map_err(|source| {
            if source.kind() == ErrorKind::UnexpectedEof {
                LayerError::Truncated {
                    entry: EntryName::new(&self.current),
                }
            } else {
                self.failed(source)
            }
        })
    }

    fn failed(&self, source: std::io::Error) -> LayerError {
        LayerError::Read {
            entry: EntryName::new(&self.current),
            source,
        }
    }

    /// An error that names the current entry.
    pub(super) fn refused(&self, reason: Refusal) -> LayerError {
        LayerError::Refused {
            entry: EntryName::new(&self.current),
            reason,
        }
    }
}

impl Entry {
    /// What stands in fixed fields, unless an extension header says otherwise.
    fn fill(
        &mut self,
        header: &Header<'_>,
        uid: Option<i64>,
        gid: Option<i64>,
        mtime: Option<Timestamp>,
    ) -> Result<(), Refusal> {
        self.permissions = header.permissions()?;
        self.uid = id(uid.map_or_else(|| header.uid(), Ok)?, "owner")?;
        self.gid = id(gid.map_or_else(|| header.gid(), Ok)?, "group")?;
        self.mtime = match mtime {
            Some(mtime) => mtime,
            None => Timestamp {
                seconds: header.mtime()?,
                nanoseconds: 0,
            },
        };
        if matches!(
            self.kind,
            EntryKind::Inode(InodeKind::Character | InodeKind::Block)
        ) {
            self.device = header.device()?;
        }
        Ok(())
    }
}

/// A user or group of Linux; the largest number means "none" there.
fn id(value: i64, what: &'static str) -> Result<u32, Refusal> {
    u32::try_from(value)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or(Refusal::Number(what))
}

fn kind(flag: u8, path: &[u8]) -> Result<EntryKind, Refusal> {
    let kind = match flag {
        // Before POSIX a directory was a file whose name ends in a slash.
        b'0' | b'\0' if path.ends_with(b"/") => InodeKind::Directory,
        b'0' | b'\0' | b'7' | b'S' => InodeKind::File,
        b'1' => return Ok(EntryKind::HardLink),
        b'2' => InodeKind::Symlink,
        b'3' => InodeKind::Character,
        b'4' => InodeKind::Block,
        b'5' => InodeKind::Directory,
        b'6' => InodeKind::Fifo,
        other => return Err(Refusal::Type(other)),
    };
    Ok(EntryKind::Inode(kind))
}

/// GNU tar ends long names with a NUL; one within stays, to be refused.
fn until_nul(mut value: Vec<u8>) -> Vec<u8> {
    if value.last() == Some(&0) {
        value.pop();
    }
    value
}
