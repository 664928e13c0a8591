//! Disk images that are made here.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use imago::FormatCreateBuilder;
use imago::qcow2::Qcow2;

use super::image::{Storage, storage};
use super::qcow2::{self, HeaderError};
use super::{Format, Image, ReadAt};
use crate::sys::sparse;

/// Bytes copied at once: whole clusters of every size.
const CHUNK: usize = 2 << 20;

/// Of the images that are made here, QEMU's own default: smaller ones make long tables, larger ones copy
/// more when a guest first writes to them.
const CLUSTER: usize = 64 << 10;

/// A disk is as many sectors long.
const SECTOR: u64 = 512;

/// Hears how much more of the disk has been looked at, and says whether to go on.
pub type Watch<'a> = &'a dyn Fn(u64) -> bool;

/// Why an image was not made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum MakeError {
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} cannot be used as a disk", path.display())]
    Refused {
        path: PathBuf,
        #[source]
        source: HeaderError,
    },
    #[error("this image must be converted by qemu-img, which cannot be run")]
    NoQemuImg(#[source] io::Error),
    #[error("qemu-img cannot convert the image: {0}")]
    QemuImg(String),
    #[error("it was interrupted")]
    Cancelled,
}

/// An image in the form that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Normal {
    /// Bytes of the disk.
    pub virtual_size: u64,
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> MakeError + 'a {
    move |source| MakeError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Makes a qcow2 image of version 3 without a base at `to` of the image at `from`, which is of that
/// format; where it is one already it is moved there, and else it stays.
///
/// # Errors
/// It is refused (see [`HeaderError`]), or cannot be read or written; what is at `to` then is rubbish.
pub fn normalise(
    from: &Path,
    format: Format,
    to: &Path,
    watch: Watch<'_>,
) -> Result<Normal, MakeError> {
    if format == Format::Raw {
        return copy(from, format, to, watch);
    }
    let file = File::open(from).map_err(failed("read", from))?;
    let header = qcow2::inspect(&file).map_err(|source| MakeError::Refused {
        path: from.to_owned(),
        source,
    })?;
    if header.is_normal() {
        std::fs::rename(from, to).map_err(failed("move", from))?;
    } else if header.is_simple() {
        return copy(from, format, to, watch);
    } else {
        convert_by_qemu(from, to)?;
    }
    Ok(Normal {
        virtual_size: header.virtual_size,
    })
}

fn open(path: &Path, format: Format) -> Result<Image, MakeError> {
    Image::open(path, format).map_err(failed("read", path))
}

/// Makes a qcow2 image at `to` with what the image at `from` has.
fn copy(from: &Path, format: Format, to: &Path, watch: Watch<'_>) -> Result<Normal, MakeError> {
    let source = open(from, format)?;
    let size = source.size().next_multiple_of(SECTOR);
    create(to, size)?;
    let target = Image::open_to_write(to).map_err(failed("write", to))?;
    write_runs((from, &source), to, watch, &mut |offset, bytes| {
        target.write_at(offset, bytes)
    })?;
    target.finish().map_err(failed("write", to))?;
    Ok(Normal { virtual_size: size })
}

/// Makes a raw disk at `to`, with holes, of the stored image at `base`, and as large as `size` if that is
/// more.
///
/// # Errors
/// The image cannot be read, or the disk not be written.
pub fn flatten(base: &Path, to: &Path, size: u64, watch: Watch<'_>) -> Result<(), MakeError> {
    let source = open(base, Format::Qcow2)?;
    let file = new_file(to)?;
    let size = size.max(source.size());
    file.set_len(size).map_err(failed("make", to))?;
    write_runs((base, &source), to, watch, &mut |offset, bytes| {
        file.write_all_at(bytes, offset)
    })
}

/// Writes all of the image at `from`, which `source` is, that is not zero, in order.
fn write_runs(
    (from, source): (&Path, &Image),
    to: &Path,
    watch: Watch<'_>,
    write: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
) -> Result<(), MakeError> {
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    while let Some((length, has_data)) = source.run_at(offset).map_err(failed("read", from))? {
        if !has_data {
            offset += length;
            go_on(watch, length)?;
            continue;
        }
        // To the next whole chunk, so that what is written is whole clusters.
        let room = CHUNK as u64 - offset % CHUNK as u64;
        let length = length.min(room);
        let bytes = &mut buffer[..usize::try_from(length).unwrap_or(CHUNK)];
        source
            .read_at(offset, bytes)
            .map_err(failed("read", from))?;
        for run in sparse::nonzero_runs(bytes) {
            write(offset + run.start as u64, &bytes[run]).map_err(failed("write", to))?;
        }
        offset += length;
        go_on(watch, length)?;
    }
    Ok(())
}

fn go_on(watch: Watch<'_>, bytes: u64) -> Result<(), MakeError> {
    match watch(bytes) {
        true => Ok(()),
        false => Err(MakeError::Cancelled),
    }
}

fn create(path: &Path, size: u64) -> Result<(), MakeError> {
    let file = new_file(path)?;
    let make = || {
        Qcow2::<Storage>::create_builder(storage(file, path, true)?)
            .cluster_size(CLUSTER)
            .size(size)
            .create()
    };
    make().map_err(failed("make", path))
}

fn new_file(path: &Path) -> Result<File, MakeError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path).map_err(failed("make", path))
}

/// What imago does not read: clusters compressed by zstd, clusters with parts, and files that were not
/// closed. The header has been checked, so qemu-img opens no other file.
fn convert_by_qemu(from: &Path, to: &Path) -> Result<(), MakeError> {
    let output = Command::new("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", "qcow2", "-o", "compat=1.1"])
        .args([from, to])
        .output()
        .map_err(MakeError::NoQemuImg)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(MakeError::QemuImg(said.trim().to_owned()))
}
