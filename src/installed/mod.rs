//! The operating system that is installed on a disk: what its boot loader would boot, for a boot without
//! firmware and without the loader.
//!
//! ```text
//! disk ─ partitions ─▶ ext4s ─▶ root: /etc, os-release      ─▶ places: /boot of a root, or of its own
//!         GPT, MBR      │        /boot: grub.cfg, entries,          │ grub.cfg, entries, newest kernel
//!                       │               kernels                     ▼
//!                       └─ others are named: content      title, kernel, initrds, command line
//! ```
//! Nothing is mounted, and nothing is written: what GRUB would note for the next start, as that an entry
//! was to be booted once, stays.
//!
//! Invariants: a disk is its guest's, so whatever stands on it, this ends, in bounded memory; what it names
//! is on it; what it says can be printed.

use std::fmt;
use std::io::{self, Write};
use std::rc::Rc;

use ext4_view::Ext4Error;

pub use self::ext4::Ext4Trouble;
use self::ext4::{CopyError, Volume};
pub use self::grub::GrubError;
pub use self::partitions::TableError;
use self::survey::Survey;
use crate::disk::ReadAt;
use crate::units::ByteSize;

mod bls;
mod cmdline;
mod content;
mod ext4;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod grub;
mod partitions;
mod place;
mod survey;
mod version;

/// Largest kernel. Debian's has 8 MiB, one with everything built in 60.
pub const MAX_KERNEL: ByteSize = ByteSize::from_mib(256);

/// Largest initrd, all parts together. Ubuntu's has 70 MiB, one with firmware for every graphics card 500.
pub const MAX_INITRD: ByteSize = ByteSize::from_mib(1024);

/// Bytes of one file of a boot loader's configuration; a grub.cfg for 50 kernels has 100 KiB.
const MAX_CONFIG: u64 = 1 << 20;

/// Initrds of one kernel: microcode, the system's, and some of an administrator's.
const MAX_INITRDS: usize = 32;

/// What a kernel takes between two initrds (Documentation/driver-api/early-userspace/buffer-format.rst).
const INITRD_ALIGN: u64 = 4;

/// Characters of a title.
const MAX_TITLE: usize = 200;

/// A system that can be booted.
#[derive(Debug)]
pub struct Installed {
    /// What the loader's menu calls it.
    pub title: String,
    /// Its kernel.
    pub kernel: PathInImage,
    /// Its initrds, which the kernel gets one after the other.
    pub initrd: Vec<PathInImage>,
    /// Its kernel command line, with `vm::spec::CONSOLE_TOKEN` where the engine names its console.
    pub cmdline: String,
}

/// A file on a disk.
#[derive(Debug)]
pub struct PathInImage {
    /// The partition's number; none where the disk has no partitions.
    pub partition: Option<u32>,
    /// From the root of the partition's file system on, without links.
    pub path: String,
    /// Bytes.
    pub size: u64,
    volume: Rc<Volume>,
}

