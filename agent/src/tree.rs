//! Files and folders on their way through a connection, in either direction.
//!
//! ```text
//!   Folder "a" ── File "b" ── Data* ── Close ── Link "c" -> target ── Close ── End
//!   └ opens      └ opens               └ of b                         └ of a
//! ```
//! [`send`] reads a tree, [`Receiver`] writes one. The header of a frame is a [`Piece`], its body a name
//! or data.
//!
//! Invariants: a name is one component, neither empty nor `.` nor `..`, and is opened below the
//! descriptor of the folder that was opened last, never through a link: so no sender, whatever it sends,
//! reaches a place outside of the destination. Folders are no deeper than [`DEPTH_MAX`]. Owners do not
//! travel: what is made belongs to who makes it.

mod receive;
mod send;

pub use receive::{Destination, Receiver};
pub use send::send;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::frame::FrameError;
use crate::protocol::{Copied, Failure};

/// Deepest nesting of folders: each costs either side a descriptor, of which a process has 1024.
pub const DEPTH_MAX: usize = 200;

/// The header of a frame of a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Piece {
    /// Opens a folder; the body is its name.
    Folder(Meta),
    /// Opens a file; the body is its name.
    File(Meta),
    /// Makes a symbolic link; the body is its name, a NUL, and where it points.
    Link(Meta),
    /// The body goes to the end of the open file.
    Data,
    /// Closes what was opened last.
    Close,
    /// All was sent.
    End(Copied),
    /// The sender cannot go on.
    Failed(Failure),
}

/// What a file or folder has besides its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Permission bits with setuid, setgid and sticky: 0o7777 at most.
    pub mode: u32,
    /// When the content last changed: seconds since 1970.
    pub mtime: i64,
    /// And nanoseconds.
    #[serde(default)]
    pub mtime_ns: u32,
}

/// A tree that cannot be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The system refused an operation.
    #[error("cannot {operation} {path:?}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The destination is a folder where a file is needed, or the other way round.
    #[error("{path:?} {problem}")]
    Destination {
        /// The destination.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A name that is no single component, or no name at all.
    #[error("{0:?} is no name for a file")]
    Name(OsString),
    /// A piece came where it makes no sense.
    #[error("the other side sent the pieces of a file in an order that makes no sense")]
    Order,
    /// Folders in folders in folders.
    #[error("{0:?} is nested deeper than {DEPTH_MAX} folders")]
    TooDeep(PathBuf),
    /// The sender gave up.
    #[error("the other side failed: {}", .0.sentence())]
    Sender(Failure),
    /// The connection failed, or what came through it makes no sense.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl TreeError {
    fn io(operation: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            operation,
            path: path.into(),
            source: source.into(),
        }
    }
}

#[cfg(test)]
mod tests;
