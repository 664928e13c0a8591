//! `doctor --upgrade`: installs what the manifest lists, each file known by its SHA-256.
//!
//! ```text
//!  url ─▶ .tmp-cocoon-*, digest compared ─▶ <firmware>                        (by rename)
//!      └▶ no name at all, digest compared ─▶ gzip, tar ─▶ <cni-bin-dir>/<plugin>, each by rename
//!  <root>/firmware/installed.json          digests of what was put where: written before the rename
//! ```
//! Invariants:
//! - A file that cocoon has not put there is its user's, and kept.
//! - Under its final name a file is whole and the right one. What a killed upgrade leaves begins with
//!   `.tmp-cocoon-`; the next one removes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::UNFINISHED;
use super::manifest::{Entry, Install, Manifest};
use super::repair::{Repair, RepairError, lock, require_root};
use crate::config::Config;
use crate::image::cancel::Cancel;
use crate::image::fetch::{FetchError, Wanted, fetch};
use crate::store::{Durability, Layout, atomic};
use crate::units::Digest;

/// The most that a firmware may have: those in use have 4 MiB.
const MAX_FIRMWARE: u64 = 64 << 20;

/// The most that an archive may have: that of the CNI plugins has some 60 MiB.
const MAX_ARCHIVE: u64 = 512 << 20;

/// The most that an archive may become: the CNI plugins have some 150 MiB.
const MAX_UNPACKED: u64 = 2 << 30;

/// The most programs in an archive: the CNI plugins are some 20.
const MAX_PROGRAMS: usize = 200;

/// Why a file was not installed.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the messages say it, and the fields are what they name"
)]
pub enum UpgradeError {
    #[error("cannot install {what}")]
    Fetch {
        what: String,
        #[source]
        source: FetchError,
    },
    #[error("cannot install {what}: cannot {action} {}", path.display())]
    File {
        what: String,
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot install {what}: its archive is not one of programs")]
    Archive {
        what: String,
        #[source]
        source: io::Error,
    },
}

impl UpgradeError {
    /// Whether it ended because the user wanted that.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Self::Fetch { source, .. } => source.is_cancelled(),
            Self::Archive { source, .. } => source.kind() == io::ErrorKind::Interrupted,
            Self::File { .. } => false,
        }
    }
}

/// What was installed, what was left alone, and what failed.
#[derive(Debug, Default)]
pub struct Upgraded {
    /// What was done, in order.
    pub repairs: Vec<Repair>,
    /// Files of the user's own, which stay.
    pub kept: Vec<PathBuf>,
    /// What failed; the rest was tried all the same, unless the user wanted it to stop.
    pub failures: Vec<UpgradeError>,
}

/// What cocoon has put where.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Installed {
    /// By path, all that was ever put there.
    files: BTreeMap<PathBuf, BTreeSet<Digest>>,
    /// By folder, the archive that was unpacked there last, and what was in it.
    archives: BTreeMap<PathBuf, Unpacked>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unpacked {
    archive: Digest,
    programs: BTreeSet<String>,
}

/// An entry, and where it goes.
struct Job<'a> {
    entry: &'a Entry,
    what: String,
    record: &'a Path,
    cancel: &'a Cancel,
}

/// Installs what `manifest` has for this machine. `begin` hears of each file before it is fetched.
///
/// # Errors
/// This is not root, or nothing can be begun. What cannot be installed is among the result's failures.
pub fn upgrade(
    config: &Config,
    manifest: &Manifest,
    cancel: &Cancel,
    begin: &dyn Fn(&Entry),
) -> Result<Upgraded, RepairError> {
    require_root()?;
    let _lock = lock(config)?;
    let layout = Layout::new(&config.root_dir, &config.run_dir, &config.log_dir);
    let (record, small) = (layout.installed_files(), layout.small_firmware());
    let mut upgraded = Upgraded::default();
    for entry in manifest.for_this_machine() {
        let job = Job {
            entry,
            what: format!("{} {}", entry.name, entry.version),
            record: &record,
            cancel,
        };
        let done = match entry.install {
            Install::Firmware => job.firmware(&config.firmware, begin, &mut upgraded),
            Install::SmallFirmware => job.firmware(&small, begin, &mut upgraded),
            Install::CniPlugins => job.programs(&config.cni_bin_dir, begin, &mut upgraded),
        };
        upgraded.failures.extend(done.err());
        if cancel.is_cancelled() {
            break;
        }
    }
    Ok(upgraded)
}

