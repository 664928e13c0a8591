//! The one way to write a file: under a temporary name, synced, then renamed, then its folder synced.
//!
//! Invariant: a file under its final name is complete; of one that a reboot voids, until then. What a crash leaves has a temporary name,
//! which begins with [`TEMP_PREFIX`], and belongs to nobody.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::Durability;
use crate::sys::failpoint;

/// How the names of unfinished files begin.
pub const TEMP_PREFIX: &str = ".tmp-";

/// Writes `content` to `path`, all or nothing, replacing what is there.
///
/// # Errors
/// The file cannot be written, synced or renamed; `path` is then as it was.
pub fn write(path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
    let mut temp = tempfile::Builder::new()
        .prefix(TEMP_PREFIX)
        .tempfile_in(parent(path)?)?;
    temp.write_all(content)?;
    if durability == Durability::Full {
        temp.as_file().sync_all()?;
    }
    failpoint::reach("file: written under a temporary name");
    temp.persist(path).map_err(|error| error.error)?;
    match durability {
        Durability::Full => sync_folder(parent(path)?),
        Durability::UntilReboot => Ok(()),
    }
}

/// Gives the finished file or folder `from` its final name `to`, in the same file system.
///
/// # Errors
/// `from` cannot be synced or renamed.
pub fn publish(from: &Path, to: &Path) -> io::Result<()> {
    File::open(from)?.sync_all()?;
    fs::rename(from, to)?;
    sync_folder(parent(to)?)
}

fn parent(path: &Path) -> io::Result<&Path> {
    path.parent()
        .ok_or_else(|| io::Error::other("a path without a folder cannot be written"))
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_the_whole_file_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, b"first, and long", Durability::Full).unwrap();
        write(&path, b"second", Durability::Full).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::create_dir(&path).unwrap();
        assert!(write(&path, b"x", Durability::Full).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
