//! The VM's own disk, a sparse file.
//!
//! ```text
//! of layers          an empty ext4, which becomes the upper layer in the guest
//! of a disk image    what the image has, and room behind it
//! ```
//! A disk that began as an image is a copy of it and no qcow2 overlay on it, though that would be made sooner
//! and smaller: Cloud Hypervisor keeps tables of an overlay in memory, and writes them when the guest flushes
//! its disk, not when it is paused (v53, `QcowMetadata`). A snapshot of it would lack what the guest has
//! written since, and nobody would notice before the clone does. Nor can an overlay grow while it is in use.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use super::{Error, Host};
use crate::disk::{self, MakeError};
use crate::sys::interrupt::Interrupt;
use crate::units::ByteSize;
use crate::vm::VmConfig;
use crate::vm::config::Root;

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

/// Makes the disk of a VM of `config` at `path`.
///
/// # Errors
/// It cannot be made; a file that was made stays for the caller to remove with its folder.
pub(super) fn make(
    host: &Host,
    path: &Path,
    config: &VmConfig,
    interrupt: &Interrupt,
) -> Result<(), Error> {
    let Root::Disk(root) = &config.root else {
        return format(path, config.storage);
    };
    let (base, size) = (host.layout.disk_image(&root.base), config.storage.bytes());
    let made = disk::flatten(&base, path, size, &|_| !interrupt.is_raised());
    made.map_err(|error| match error {
        MakeError::Cancelled => Error::Interrupted,
        error => Error::Disk(error),
    })
}

/// Makes the disk at `path`, with an empty file system.
///
/// # Errors
/// The file cannot be made, or `mkfs.ext4` is missing or fails.
fn format(path: &Path, size: ByteSize) -> Result<(), Error> {
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
