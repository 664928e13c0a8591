//! The manifest of a snapshot: what was saved, of which VM, on which processor.
//!
//! ```text
//! manifest.json   {"sha256": …, "manifest": { version … files: [{path, size, sha256}] }}
//!                   └─ of the bytes of ───────▲
//! ```
//! The digest of the manifest is over its bytes as they stand, so that a later program, which may know
//! more fields, checks the same thing. Those of the files: see [`digest`](super::digest).
//!
//! Invariant: a [`Manifest`] that was read is of a known version, whole, and names only files in `vm/`
//! and `disks/` of its own folder, each once.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::digest;
use crate::store::layout::SnapshotFolder;
use crate::store::{Durability, atomic};
use crate::sys::cpu::HostCpu;
use crate::units::{Digest, EngineName, SnapshotId, SnapshotName, VmId, VmName};
use crate::vm::{VmConfig, VmSpec};

/// Version of the manifest; a reader refuses any other.
pub const VERSION: u32 = 1;

/// A manifest has some 20 KiB, mostly the processor's features and the specification; one larger than
/// this is none.
pub(super) const MAX_BYTES: u64 = 4 << 20;

/// Files up to this size, in bytes, have their content checked in any case: an engine's state, not
/// memory or disks.
const SMALL: u64 = 1 << 20;

/// The folders that hold a snapshot's files.
const FOLDERS: [&str; 2] = ["vm", "disks"];

/// What a snapshot is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// The snapshot; an imported one has an id of its own.
    pub id: SnapshotId,
    /// Its name, if it has one.
    pub name: Option<SnapshotName>,
    /// What its maker wanted to say of it.
    pub description: String,
    /// When the VM was saved.
    pub created_at: Timestamp,
    /// The VM that was saved.
    pub vm: VmId,
    /// That VM's name then.
    pub vm_name: VmName,
    /// The engine that saved it, and alone can restore it.
    pub engine: EngineName,
    /// That engine's version.
    pub engine_version: String,
    /// The processor on which the guest ran.
    pub cpu: HostCpu,
    /// Whether an agent answered in the guest right before; of a paused guest nobody knows.
    #[serde(default)]
    pub agent: Option<bool>,
    /// Whether the guest had booted once, to the end, as the VM that it was; what the snapshot's writer did not say,
    /// its disks do.
    #[serde(default)]
    pub first_booted: Option<bool>,
    /// The VM's configuration: image, layers, sizes.
    pub config: VmConfig,
    /// What the VM process was running: processors, disks, NICs, sockets.
    pub spec: VmSpec,
    /// The disks that the guest may write to, in the order of `spec`.
    pub disks: Vec<SavedDisk>,
    /// Every file of the snapshot but the manifest.
    pub files: Vec<SavedFile>,
}

/// A copy of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedDisk {
    /// The virtio serial by which the specification and the guest know it.
    pub serial: String,
    /// Its file, relative to the snapshot's folder.
    pub file: String,
}

/// A file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedFile {
    /// `vm/<name>` or `disks/<name>`.
    pub path: String,
    /// Bytes, holes included.
    pub size: u64,
    /// Digest of its content, holes left out.
    pub sha256: Digest,
}

/// The file `manifest.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed<'a> {
    sha256: Digest,
    #[serde(borrow)]
    manifest: &'a RawValue,
}

/// How thoroughly a snapshot is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The size of each file, and the content of small ones: some milliseconds.
    Quick,
    /// The content of every file.
    Full,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Defect {
    /// It is not there.
    #[error("is missing")]
    Missing,
    /// It is a folder, a link or a device.
    #[error("is not a regular file")]
    NotAFile,
    /// Something is missing, or too much is there.
    #[error("is {actual} bytes long and should be {expected}")]
    Length {
        /// What is there.
        actual: u64,
        /// What was saved.
        expected: u64,
    },
    /// Some bytes are not those that were saved.
    #[error("does not hold what was saved: its digest is wrong")]
    Content,
}

