//! A snapshot as one file: a zstd-compressed tar, which other programs can read, too.
//!
//! ```text
//! manifest.json, then each file that it names, in its order      GNU sparse entries keep holes
//! ```
//! Reading trusts nothing: the manifest comes first and is checked, then only the files that it names
//! are taken, each once and of its size; their content is compared with their digests by the caller.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header, HeaderMode};

use super::manifest::{MAX_BYTES, Manifest, ManifestError, SavedFile};
use crate::store::layout::SnapshotFolder;
use crate::sys::failpoint;

/// The name of the manifest in the archive.
const MANIFEST: &str = "manifest.json";

/// Bytes that may follow a tar's end: programs pad to 10 KiB, or to what their user said.
const MAX_PADDING: u64 = 1 << 20;

/// Why an archive cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The archive or a file that goes into it.
    #[error("cannot write {name} into the archive")]
    Write {
        /// The file that was being written.
        name: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The archive ends too early, or is none.
    #[error("cannot read the archive: it is cut short, or no snapshot that cocoon exported")]
    Read(#[source] io::Error),
    /// A file cannot be taken out.
    #[error("cannot take {name} out of the archive")]
    Unpack {
        /// The file.
        name: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The manifest is not at its place.
    #[error("the archive does not begin with a manifest: it is no snapshot that cocoon exported")]
    NoManifest,
    /// An entry that the manifest does not name, or of another kind or size.
    #[error("the archive holds {0:?}, which its manifest does not describe so")]
    Unexpected(String),
    /// A file that the manifest names.
    #[error("the archive lacks {0}, which its manifest names")]
    Lacking(String),
    /// The manifest is damaged, or a file is.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// Lets bytes through until it is told not to go on.
struct Guarded<'a, T> {
    inner: T,
    go_on: &'a dyn Fn() -> bool,
}

impl<T> Guarded<'_, T> {
    fn check(&self) -> io::Result<()> {
        // Not `Interrupted`: who gets that tries again.
        (self.go_on)()
            .then_some(())
            .ok_or_else(|| io::Error::other("interrupted"))
    }
}

impl<T: Read> Read for Guarded<'_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.inner.read(buffer)
    }
}

impl<T: Write> Write for Guarded<'_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.check()?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes the snapshot in `folder` to `out`. Stops when `go_on` says no.
///
/// # Errors
/// A file cannot be read, or `out` not written.
pub fn write(
    folder: &SnapshotFolder,
    manifest: &Manifest,
    out: impl Write,
    go_on: &dyn Fn() -> bool,
) -> Result<(), ArchiveError> {
    let failed = |name: &str| {
        let name = name.to_owned();
        move |source| ArchiveError::Write { name, source }
    };
    let out = Guarded { inner: out, go_on };
    let mut out =
        zstd::Encoder::new(out, zstd::DEFAULT_COMPRESSION_LEVEL).map_err(failed(MANIFEST))?;
    out.include_checksum(true).map_err(failed(MANIFEST))?;
    let mut tar = Builder::new(out);
    // Times and owners of this host are nobody's business.
    tar.mode(HeaderMode::Deterministic);
    let text = manifest.to_bytes(&folder.manifest())?;
    let mut header = Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o600);
    tar.append_data(&mut header, MANIFEST, text.as_slice())
        .map_err(failed(MANIFEST))?;
    for file in &manifest.files {
        File::open(file.place(folder))
            .and_then(|mut open| tar.append_file(&file.path, &mut open))
            .map_err(failed(&file.path))?;
        failpoint::reach("archive: file written");
    }
    let end = failed("its end");
    tar.into_inner()
        .and_then(zstd::Encoder::finish)
        .and_then(|mut out| out.flush())
        .map_err(end)
}

/// Reads an archive: when its manifest is known, `begin` says where its files go. They are *not* yet
/// compared with their digests. Stops when `go_on` says no.
///
/// # Errors
/// It is no archive of a snapshot, or damaged in a way that shows, or a file cannot be written, or
/// those of `begin`.
pub fn read<E: From<ArchiveError>>(
    input: impl Read,
    go_on: &dyn Fn() -> bool,
    begin: impl FnOnce(&Manifest) -> Result<SnapshotFolder, E>,
) -> Result<Manifest, E> {
    let input = Guarded {
        inner: input,
        go_on,
    };
    let input = zstd::Decoder::new(input).map_err(ArchiveError::Read)?;
    let mut tar = tar::Archive::new(input);
    let mut entries = tar.entries().map_err(ArchiveError::Read)?;
    let first = entries.next().ok_or(ArchiveError::NoManifest)?;
    let manifest = read_manifest(first.map_err(ArchiveError::Read)?)?;
    let folder = begin(&manifest)?;
    let expected = |file: &SavedFile| (file.path.clone(), file.size);
    let mut expected: BTreeMap<_, _> = manifest.files.iter().map(expected).collect();
    for entry in entries {
        take_out(entry.map_err(ArchiveError::Read)?, &folder, &mut expected)?;
        failpoint::reach("archive: file taken out");
    }
    if let Some(name) = expected.into_keys().next() {
        return Err(ArchiveError::Lacking(name).into());
    }
    // Behind the tar's own end stand its padding, and the checksum of all.
    let rest = tar.into_inner().take(MAX_PADDING + 1);
    match io::copy(&mut { rest }, &mut io::sink()).map_err(ArchiveError::Read)? {
        0..=MAX_PADDING => Ok(manifest),
        _ => Err(ArchiveError::Unexpected("more behind its end".into()).into()),
    }
}

fn read_manifest(entry: tar::Entry<'_, impl Read>) -> Result<Manifest, ArchiveError> {
    if entry.path_bytes().as_ref() != MANIFEST.as_bytes() || entry.size() > MAX_BYTES {
        return Err(ArchiveError::NoManifest);
    }
    let mut text = Vec::new();
    entry
        .take(MAX_BYTES)
        .read_to_end(&mut text)
        .map_err(ArchiveError::Read)?;
    Ok(Manifest::parse(&text, Path::new(MANIFEST))?)
}

fn take_out(
    mut entry: tar::Entry<'_, impl Read>,
    folder: &SnapshotFolder,
    expected: &mut BTreeMap<String, u64>,
) -> Result<(), ArchiveError> {
    let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    let is_file = matches!(
        entry.header().entry_type(),
        EntryType::Regular | EntryType::GNUSparse
    );
    // Removed from what is expected, so that it cannot come twice.
    if !is_file || expected.remove(&name) != Some(entry.size()) {
        return Err(ArchiveError::Unexpected(name));
    }
    let place: PathBuf = folder.path().join(&name);
    entry.set_preserve_mtime(false);
    entry
        .unpack(&place)
        .map(drop)
        .map_err(|source| ArchiveError::Unpack { name, source })
}

#[cfg(test)]
mod tests;
