//! The VM's own disk: a sparse file with an empty ext4, which becomes the upper layer in the guest.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use super::Error;
use crate::units::ByteSize;

/// No journal replay, no reserved blocks, and tables zeroed when first used: formatting 10 GiB
/// writes some 400 KiB.
pub(super) const MKFS_OPTIONS: [&str; 6] = [
    "-F",
    "-q",
    "-m",
    "0",
    "-E",
    "lazy_itable_init=1,lazy_journal_init=1,discard",
];

/// Makes the disk at `path`.
///
/// # Errors
/// The file cannot be made, or `mkfs.ext4` is missing or fails; a file that was made stays for the
/// caller to remove with its folder.
pub(super) fn make(path: &Path, size: ByteSize) -> Result<(), Error> {
    let failed = |source| Error::File {
        action: "make the disk",
        path: path.to_owned(),
        source,
    };
    let open = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    open.and_then(|file| file.set_len(size.bytes()))
        .map_err(failed)?;
    let output = Command::new("mkfs.ext4")
        .args(MKFS_OPTIONS)
        .arg(path)
        .output()
        .map_err(Error::NoMkfs)?;
    if output.status.success() {
        return Ok(());
    }
    let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Format {
        path: path.to_owned(),
        output,
    })
}

/// Makes the disk at `path` as long as `size`, without filling it; one that is longer stays.
///
/// # Errors
/// The file cannot be made longer.
pub(super) fn grow(path: &Path, size: ByteSize) -> Result<(), Error> {
    let grow = || {
        let file = OpenOptions::new().write(true).open(path)?;
        match file.metadata()?.len() < size.bytes() {
            true => file.set_len(size.bytes()),
            false => Ok(()),
        }
    };
    grow().map_err(|source| Error::File {
        action: "grow the disk",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_grows_and_never_shrinks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("overlay.img");
        let missing = grow(&path, ByteSize::from_mib(1)).unwrap_err().to_string();
        assert!(missing.contains("cannot grow the disk"), "{missing}");
        std::fs::write(&path, "saved").unwrap();
        for (size, length) in [(1, 1), (8, 8), (2, 8)] {
            grow(&path, ByteSize::from_mib(size)).unwrap();
            assert_eq!(path.metadata().unwrap().len(), length << 20);
        }
        assert!(std::fs::read(&path).unwrap().starts_with(b"saved\0"));
    }
}