/// Why a snapshot cannot be used, or its manifest made.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It is no manifest.
    #[error("{} is no manifest of a snapshot", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// Another cocoon wrote it.
    #[error("{} has version {found}, but this cocoon knows version {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// It names a file that no snapshot has.
    #[error("{} names the file {name:?}, which no snapshot has", path.display())]
    Name {
        /// The manifest.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A file of the snapshot is not as it was.
    #[error("{} {defect}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        defect: Defect,
    },
}

impl ManifestError {
    fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }
}

impl Manifest {
    /// Reads the manifest of the snapshot in `folder`; its files are not looked at.
    ///
    /// # Errors
    /// There is none, it is damaged, or another cocoon wrote it.
    pub fn read(folder: &SnapshotFolder) -> Result<Self, ManifestError> {
        let path = folder.manifest();
        let mut text = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text))
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => ManifestError::Damaged {
                    path: path.clone(),
                    defect: Defect::Missing,
                },
                _ => ManifestError::file("read", &path)(error),
            })?;
        Self::parse(&text, &path)
    }

    /// Takes a manifest from its file's bytes; `path` is for errors.
    ///
    /// # Errors
    /// As [`Manifest::read`].
    pub fn parse(text: &[u8], path: &Path) -> Result<Self, ManifestError> {
        let form = |source| ManifestError::Form {
            path: path.to_owned(),
            source,
        };
        let sealed: Sealed<'_> = serde_json::from_slice(text).map_err(form)?;
        let text = sealed.manifest.get();
        if Digest::of(text.as_bytes()) != sealed.sha256 {
            return Err(ManifestError::Damaged {
                path: path.to_owned(),
                defect: Defect::Content,
            });
        }
        let value: serde_json::Value = serde_json::from_str(text).map_err(form)?;
        let found = value["version"].as_u64().unwrap_or_default();
        if found != u64::from(VERSION) {
            return Err(ManifestError::Version {
                path: path.to_owned(),
                found,
            });
        }
        let manifest: Self = serde_json::from_value(value).map_err(form)?;
        match manifest.strange_name() {
            Some(name) => Err(ManifestError::Name {
                path: path.to_owned(),
                name: name.to_owned(),
            }),
            None => Ok(manifest),
        }
    }

    /// The first name that leaves the snapshot's folders, or comes twice, or of a disk without a file.
    fn strange_name(&self) -> Option<&str> {
        let mut seen = BTreeSet::new();
        let strange = self
            .files
            .iter()
            .find(|file| !is_plain(&file.path) || !seen.insert(file.path.as_str()));
        let disk = || {
            self.disks
                .iter()
                .find(|disk| !seen.contains(disk.file.as_str()))
        };
        match strange {
            Some(file) => Some(&file.path),
            None => disk().map(|disk| disk.file.as_str()),
        }
    }

    /// Writes the manifest into `folder`, after every file that it names has reached the disk: where a
    /// manifest is, all is.
    ///
    /// # Errors
    /// It cannot be written, or a file not be synced.
    pub fn write(&self, folder: &SnapshotFolder) -> Result<(), ManifestError> {
        let files = self.files.iter().map(|file| file.place(folder));
        for path in files.chain([folder.vm(), folder.disks()]) {
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(ManifestError::file("sync", &path))?;
        }
        let path = folder.manifest();
        let text = self.to_bytes(&path)?;
        atomic::write(&path, &text, Durability::Full).map_err(ManifestError::file("write", &path))
    }

    /// The manifest as its file holds it; `path` is for errors.
    pub(super) fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, ManifestError> {
        let sealed = || {
            let raw = RawValue::from_string(serde_json::to_string(self)?)?;
            serde_json::to_vec(&Sealed {
                sha256: Digest::of(raw.get().as_bytes()),
                manifest: &raw,
            })
        };
        sealed().map_err(|source| ManifestError::Form {
            path: path.to_owned(),
            source,
        })
    }

    /// Compares the files in `folder` with the manifest.
    ///
    /// # Errors
    /// A file is not as it was saved; the error names it and its defect. Or it cannot be read, or
    /// `go_on` said no ([`io::ErrorKind::Interrupted`]).
    pub fn check(
        &self,
        folder: &SnapshotFolder,
        depth: Depth,
        go_on: &dyn Fn() -> bool,
    ) -> Result<(), ManifestError> {
        // All sizes first: that is quick, and tells most of what may have happened.
        for file in &self.files {
            file.check_size(folder)?;
        }
        let looked_into = |file: &&SavedFile| depth == Depth::Full || file.size <= SMALL;
        for file in self.files.iter().filter(looked_into) {
            file.check_content(folder, go_on)?;
        }
        Ok(())
    }
}