impl Job<'_> {
    fn firmware(
        &self,
        path: &Path,
        begin: &dyn Fn(&Entry),
        upgraded: &mut Upgraded,
    ) -> Result<(), UpgradeError> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        self.prepare(folder)?;
        let mut installed = Installed::read(self.record);
        let there = self.there(path)?;
        if there == Some(self.entry.digest) {
            return Ok(());
        }
        if there.is_some_and(|there| !installed.is_ours(path, &there)) {
            upgraded.kept.push(path.to_owned());
            return Ok(());
        }
        begin(self.entry);
        let mut file = self.unfinished(folder)?;
        self.fetch(file.as_file_mut(), MAX_FIRMWARE)?;
        installed.add(path, self.entry.digest);
        self.save(&installed)?;
        self.publish(file, path, 0o644)?;
        let did = format!("installed {}, {}", path.display(), self.what);
        upgraded.repairs.push(Repair::new("firmware", did));
        Ok(())
    }

    fn programs(
        &self,
        folder: &Path,
        begin: &dyn Fn(&Entry),
        upgraded: &mut Upgraded,
    ) -> Result<(), UpgradeError> {
        self.prepare(folder)?;
        let mut installed = Installed::read(self.record);
        if installed.has_all(folder, &self.entry.digest) {
            return Ok(());
        }
        begin(self.entry);
        let mut archive = tempfile::tempfile_in(folder).map_err(self.failed("write to", folder))?;
        self.fetch(&mut archive, MAX_ARCHIVE)?;
        archive.rewind().map_err(self.failed("read from", folder))?;
        let programs = self.unpack(archive, folder)?;
        let names = programs.keys().cloned().collect();
        let mut ours = Vec::new();
        for (name, (file, digest)) in programs {
            let path = folder.join(name);
            match self.there(&path)? {
                Some(there) if there == digest => {}
                Some(there) if !installed.is_ours(&path, &there) => {
                    upgraded.kept.push(path);
                    continue;
                }
                _ => ours.push((file, path.clone())),
            }
            installed.add(&path, digest);
        }
        self.save(&installed)?;
        let count = ours.len();
        for (file, path) in ours {
            self.publish(file, &path, 0o755)?;
        }
        let unpacked = Unpacked {
            archive: self.entry.digest,
            programs: names,
        };
        installed.archives.insert(folder.to_owned(), unpacked);
        self.save(&installed)?;
        let did = format!(
            "installed {count} programs in {}, {}",
            folder.display(),
            self.what
        );
        upgraded.repairs.push(Repair::new("cni-plugins", did));
        Ok(())
    }

    /// Each program of the archive, in a file that has no final name yet, and its digest.
    fn unpack(
        &self,
        archive: File,
        folder: &Path,
    ) -> Result<BTreeMap<String, (NamedTempFile, Digest)>, UpgradeError> {
        let broken = |source| UpgradeError::Archive {
            what: self.what.clone(),
            source,
        };
        let bounded =
            flate2::read::MultiGzDecoder::new(io::BufReader::new(archive)).take(MAX_UNPACKED);
        let mut tar = tar::Archive::new(bounded);
        let mut programs = BTreeMap::new();
        for entry in tar.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let name = program_name(&entry.path().map_err(broken)?);
            let header = entry.header();
            let is_program =
                header.entry_type().is_file() && header.mode().map_err(broken)? & 0o111 != 0;
            // Licences and the like are in it, too.
            let (Some(name), true) = (name, is_program) else {
                continue;
            };
            if self.cancel.is_cancelled() {
                return Err(broken(io::ErrorKind::Interrupted.into()));
            }
            if programs.len() == MAX_PROGRAMS {
                return Err(broken(io::ErrorKind::FileTooLarge.into()));
            }
            let mut file = self.unfinished(folder)?;
            let digest =
                copy(&mut entry, file.as_file_mut()).map_err(self.failed("write to", folder))?;
            programs.insert(name, (file, digest));
        }
        if programs.is_empty() {
            return Err(broken(io::ErrorKind::InvalidData.into()));
        }
        Ok(programs)
    }

    fn fetch(&self, to: &mut File, limit: u64) -> Result<(), UpgradeError> {
        let wanted = Wanted {
            url: &self.entry.url,
            digest: &self.entry.digest,
            limit,
        };
        fetch(&wanted, to, self.cancel).map_err(|source| UpgradeError::Fetch {
            what: self.what.clone(),
            source,
        })
    }

    /// Makes the folder, and removes what a killed upgrade left in it. Whoever upgrades holds the lock.
    fn prepare(&self, folder: &Path) -> Result<(), UpgradeError> {
        fs::create_dir_all(folder).map_err(self.failed("make the folder", folder))?;
        let entries = fs::read_dir(folder).map_err(self.failed("list", folder))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.starts_with(UNFINISHED)) {
                // The script unpacks in a folder.
                let removed = match path.is_dir() {
                    true => fs::remove_dir_all(&path),
                    false => fs::remove_file(&path),
                };
                removed.map_err(self.failed("remove", &path))?;
            }
        }
        Ok(())
    }

    fn unfinished(&self, folder: &Path) -> Result<NamedTempFile, UpgradeError> {
        let made = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempfile_in(folder);
        made.map_err(self.failed("write to", folder))
    }

    /// The digest of the file `path`, if there is one.
    fn there(&self, path: &Path) -> Result<Option<Digest>, UpgradeError> {
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => {
                let digest = file.and_then(|mut file| copy(&mut file, &mut io::sink()));
                digest.map(Some).map_err(self.failed("read", path))
            }
        }
    }

    fn publish(&self, file: NamedTempFile, path: &Path, mode: u32) -> Result<(), UpgradeError> {
        file.as_file()
            .set_permissions(fs::Permissions::from_mode(mode))
            .map_err(self.failed("write", path))?;
        // On a failure below, what is there goes with `file`.
        atomic::publish(file.path(), path).map_err(self.failed("write", path))?;
        // It has its final name, and is no longer ours to remove.
        let _ = file.into_temp_path().keep();
        Ok(())
    }

    fn save(&self, installed: &Installed) -> Result<(), UpgradeError> {
        let folder = self.record.parent().unwrap_or(Path::new("/"));
        let text = serde_json::to_vec_pretty(installed).map_err(io::Error::from);
        fs::create_dir_all(folder)
            .and(text)
            .and_then(|text| atomic::write(self.record, &text, Durability::Full))
            .map_err(self.failed("write", self.record))
    }

    fn failed(&self, action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UpgradeError {
        let (what, path) = (self.what.clone(), path.to_owned());
        move |source| UpgradeError::File {
            what,
            action,
            path,
            source,
        }
    }
}

