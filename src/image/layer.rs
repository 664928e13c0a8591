//! STAND-IN for the layer converter, dropped at merge: the bytes of the tar behind an EROFS
//! superblock, so that what pulls a layer has something to call.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Where the parts of a layer go; none may exist before, and none is left after an error.
#[derive(Clone, Copy, Debug)]
pub struct LayerPaths<'a> {
    /// The EROFS image.
    pub blob: &'a Path,
    /// The kernel, if the layer has one.
    pub kernel: &'a Path,
    /// The initial RAM disk, if the layer has one.
    pub initrd: &'a Path,
}

/// How file data is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// As it is.
    None,
    /// LZ4.
    Lz4,
}

/// What a layer may cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {}

/// What was converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerReport {
    /// Bytes of the blob.
    pub blob_size: u64,
    /// A kernel was found.
    pub has_kernel: bool,
    /// An initial RAM disk was found.
    pub has_initrd: bool,
    /// Entries of the tar.
    pub entries: u64,
}

/// Why a layer was not converted.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The stream broke, or is no tar.
    #[error("cannot read the layer's tar")]
    Read(#[source] io::Error),
    /// A file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Converts a layer.
///
/// # Errors
/// See [`LayerError`].
pub fn convert(
    tar: &mut dyn Read,
    uuid: [u8; 16],
    _compression: Compression,
    _limits: &Limits,
    to: &LayerPaths<'_>,
) -> Result<LayerReport, LayerError> {
    let result = write_all(tar, uuid, to);
    if result.is_err() {
        for path in [to.blob, to.kernel, to.initrd] {
            // The first error is the one to tell.
            let _ = fs::remove_file(path);
        }
    }
    result.map_err(|error| match error {
        LayerError::Read(source) if source.kind() == io::ErrorKind::StorageFull => {
            let path = to.blob.to_owned();
            LayerError::Write { path, source }
        }
        error => error,
    })
}

fn write_all(
    tar: &mut dyn Read,
    uuid: [u8; 16],
    to: &LayerPaths<'_>,
) -> Result<LayerReport, LayerError> {
    let write_error = |path: &Path| {
        let path = path.to_owned();
        move |source| LayerError::Write { path, source }
    };
    let mut blob = File::create_new(to.blob).map_err(write_error(to.blob))?;
    blob.write_all(&[0; 4096]).map_err(write_error(to.blob))?;
    let (mut has_kernel, mut has_initrd, mut entries) = (false, false, 0);
    let mut tee = Tee {
        tar,
        blob: &mut blob,
    };
    {
        let mut archive = tar::Archive::new(&mut tee);
        for entry in archive.entries().map_err(LayerError::Read)? {
            let mut entry = entry.map_err(LayerError::Read)?;
            entries += 1;
            let path = entry.path().map_err(LayerError::Read)?.into_owned();
            let name = path.strip_prefix("boot").unwrap_or(&path);
            let name = name.to_string_lossy();
            let (target, found) = if name.starts_with("vmlinuz") {
                (to.kernel, &mut has_kernel)
            } else if name.starts_with("initrd.img") {
                (to.initrd, &mut has_initrd)
            } else {
                continue;
            };
            let mut file = File::create(target).map_err(write_error(target))?;
            io::copy(&mut entry, &mut file).map_err(LayerError::Read)?;
            *found = true;
        }
    }
    io::copy(&mut tee, &mut io::sink()).map_err(LayerError::Read)?;
    let blob_size = finish(&mut blob, uuid).map_err(write_error(to.blob))?;
    Ok(LayerReport {
        blob_size,
        has_kernel,
        has_initrd,
        entries,
    })
}

fn finish(blob: &mut File, uuid: [u8; 16]) -> io::Result<u64> {
    let blocks = blob.stream_position()?.div_ceil(4096);
    blob.set_len(blocks * 4096)?;
    let mut superblock = [0; 128];
    superblock[..4].copy_from_slice(&0xE0F5_E1E2_u32.to_le_bytes());
    superblock[12] = 12;
    superblock[36..40].copy_from_slice(&u32::try_from(blocks).unwrap_or(0).to_le_bytes());
    superblock[48..64].copy_from_slice(&uuid);
    blob.seek(SeekFrom::Start(1024))?;
    blob.write_all(&superblock)?;
    Ok(blocks * 4096)
}

struct Tee<'a> {
    tar: &'a mut dyn Read,
    blob: &'a mut File,
}

impl Read for Tee<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let n = self.tar.read(to)?;
        self.blob.write_all(&to[..n])?;
        Ok(n)
    }
}