impl SavedFile {
    /// Its place in the snapshot that is in `folder`.
    pub fn place(&self, folder: &SnapshotFolder) -> PathBuf {
        folder.path().join(&self.path)
    }

    fn damaged(&self, folder: &SnapshotFolder, defect: Defect) -> ManifestError {
        ManifestError::Damaged {
            path: self.place(folder),
            defect,
        }
    }

    fn check_size(&self, folder: &SnapshotFolder) -> Result<(), ManifestError> {
        let path = self.place(folder);
        let defect = match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Defect::Missing,
            Err(error) => return Err(ManifestError::file("look at", &path)(error)),
            Ok(file) if !file.is_file() => Defect::NotAFile,
            Ok(file) if file.len() != self.size => Defect::Length {
                actual: file.len(),
                expected: self.size,
            },
            Ok(_) => return Ok(()),
        };
        Err(self.damaged(folder, defect))
    }

    /// Compares its content with its digest.
    ///
    /// # Errors
    /// As [`Manifest::check`].
    pub fn check_content(
        &self,
        folder: &SnapshotFolder,
        go_on: &dyn Fn() -> bool,
    ) -> Result<(), ManifestError> {
        let path = self.place(folder);
        let found = File::open(&path)
            .and_then(|file| digest::of(&file, go_on))
            .map_err(ManifestError::file("read", &path))?;
        if found == self.sha256 {
            Ok(())
        } else {
            Err(self.damaged(folder, Defect::Content))
        }
    }
}

/// Whether a name is that of a file in one of the two folders, and no way out of them.
fn is_plain(path: &str) -> bool {
    let Some((folder, name)) = path.split_once('/') else {
        return false;
    };
    FOLDERS.contains(&folder)
        && !name.is_empty()
        && !name.starts_with('.')
        && !name.contains(['/', '\0'])
}

/// Describes every file in a snapshot's two folders, in order of name: sizes and digests.
///
/// # Errors
/// A folder or file cannot be read, or holds what is no regular file; or `go_on` said no
/// ([`io::ErrorKind::Interrupted`]).
pub fn describe(
    folder: &SnapshotFolder,
    go_on: &dyn Fn() -> bool,
) -> Result<Vec<SavedFile>, ManifestError> {
    let mut files = Vec::new();
    for inner in FOLDERS {
        let path = folder.path().join(inner);
        for entry in fs::read_dir(&path).map_err(ManifestError::file("list", &path))? {
            let entry = entry.map_err(ManifestError::file("list", &path))?;
            let path = entry.path();
            let kind = entry
                .file_type()
                .map_err(ManifestError::file("look at", &path))?;
            if !kind.is_file() {
                let defect = Defect::NotAFile;
                return Err(ManifestError::Damaged { path, defect });
            }
            let described = File::open(&path)
                .and_then(|file| Ok((file.metadata()?.len(), digest::of(&file, go_on)?)));
            let (size, sha256) = described.map_err(ManifestError::file("read", &path))?;
            let name = entry.file_name();
            files.push(SavedFile {
                path: format!("{inner}/{}", name.to_string_lossy()),
                size,
                sha256,
            });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

#[cfg(test)]
pub(crate) mod tests;
