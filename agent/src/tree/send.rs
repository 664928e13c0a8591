//! Reading a tree, and sending it piece by piece.

use std::ffi::{CStr, OsStr};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};

use super::{DEPTH_MAX, Meta, Piece, TreeError};
use crate::frame::{self, BODY_MAX};
use crate::protocol::Copied;

/// Sends the file or folder `path` with all that is in it, and the end. Links are sent as links.
///
/// # Errors
/// Something cannot be read, which is said by `Piece::Failed` only by the caller, or the connection
/// failed.
pub fn send(path: &Path, to: &mut impl Write) -> Result<Copied, TreeError> {
    let mut sender = Sender {
        to,
        path: path.to_owned(),
        copied: Copied::default(),
        buffer: vec![0; BODY_MAX],
        depth: 0,
    };
    let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| TreeError::io("find", path, error))?;
    if !sender.is_copied(&stat) {
        return Err(TreeError::Destination {
            path: path.to_owned(),
            problem: "is a device, a pipe or a socket",
        });
    }
    sender.entry(CWD.as_fd(), path.as_os_str(), &stat)?;
    frame::write(sender.to, &Piece::End(sender.copied), b"")?;
    Ok(sender.copied)
}

struct Sender<'a, W> {
    to: &'a mut W,
    /// Where the sender is, for errors.
    path: PathBuf,
    copied: Copied,
    buffer: Vec<u8>,
    depth: usize,
}

impl<W: Write> Sender<'_, W> {
    fn failed(&self, operation: &'static str, source: impl Into<io::Error>) -> TreeError {
        TreeError::io(operation, &self.path, source)
    }

    fn is_copied(&self, stat: &Stat) -> bool {
        matches!(
            FileType::from_raw_mode(stat.st_mode),
            FileType::Directory | FileType::RegularFile | FileType::Symlink
        )
    }

    /// Sends the entry `at` of `folder`; `self.path` is its path.
    fn entry(&mut self, folder: impl AsFd, at: &OsStr, stat: &Stat) -> Result<(), TreeError> {
        let meta = meta(stat);
        // Only the names below the top are obeyed; the top's is for its receiver to choose.
        let name = match self.depth {
            0 => self.path.file_name().unwrap_or(OsStr::new("root")),
            _ => at,
        };
        let name = name.as_bytes().to_vec();
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let own = self.open(&folder, at, OFlags::DIRECTORY)?;
                frame::write(self.to, &Piece::Folder(meta), &name)?;
                self.content(own)?;
                frame::write(self.to, &Piece::Close, b"")?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&folder, at, Vec::new())
                    .map_err(|error| self.failed("read the link", error))?;
                let body = [name.as_slice(), b"\0", target.as_bytes()].concat();
                frame::write(self.to, &Piece::Link(meta), &body)?;
            }
            _ => {
                let own = self.open(&folder, at, OFlags::empty())?;
                frame::write(self.to, &Piece::File(meta), &name)?;
                self.data(&own)?;
                frame::write(self.to, &Piece::Close, b"")?;
            }
        }
        self.copied.entries += 1;
        Ok(())
    }

    /// A path may change between the look and the opening; so no link is followed, and nothing waits.
    fn open(&self, folder: impl AsFd, at: &OsStr, kind: OFlags) -> Result<OwnedFd, TreeError> {
        let flags = kind
            | OFlags::RDONLY
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::NOCTTY
            | OFlags::CLOEXEC;
        rustix::fs::openat(folder, at, flags, Mode::empty())
            .map_err(|error| self.failed("open", error))
    }

    fn content(&mut self, folder: OwnedFd) -> Result<(), TreeError> {
        if self.depth == DEPTH_MAX {
            return Err(TreeError::TooDeep(self.path.clone()));
        }
        self.depth += 1;
        let mut names = Vec::new();
        let entries = Dir::read_from(&folder).map_err(|error| self.failed("read", error))?;
        for entry in entries {
            let entry = entry.map_err(|error| self.failed("read", error))?;
            if !is_dots(entry.file_name()) {
                names.push(entry.file_name().to_owned());
            }
        }
        // The same tree is the same pieces.
        names.sort();
        for name in names {
            let name = OsStr::from_bytes(name.as_bytes());
            self.path.push(name);
            match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if self.is_copied(&stat) => self.entry(&folder, name, &stat)?,
                Ok(_) => self.copied.skipped += 1,
                // It was removed meanwhile.
                Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(self.failed("find", error)),
            }
            self.path.pop();
        }
        self.depth -= 1;
        Ok(())
    }

    fn data(&mut self, file: &OwnedFd) -> Result<(), TreeError> {
        loop {
            match rustix::io::read(file, self.buffer.as_mut_slice()) {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    frame::write(self.to, &Piece::Data, &self.buffer[..read])?;
                    self.copied.bytes += read as u64;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(self.failed("read", error)),
            }
        }
    }
}

fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

fn meta(stat: &Stat) -> Meta {
    Meta {
        mode: stat.st_mode & 0o7777,
        mtime: stat.st_mtime,
        mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    }
}