/// Why a disk cannot be booted without firmware.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum InstalledError {
    /// The partition table is of no use.
    #[error("cannot use the disk's partition table")]
    Table(#[source] TableError),
    /// There is nothing to boot, or it is on a file system that cocoon does not read.
    #[error("the disk has no partition with an operating system (found: {found})")]
    NoSystem { found: String },
    /// It may be booted in another way, as by a kernel within a file for UEFI.
    #[error("{system:?} is on the disk, without a kernel in its /boot")]
    NoKernel { system: String },
    /// There is nothing to boot but perhaps here.
    #[error("cannot read the ext4 file system of {partition}")]
    Unreadable {
        partition: String,
        #[source]
        source: Ext4Trouble,
    },
    /// Damage within a file system.
    #[error("cannot read {path} of {partition}")]
    Read {
        path: String,
        partition: String,
        #[source]
        source: Ext4Error,
    },
    /// A configuration that is not GRUB's language, as far as that is known here.
    #[error("cannot follow the boot loader's {path}")]
    Script {
        path: String,
        #[source]
        source: GrubError,
    },
    /// The menu's default is something else.
    #[error("the boot loader would start {title:?}, which boots no Linux kernel")]
    NoLinux { title: String },
    /// The configuration is older or newer than the kernels.
    #[error("{title:?} boots {path}, which is not on the disk")]
    Missing { title: String, path: String },
    /// No real one is so large.
    #[error("{path} has more than {limit}")]
    TooLarge { path: String, limit: ByteSize },
    /// No real one has so many.
    #[error("{title:?} has more than {MAX_INITRDS} initrds")]
    TooManyInitrds { title: String },
    /// No `root=`, and no root file system was found.
    #[error(
        "{title:?} does not say where its root file system is, and the disk has none that cocoon reads"
    )]
    NoRoot { title: String },
    /// The kernel would cut it.
    #[error(
        "the kernel command line of {title:?} has more than {} bytes",
        cmdline::MAX_LINE
    )]
    LongCmdline { title: String },
    /// It may be made to deceive whoever reads it.
    #[error("the kernel command line of {title:?} has a control character in it")]
    ControlCharacter { title: String },
    /// Not the disk's fault.
    #[error("cannot write what {path} holds")]
    Copy {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// What boots from `disk` when nobody chooses.
///
/// # Errors
/// Nothing does, or nothing that can be booted from here; the message says what was found.
pub fn find(disk: &Rc<dyn ReadAt>) -> Result<Installed, InstalledError> {
    let disk = Survey::read(disk)?;
    let mut first_error = None;
    for place in disk.places() {
        let installed = match place.choose() {
            Ok(Some(boot)) => disk.installed(&place, boot),
            Ok(None) => continue,
            Err(error) => Err(error),
        };
        match installed {
            Ok(installed) => return Ok(installed),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.unwrap_or_else(|| disk.nothing()))
}

impl Installed {
    /// Writes the kernel to `into`, and gives its size in bytes.
    ///
    /// # Errors
    /// The disk is damaged there, or the kernel larger than [`MAX_KERNEL`]; `into` refuses it.
    pub fn copy_kernel(&self, into: &mut dyn Write) -> Result<u64, InstalledError> {
        self.kernel.copy(MAX_KERNEL.bytes(), into)
    }

    /// Writes the initrds to `into` one after the other, as GRUB puts them into memory, and gives their
    /// size in bytes; 0 if there is none.
    ///
    /// # Errors
    /// The disk is damaged there, or they are larger than [`MAX_INITRD`]; `into` refuses them.
    pub fn copy_initrd(&self, into: &mut dyn Write) -> Result<u64, InstalledError> {
        let mut copied = 0_u64;
        for (index, part) in self.initrd.iter().enumerate() {
            if index > 0 {
                let filled = copied.next_multiple_of(INITRD_ALIGN);
                let zeros = [0; 3]
                    .into_iter()
                    .take(usize::try_from(filled - copied).unwrap_or(0));
                let zeros: Vec<u8> = zeros.collect();
                into.write_all(&zeros)
                    .map_err(|source| part.unwritten(source))?;
                copied = filled;
            }
            copied += part.copy(MAX_INITRD.bytes().saturating_sub(copied), into)?;
        }
        Ok(copied)
    }
}

impl PathInImage {
    fn new(path: String, size: u64, volume: Rc<Volume>) -> Self {
        Self {
            partition: volume.partition.number,
            path,
            size,
            volume,
        }
    }

    fn copy(&self, limit: u64, into: &mut dyn Write) -> Result<u64, InstalledError> {
        let copied = self.volume.copy(&self.path, limit, into);
        copied.map_err(|error| match error {
            CopyError::TooLarge => InstalledError::TooLarge {
                path: self.path.clone(),
                limit: ByteSize::from_bytes(limit),
            },
            CopyError::Write(source) => self.unwritten(source),
            CopyError::Read(source) => InstalledError::Read {
                path: self.path.clone(),
                partition: name_of(self.partition),
                source,
            },
        })
    }

    fn unwritten(&self, source: io::Error) -> InstalledError {
        InstalledError::Copy {
            path: self.path.clone(),
            source,
        }
    }
}

impl fmt::Display for PathInImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.path, name_of(self.partition))
    }
}

/// How a partition is called in messages.
fn name_of(number: Option<u32>) -> String {
    match number {
        Some(number) => format!("partition {number}"),
        None => "the disk".to_owned(),
    }
}

/// What a disk says, without what a terminal would obey.
fn printable(text: &str) -> String {
    let characters = text.chars().filter(|it| !it.is_control());
    characters.take(MAX_TITLE).collect()
}

#[cfg(test)]
mod tests;
