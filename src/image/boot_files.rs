//! The kernel and the initrd of a layer, copied out while its tar passes by.
//!
//! Rule (the contract of published VM images): a regular file in `boot/` or in the root whose name
//! begins with `vmlinuz` or `initrd.img` and does not end in `.old`. Links do not count: Debian's
//! `/vmlinuz` is one. Of several, the last in the archive stays.
//!
//! Invariant: a file that was made here and not kept is gone when its value is dropped.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What a VM boots with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootFile {
    /// The kernel.
    Kernel,
    /// The initial RAM disk.
    Initrd,
}

impl BootFile {
    /// What a regular file at this path (its components) is.
    pub fn of(path: &[&[u8]]) -> Option<Self> {
        let name = match path {
            [name] => name,
            [folder, name] if *folder == b"boot" => name,
            _ => return None,
        };
        if name.ends_with(b".old") {
            None
        } else if name.starts_with(b"vmlinuz") {
            Some(Self::Kernel)
        } else if name.starts_with(b"initrd.img") {
            Some(Self::Initrd)
        } else {
            None
        }
    }
}

/// A file that did not exist before, and does not afterwards unless it is [kept](NewFile::keep).
#[derive(Debug)]
pub struct NewFile {
    path: PathBuf,
    file: File,
    is_kept: bool,
}

impl NewFile {
    /// Creates the file.
    ///
    /// # Errors
    /// It exists, or cannot be created.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(path)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            is_kept: false,
        })
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Syncs the file. It stays, once the returned value is told so.
    ///
    /// # Errors
    /// The file cannot be synced.
    pub fn sync(self) -> io::Result<SyncedFile> {
        self.file.sync_all()?;
        Ok(SyncedFile(self))
    }
}

/// A [`NewFile`] that is on disk, and still goes unless it is kept.
#[derive(Debug)]
pub struct SyncedFile(NewFile);

impl SyncedFile {
    /// Lets the file stay.
    pub fn keep(mut self) {
        self.0.is_kept = true;
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_kept {
            // Nothing can be done about a failure here; garbage collection removes what is left.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_and_initrds_are_told_by_name_and_folder() {
        let table: [(&[&[u8]], Option<BootFile>); 10] = [
            (&[b"boot", b"vmlinuz-6.1.0-1-amd64"], Some(BootFile::Kernel)),
            (&[b"vmlinuz"], Some(BootFile::Kernel)),
            (&[b"boot", b"initrd.img-6.1"], Some(BootFile::Initrd)),
            (&[b"initrd.img"], Some(BootFile::Initrd)),
            (&[b"boot", b"vmlinuz.old"], None),
            (&[b"boot", b"initrd"], None),
            (&[b"usr", b"vmlinuz"], None),
            (&[b"boot", b"efi", b"vmlinuz"], None),
            (&[b"boot"], None),
            (&[], None),
        ];
        for (path, expected) in table {
            assert_eq!(BootFile::of(path), expected, "{path:?}");
        }
    }

    #[test]
    fn a_file_that_is_not_kept_is_removed_and_one_that_exists_is_never_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        drop(NewFile::create(&path).unwrap());
        assert!(!path.exists());
        drop(NewFile::create(&path).unwrap().sync().unwrap());
        assert!(!path.exists());
        NewFile::create(&path).unwrap().sync().unwrap().keep();
        assert!(NewFile::create(&path).is_err());
        assert!(path.exists());
    }
}
