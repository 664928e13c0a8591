//! Writing a tree of which the pieces come from somebody who need not be trusted.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::{DEPTH_MAX, Meta, Piece, TreeError};
use crate::frame::{self, Frame, FrameError};
use crate::protocol::Copied;

/// Where a tree goes, as `cp` and `docker cp` understand it.
///
/// | `path` is | a file goes to | a folder goes to |
/// |---|---|---|
/// | a folder | `path/name` | `path/name`; without `name`, its content to `path` |
/// | a file | `path`, replaced | refused |
/// | not there | `path`, unless that ends in a slash | `path` |
#[derive(Clone, Debug)]
pub struct Destination {
    /// The place; links in it are followed.
    pub path: PathBuf,
    /// The name to take within a folder.
    pub name: Option<OsString>,
    /// The mode bits that are taken over: not those for setuid, where the sender is a guest.
    pub mode_mask: u32,
}

/// Takes the pieces of one tree.
#[derive(Debug)]
pub struct Receiver {
    destination: Destination,
    /// The folders that are open, outermost first. Empty before the first piece.
    folders: Vec<Open>,
    file: Option<Open>,
    /// The destination's own entry was seen.
    began: bool,
    copied: Copied,
}

/// A folder or file that is being written.
#[derive(Debug)]
struct Open {
    fd: OwnedFd,
    path: PathBuf,
    /// What to give it in the end; nothing if it was there before.
    meta: Option<Meta>,
}

/// The place of an entry: an open folder and a name in it.
struct Place {
    folder: OwnedFd,
    name: OsString,
    path: PathBuf,
}

impl Receiver {
    /// Nothing is touched before the first piece.
    pub fn new(destination: Destination) -> Self {
        Self {
            destination,
            folders: Vec::new(),
            file: None,
            began: false,
            copied: Copied::default(),
        }
    }

    /// Takes pieces until the end.
    ///
    /// # Errors
    /// The connection ended or failed, a piece makes no sense, or something cannot be written. What was
    /// written stays.
    pub fn run(mut self, from: &mut impl Read) -> Result<Copied, TreeError> {
        loop {
            let frame = frame::read(from)?.ok_or(FrameError::Cut)?;
            if let Some(copied) = self.take(&frame)? {
                return Ok(copied);
            }
        }
    }

    /// Takes one piece; the last one returns what was made.
    ///
    /// # Errors
    /// As [`Receiver::run`].
    pub fn take(&mut self, frame: &Frame) -> Result<Option<Copied>, TreeError> {
        match frame.header()? {
            Piece::Folder(meta) => self.open_folder(&frame.body, meta)?,
            Piece::File(meta) => self.open_file(&frame.body, meta)?,
            Piece::Link(meta) => self.make_link(&frame.body, meta)?,
            Piece::Data => self.write(&frame.body)?,
            Piece::Close => self.close()?,
            Piece::End(sent) if self.began && self.file.is_none() && self.folders.is_empty() => {
                self.copied.skipped = sent.skipped;
                return Ok(Some(self.copied));
            }
            Piece::End(_) => return Err(TreeError::Order),
            Piece::Failed(failure) => return Err(TreeError::Sender(failure)),
        }
        Ok(None)
    }

    fn open_folder(&mut self, name: &[u8], meta: Meta) -> Result<(), TreeError> {
        if self.folders.len() == DEPTH_MAX {
            return Err(TreeError::TooDeep(self.destination.path.clone()));
        }
        let Some(place) = self.place(name, true)? else {
            // The content goes into a folder that is there.
            let path = self.destination.path.clone();
            let fd = open_folder(CWD.as_fd(), path.as_os_str(), OFlags::empty())
                .map_err(|error| TreeError::io("open the folder", &path, error))?;
            self.folders.push(Open {
                fd,
                path,
                meta: None,
            });
            return Ok(());
        };
        let made = match rustix::fs::mkdirat(&place.folder, &place.name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(TreeError::io("make the folder", place.path, error)),
        };
        let fd = open_folder(place.folder.as_fd(), &place.name, OFlags::NOFOLLOW)
            .map_err(|error| TreeError::io("write to", &place.path, error))?;
        self.folders.push(Open {
            fd,
            path: place.path,
            meta: made.then_some(meta),
        });
        Ok(())
    }

