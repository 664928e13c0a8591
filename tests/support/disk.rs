//! A small disk of a test's own: a tmpfs, whose size can be changed while it is used.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::statfs;

/// Bytes that a file takes at least, and always a multiple of.
pub(crate) const PAGE: u64 = 4096;

/// What there is of something on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Limit {
    /// Bytes of files.
    Bytes(u64),
    /// Files and folders.
    Inodes(u64),
}

impl Limit {
    /// The same kind of limit, by so much further.
    pub(crate) fn and(self, more: u64) -> Self {
        match self {
            Self::Bytes(bytes) => Self::Bytes(bytes + more),
            Self::Inodes(inodes) => Self::Inodes(inodes + more),
        }
    }
}

/// A disk, for as long as this lives.
pub(crate) struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// One that is large enough for everything; or nothing, and a line that says why.
    #[expect(clippy::print_stdout, reason = "it says why a test did not run")]
    pub(crate) fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let flags = MsFlags::empty();
        if let Err(error) = mount(Some("none"), dir.path(), Some("tmpfs"), flags, None::<&str>) {
            println!("SKIPPED: a tmpfs cannot be mounted here: {error}");
            return None;
        }
        Some(Self { dir })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Changes how much there is of it. What is used stays.
    pub(crate) fn limit(&self, limit: Limit) {
        let option = match limit {
            Limit::Bytes(bytes) => format!("size={bytes}"),
            Limit::Inodes(inodes) => format!("nr_inodes={inodes}"),
        };
        let none = None::<&str>;
        mount(none, self.path(), none, MsFlags::MS_REMOUNT, Some(&*option)).unwrap();
    }

    /// How much of it is used.
    pub(crate) fn used(&self) -> (Limit, Limit) {
        let disk = statfs(self.path()).unwrap();
        let blocks = disk.blocks() - disk.blocks_free();
        let inodes = disk.files() - disk.files_free();
        (Limit::Bytes(blocks * PAGE), Limit::Inodes(inodes))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}
