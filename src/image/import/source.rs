//! Opens what is imported: unwraps it, and finds out whether it is a bundle or one tar.
//!
//! ```text
//!   folder ─▶ bundle
//!   file that is not wrapped ─▶ sorting ─▶ bundle of the file itself | the file from its start
//!   anything else ─▶ unwrap ─▶ keep ─▶ sorting ─▶ bundle of the copy | what was kept, and the rest
//! ```

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use super::bundle::Bundle;
use super::error::Reason;
use super::sorting::{self, Sorted};
use crate::image::assembly::{AssemblyError, AssemblyOptions};
use crate::image::blobs::Staging;
use crate::image::decode;
use crate::image::layer;
use crate::image::manifest::Wrapping;
use crate::image::progress::{Progress, PullEvent};

/// Bytes that tell what a stream is: as far as the magic numbers of disk images reach.
const HEAD: u64 = 2048;

/// Bytes that are read at once.
const BUFFER: usize = 128 << 10;

/// Where an image comes from.
pub enum Input {
    /// A folder.
    Folder(PathBuf),
    /// A file, or what else has a path: a pipe, a device.
    File(PathBuf),
    /// Something without a name, such as standard input.
    Stream(Box<dyn Read>),
}

impl Input {
    /// What there is at `path`.
    pub fn at(path: &Path) -> Self {
        match path.is_dir() {
            true => Self::Folder(path.to_owned()),
            false => Self::File(path.to_owned()),
        }
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) | Self::File(path) => path.display().fmt(f),
            Self::Stream(_) => f.pad("standard input"),
        }
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What an input is.
pub(super) enum Opened<'a> {
    Bundle(Bundle),
    Tar(Box<dyn Read + 'a>),
}

/// Who looks on while an input is read.
#[derive(Clone, Copy)]
pub(super) struct Watch<'a> {
    pub(super) options: &'a AssemblyOptions,
    pub(super) progress: &'a dyn Progress,
}

/// Opens an input; work files are in `staging`.
pub(super) fn open<'a>(
    input: Input,
    staging: &Staging,
    watch: Watch<'a>,
) -> Result<Opened<'a>, Reason> {
    let path = match input {
        Input::Stream(stream) => return wrapped(stream, None, staging, watch),
        Input::Folder(path) => return Bundle::folder(&path).map(Opened::Bundle),
        Input::File(path) => path,
    };
    let failed = |source| Reason::Read {
        what: path.display().to_string(),
        source,
    };
    let mut file = File::open(&path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return wrapped(Box::new(file), None, staging, watch);
    }
    let head = head_of(&mut file).map_err(failed)?;
    file.rewind().map_err(failed)?;
    let size = Some(metadata.len());
    match decode::wrapping_of(&head) {
        Wrapping::None => {}
        _ => return wrapped(Box::new(file), size, staging, watch),
    }
    check(&head)?;
    let mut scan = Watched::new(&file, None, watch);
    match sorting::sort(&mut scan)? {
        Sorted::Bundle(members) => Ok(Opened::Bundle(Bundle::tar(file, members))),
        Sorted::Tar => {
            file.rewind().map_err(failed)?;
            Ok(Opened::Tar(Box::new(Watched::new(file, size, watch))))
        }
    }
}

/// Opens a stream that may be compressed and cannot be read twice.
fn wrapped<'a>(
    stream: Box<dyn Read>,
    size: Option<u64>,
    staging: &Staging,
    watch: Watch<'a>,
) -> Result<Opened<'a>, Reason> {
    watch
        .progress
        .event(PullEvent::StreamStarted { total: size });
    let failed = |source| Reason::Read {
        what: "its beginning".to_owned(),
        source,
    };
    let mut stream = Watched::counting(stream, watch);
    let head = head_of(&mut stream).map_err(failed)?;
    let wrapping = decode::wrapping_of(&head);
    let whole = BufReader::with_capacity(BUFFER, io::Cursor::new(head).chain(stream));
    let mut tar = decode::decoder(whole, wrapping).map_err(failed)?;
    let head = head_of(&mut tar).map_err(failed)?;
    check(&head)?;
    let file = staging.file().map_err(AssemblyError::from)?;
    let limit = watch.options.limits.max_bytes;
    let mut keep = Keep::new(io::Cursor::new(head).chain(tar), file, limit);
    let sorted = sorting::sort(&mut keep);
    // Why nothing could be kept is why nothing could be read.
    let (mut kept, rest) = keep.done()?;
    match sorted? {
        Sorted::Bundle(members) => Ok(Opened::Bundle(Bundle::tar(kept, members))),
        Sorted::Tar => {
            kept.rewind().map_err(Reason::Keep)?;
            Ok(Opened::Tar(Box::new(kept.chain(rest))))
        }
    }
}

