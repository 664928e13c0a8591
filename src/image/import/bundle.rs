//! A folder or a tar, out of which members are read by name.
//!
//! Invariant: nothing outside of it is read, whatever names and links say. In a folder the kernel sees
//! to that (`openat2(2)`, `RESOLVE_BENEATH`), in a tar the members are all there is.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::error::{MemberRefusal, Reason};
use super::sorting::Members;
use super::{docker, oci};
use crate::image::layer::EntryName;
use crate::image::manifest::{MAX_DOCUMENT, printable};
use crate::units::Digest;

/// Several files in one place.
#[derive(Debug)]
pub(super) enum Bundle {
    Folder(OwnedFd),
    Tar { file: File, members: Members },
}

/// A member that is being read.
#[derive(Debug)]
pub(super) struct Piece {
    name: String,
    file: File,
    offset: u64,
    left: u64,
}

impl Bundle {
    /// Opens a folder, which must be a bundle.
    pub(super) fn folder(path: &Path) -> Result<Self, Reason> {
        let failed = |source| Reason::Read {
            what: path.display().to_string(),
            source,
        };
        let bundle = Self::Folder(File::open(path).map_err(failed)?.into());
        match bundle.has(oci::LAYOUT)? || bundle.has(docker::MANIFEST)? {
            true => Ok(bundle),
            false => Err(Reason::NoLayout),
        }
    }

    /// A tar with these members.
    pub(super) fn tar(file: File, members: Members) -> Self {
        Self::Tar { file, members }
    }

    /// Whether there is such a member.
    pub(super) fn has(&self, name: &str) -> Result<bool, Reason> {
        Ok(self.find(name)?.is_some())
    }

    /// Opens a member that must be there.
    pub(super) fn open(&self, name: &str) -> Result<Piece, Reason> {
        self.find(name)?.ok_or_else(|| Reason::Lacking {
            name: printable(name),
        })
    }

    fn find(&self, name: &str) -> Result<Option<Piece>, Reason> {
        let failed = |source| Reason::Read {
            what: printable(name),
            source,
        };
        let (file, offset, left) = match self {
            Self::Folder(folder) => {
                let Some(file) = open_beneath(folder, name)? else {
                    return Ok(None);
                };
                let metadata = file.metadata().map_err(failed)?;
                if !metadata.is_file() {
                    return Err(refused(name, MemberRefusal::NoFile));
                }
                (file, 0, metadata.len())
            }
            Self::Tar { file, members } => {
                let Some((offset, size)) = members.find(name)? else {
                    return Ok(None);
                };
                (file.try_clone().map_err(failed)?, offset, size)
            }
        };
        Ok(Some(Piece {
            name: printable(name),
            file,
            offset,
            left,
        }))
    }

    /// Reads a member whole, which must have the digest `expected`, if any.
    pub(super) fn document(
        &self,
        name: &str,
        expected: Option<&Digest>,
    ) -> Result<Vec<u8>, Reason> {
        let mut piece = self.open(name)?;
        if piece.left > MAX_DOCUMENT {
            return Err(Reason::DocumentTooLarge {
                name: piece.name,
                size: piece.left,
                limit: MAX_DOCUMENT,
            });
        }
        // At most 4 MiB.
        let body = piece.next(usize::try_from(piece.left).unwrap_or_default())?;
        match expected {
            Some(expected) if Digest::of(&body) != *expected => Err(Reason::DigestMismatch {
                name: piece.name,
                expected: *expected,
                actual: Digest::of(&body),
            }),
            _ => Ok(body),
        }
    }
}

/// Opens a file beneath a folder, or none if there is nothing of that name. Links may lead to what is
/// beneath the folder, too.
fn open_beneath(folder: &OwnedFd, name: &str) -> Result<Option<File>, Reason> {
    // Without waiting for the writer of a pipe.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match openat2(folder, name, flags, Mode::empty(), within) {
        Ok(file) => Ok(Some(file.into())),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(Errno::XDEV) => Err(refused(name, MemberRefusal::LinkOut)),
        Err(Errno::LOOP) => Err(refused(name, MemberRefusal::LinkLoop)),
        Err(error) => Err(Reason::Read {
            what: printable(name),
            source: error.into(),
        }),
    }
}

fn refused(name: &str, source: MemberRefusal) -> Reason {
    Reason::Member {
        entry: EntryName::new(name.as_bytes()),
        source,
    }
}

impl Piece {
    /// Bytes that are left to read.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Refuses another size than its documents say; nothing may have been read yet.
    pub(super) fn check_size(&self, expected: u64) -> Result<(), Reason> {
        if self.left == expected {
            return Ok(());
        }
        Err(Reason::SizeMismatch {
            name: self.name.clone(),
            expected,
            actual: self.left,
        })
    }

    /// The next bytes: as many as asked for, fewer at the end only.
    pub(super) fn next(&mut self, count: usize) -> Result<Vec<u8>, Reason> {
        let count = usize::try_from(self.left).map_or(count, |left| left.min(count));
        let mut bytes = vec![0; count];
        let read = self.file.read_exact_at(&mut bytes, self.offset);
        read.map_err(|source| Reason::Read {
            what: self.name.clone(),
            source,
        })?;
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(bytes)
    }
}