    fn open_file(&mut self, name: &[u8], meta: Meta) -> Result<(), TreeError> {
        let place = self.place(name, false)?.ok_or(TreeError::Order)?;
        replace(&place)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&place.folder, &place.name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| TreeError::io("make the file", &place.path, error))?;
        self.file = Some(Open {
            fd,
            path: place.path,
            meta: Some(meta),
        });
        Ok(())
    }

    fn make_link(&mut self, body: &[u8], meta: Meta) -> Result<(), TreeError> {
        let end = body
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(TreeError::Order)?;
        let (name, target) = (&body[..end], &body[end + 1..]);
        let place = self.place(name, false)?.ok_or(TreeError::Order)?;
        replace(&place)?;
        rustix::fs::symlinkat(OsStr::from_bytes(target), &place.folder, &place.name)
            .and_then(|()| {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::utimensat(&place.folder, &place.name, &times(meta), flags)
            })
            .map_err(|error| TreeError::io("make the link", &place.path, error))?;
        self.copied.entries += 1;
        Ok(())
    }

    fn write(&mut self, data: &[u8]) -> Result<(), TreeError> {
        let file = self.file.as_ref().ok_or(TreeError::Order)?;
        let mut left = data;
        while !left.is_empty() {
            match rustix::io::write(&file.fd, left) {
                Ok(written) => left = &left[written..],
                Err(Errno::INTR) => {}
                Err(error) => return Err(TreeError::io("write to", &file.path, error)),
            }
        }
        self.copied.bytes += data.len() as u64;
        Ok(())
    }

    fn close(&mut self) -> Result<(), TreeError> {
        let open = self
            .file
            .take()
            .or_else(|| self.folders.pop())
            .ok_or(TreeError::Order)?;
        self.copied.entries += 1;
        let Some(meta) = open.meta else {
            return Ok(());
        };
        let mode = Mode::from_raw_mode(meta.mode & self.destination.mode_mask & 0o7777);
        rustix::fs::fchmod(&open.fd, mode)
            .and_then(|()| rustix::fs::futimens(&open.fd, &times(meta)))
            .map_err(|error| TreeError::io("set mode and time of", open.path, error))
    }

    /// Where the next entry goes; nothing, if it is a folder whose content goes into the destination.
    fn place(&mut self, name: &[u8], is_folder: bool) -> Result<Option<Place>, TreeError> {
        if self.file.is_some() {
            return Err(TreeError::Order);
        }
        if let Some(folder) = self.folders.last() {
            let name = checked(OsStr::from_bytes(name))?.to_owned();
            return Ok(Some(Place {
                path: folder.path.join(&name),
                folder: duplicate(&folder.fd, &folder.path)?,
                name,
            }));
        }
        if self.began {
            return Err(TreeError::Order);
        }
        self.began = true;
        self.top(is_folder)
    }

    /// Where the first entry goes.
    fn top(&self, is_folder: bool) -> Result<Option<Place>, TreeError> {
        let path = &self.destination.path;
        let ends_in_slash = path.as_os_str().as_bytes().ends_with(b"/");
        let wrong = |problem| TreeError::Destination {
            path: path.clone(),
            problem,
        };
        match rustix::fs::stat(path) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                match (&self.destination.name, is_folder) {
                    (Some(name), _) => place_in(path, checked(name)?).map(Some),
                    (None, true) => Ok(None),
                    (None, false) => Err(wrong("is a folder")),
                }
            }
            Ok(_) if is_folder || ends_in_slash => Err(wrong("is no folder")),
            Ok(_) => {
                // A link to a file stays a link: what it points to is replaced.
                let real = std::fs::canonicalize(path)
                    .map_err(|error| TreeError::io("find", path, error))?;
                split(&real).map(Some)
            }
            Err(Errno::NOENT) if !is_folder && ends_in_slash => Err(wrong("is not there")),
            Err(Errno::NOENT) => split(path).map(Some),
            Err(error) => Err(TreeError::io("find", path, error)),
        }
    }
}

fn place_in(folder: &Path, name: &OsStr) -> Result<Place, TreeError> {
    let fd = open_folder(CWD.as_fd(), folder.as_os_str(), OFlags::empty())
        .map_err(|error| TreeError::io("open the folder", folder, error))?;
    Ok(Place {
        folder: fd,
        name: name.to_owned(),
        path: folder.join(name),
    })
}

/// The folder and the name of a path.
fn split(path: &Path) -> Result<Place, TreeError> {
    let name = path
        .file_name()
        .ok_or_else(|| TreeError::Name(path.into()))?;
    let folder = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    };
    place_in(folder, name)
}

fn open_folder(at: impl AsFd, path: &OsStr, more: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | more;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

/// Removes a file that is in the way; a folder stays, and makes what comes next fail.
fn replace(place: &Place) -> Result<(), TreeError> {
    match rustix::fs::unlinkat(&place.folder, &place.name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(TreeError::io("replace", &place.path, error)),
    }
}

/// A name that stays in its folder.
fn checked(name: &OsStr) -> Result<&OsStr, TreeError> {
    let bytes = name.as_bytes();
    let is_dots = matches!(bytes, b"" | b"." | b"..");
    match is_dots || bytes.contains(&b'/') || bytes.contains(&0) {
        true => Err(TreeError::Name(OsString::from_vec(bytes.to_vec()))),
        false => Ok(name),
    }
}

fn duplicate(fd: &OwnedFd, path: &Path) -> Result<OwnedFd, TreeError> {
    fd.try_clone()
        .map_err(|error| TreeError::io("open the folder", path, error))
}

/// Not the time of last access, which is now.
fn times(meta: Meta) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: meta.mtime,
            tv_nsec: i64::from(meta.mtime_ns % 1_000_000_000),
        },
    }
}