fn head_of(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    stream.take(HEAD).read_to_end(&mut head)?;
    Ok(head)
}

/// Refuses what does not begin as a tar, and says what it is instead.
fn check(head: &[u8]) -> Result<(), Reason> {
    type Magic = (
        usize,
        &'static [u8],
        fn(&'static str) -> Reason,
        &'static str,
    );
    const MAGICS: [Magic; 11] = [
        (0, b"QFI\xfb", Reason::DiskImage, "qcow2"),
        (0, b"KDMV", Reason::DiskImage, "VMDK"),
        (0, b"vhdxfile", Reason::DiskImage, "VHDX"),
        // A partition table; that of GPT begins with one, too.
        (510, b"\x55\xaa", Reason::DiskImage, "raw"),
        // An ext4 file system without a partition table.
        (1080, b"\x53\xef", Reason::DiskImage, "raw"),
        (
            0,
            b"\x1f\x8b",
            Reason::Compressed,
            "gzip, and then once more",
        ),
        (
            0,
            b"\x28\xb5\x2f\xfd",
            Reason::Compressed,
            "zstd, and then once more",
        ),
        (0, b"\xfd7zXZ\0", Reason::Compressed, "xz"),
        (0, b"BZh", Reason::Compressed, "bzip2"),
        (0, b"PK\x03\x04", Reason::Compressed, "zip"),
        (0, b"\x04\x22\x4d\x18", Reason::Compressed, "lz4"),
    ];
    if layer::is_header(head) {
        return Ok(());
    }
    for (offset, magic, reason, name) in MAGICS {
        if head.get(offset..).is_some_and(|at| at.starts_with(magic)) {
            return Err(reason(name));
        }
    }
    // A tar without entries is zeros.
    Err(match head.iter().all(|byte| *byte == 0) {
        true => Reason::Empty,
        false => Reason::Unknown,
    })
}

/// A reader that stops when the import is cancelled, and tells how far it has come.
struct Watched<'a, R> {
    inner: R,
    watch: Watch<'a>,
    counts: bool,
}

impl<'a, R> Watched<'a, R> {
    /// Begins to tell, if it is known how much there is to read.
    fn new(inner: R, total: Option<u64>, watch: Watch<'a>) -> Self {
        if total.is_some() {
            watch.progress.event(PullEvent::StreamStarted { total });
        }
        Self {
            inner,
            watch,
            counts: total.is_some(),
        }
    }

    /// Goes on to tell.
    fn counting(inner: R, watch: Watch<'a>) -> Self {
        Self {
            inner,
            watch,
            counts: true,
        }
    }
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.watch.options.cancel.is_cancelled() {
            // Not `Interrupted`: who gets that tries again.
            return Err(io::Error::other("cancelled"));
        }
        let count = self.inner.read(to)?;
        if self.counts {
            let bytes = count as u64;
            self.watch
                .progress
                .event(PullEvent::StreamAdvanced { bytes });
        }
        Ok(count)
    }
}

/// A reader that keeps a copy of what passes.
struct Keep<R> {
    inner: R,
    file: File,
    left: u64,
    limit: u64,
    failed: Option<Reason>,
}

impl<R> Keep<R> {
    fn new(inner: R, file: File, limit: u64) -> Self {
        Self {
            inner,
            file,
            left: limit,
            limit,
            failed: None,
        }
    }

    /// The copy, and what has not passed yet.
    fn done(self) -> Result<(File, R), Reason> {
        match self.failed {
            Some(reason) => Err(reason),
            None => Ok((self.file, self.inner)),
        }
    }

    fn fail(&mut self, reason: Reason) -> io::Error {
        self.failed = Some(reason);
        io::Error::other("no copy can be kept")
    }
}

impl<R: Read> Read for Keep<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(to)?;
        let Some(left) = self.left.checked_sub(count as u64) else {
            let limit = self.limit;
            return Err(self.fail(Reason::TooLarge { limit }));
        };
        self.left = left;
        match self.file.write_all(&to[..count]) {
            Ok(()) => Ok(count),
            Err(source) => Err(self.fail(Reason::Keep(source))),
        }
    }
}