impl Installed {
    /// What the record says. One that cannot be read says that all files are the user's.
    fn read(path: &Path) -> Self {
        let text = fs::read(path).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn is_ours(&self, path: &Path, there: &Digest) -> bool {
        self.files
            .get(path)
            .is_some_and(|ours| ours.contains(there))
    }

    fn add(&mut self, path: &Path, digest: Digest) {
        self.files
            .entry(path.to_owned())
            .or_default()
            .insert(digest);
    }

    /// Whether all programs of this archive are in the folder, the user's own among them.
    fn has_all(&self, folder: &Path, archive: &Digest) -> bool {
        self.archives.get(folder).is_some_and(|unpacked| {
            let mut programs = unpacked.programs.iter();
            unpacked.archive == *archive && programs.all(|name| folder.join(name).is_file())
        })
    }
}

/// The name of a program that lies in the archive's own folder.
fn program_name(path: &Path) -> Option<String> {
    let mut parts = path.components().filter(|part| *part != Component::CurDir);
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) => Some(name.to_str()?.to_owned()),
        _ => None,
    }
}

/// Copies all of `from`, and says what it was.
fn copy(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
            return Ok(Digest::finish(hasher));
        };
        hasher.update(bytes);
        to.write_all(bytes)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_lies_in_the_archives_own_folder_and_nowhere_else() {
        for (path, expected) in [
            ("./bridge", Some("bridge")),
            ("host-local", Some("host-local")),
            ("a/bridge", None),
            ("../bridge", None),
            ("/bridge", None),
            (".", None),
        ] {
            assert_eq!(program_name(Path::new(path)).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_file_is_ours_as_long_as_it_is_one_that_was_put_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bridge");
        let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
        let mut installed = Installed::default();
        assert!(!installed.is_ours(&path, &old));
        installed.add(&path, old);
        installed.add(&path, new);
        assert!(installed.is_ours(&path, &old) && installed.is_ours(&path, &new));
        assert!(!installed.is_ours(&path, &Digest::of(b"a user's")));

        let record = dir.path().join("installed.json");
        fs::write(&record, serde_json::to_vec(&installed).unwrap()).unwrap();
        assert!(Installed::read(&record).is_ours(&path, &new));
        fs::write(&record, "{").unwrap();
        assert!(!Installed::read(&record).is_ours(&path, &new));
    }
}
