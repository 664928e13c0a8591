//! Messages between a command and a VM process.
//!
//! ```text
//! control.sock   command ──Request──▶ process,  process ──Response──▶ command
//!                each: length, 4 bytes big-endian │ JSON of that length
//! stdout pipe    process ──Report──▶ its parent, once: one line of JSON
//! ```

use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::sys::reflink::Way;

/// No message is longer; an engine's description of a VM takes some 20 KiB.
const MAX_MESSAGE: u32 = 1 << 20;

/// What a command wants of a VM process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Describe the running VM in the engine's words, and say as `restored_memory` how it got its own,
    /// if it was restored.
    Info,
    /// Ask the guest to power off.
    PressPowerButton,
    /// End the VM without asking the guest.
    PowerOff,
    /// Halt the guest until it is resumed. It may be halted already.
    Pause,
    /// Let a halted guest go on. It may be running already.
    Resume,
    /// Halt the guest, write down what it is, and let it go on, unless it was halted before. Given up,
    /// and the guest let go on, when the command that asks goes away. The answer holds a [`Saved`].
    Save {
        /// An empty folder for memory and state.
        into: PathBuf,
        /// A lock file to share while anything is written.
        lock: PathBuf,
        /// What else is to be copied while the guest is halted.
        disks: Vec<DiskCopy>,
    },
}

/// A file, and where its copy goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCopy {
    /// A disk of the VM.
    pub from: PathBuf,
    /// A file that does not exist.
    pub to: PathBuf,
}

/// How a [`Request::Save`] went. Times are in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// How long the guest stood still; nothing for one that was paused before.
    pub halted_us: Option<u64>,
    /// How long memory and state took.
    pub memory_us: u64,
    /// How long the disks took.
    pub disks_us: u64,
    /// How the disks were copied, the slowest way of them; nothing where there was none.
    pub disks: Option<Way>,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// It is done.
    Done(serde_json::Value),
    /// It is not done, and why.
    Failed(String),
}

/// How a VM process's start went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// The guest's processors run, and the sockets are there.
    Ready,
    /// The VM does not run, and why: the chain of errors, outermost first.
    Failed(Vec<String>),
}

/// Writes one message.
///
/// # Errors
/// The message is too long, or the stream fails.
pub fn send(stream: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|length| *length <= MAX_MESSAGE);
    let length = length
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the message is too long"))?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend(body);
    stream.write_all(&frame)
}

/// Reads one message; `None` when the stream ends before one begins.
///
/// # Errors
/// The message is too long or not of the form expected, or the stream fails or ends in its middle.
pub fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    let begun = stream.read(&mut length)?;
    if begun == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[begun..])?;
    let length = u32::from_be_bytes(length);
    if length > MAX_MESSAGE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the message is too long",
        ));
    }
    let mut body = Vec::new();
    stream.take(u64::from(length)).read_to_end(&mut body)?;
    if body.len() as u64 != u64::from(length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(serde_json::from_slice(&body)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip() {
        let mut stream = Vec::new();
        send(&mut stream, &Request::PressPowerButton).unwrap();
        let save = Request::Save {
            into: "/snapshot/vm".into(),
            lock: "/lock".into(),
            disks: vec![DiskCopy {
                from: "/cow.raw".into(),
                to: "/snapshot/disks/cow.raw".into(),
            }],
        };
        send(&mut stream, &save).unwrap();
        send(&mut stream, &Request::Info).unwrap();
        let mut stream = stream.as_slice();
        assert_eq!(
            receive(&mut stream).unwrap(),
            Some(Request::PressPowerButton)
        );
        assert_eq!(receive(&mut stream).unwrap(), Some(save));
        assert_eq!(receive(&mut stream).unwrap(), Some(Request::Info));
        assert_eq!(receive::<Request>(&mut stream).unwrap(), None);
    }

    #[test]
    fn broken_messages_are_refused() {
        for bytes in [
            &b"\xff\xff\xff\xff"[..],
            b"\x00\x00\x00\x04{}",
            b"\x00\x00",
            b"\x00\x00\x00\x02{}",
        ] {
            assert!(receive::<Request>(&mut &bytes[..]).is_err(), "{bytes:?}");
        }
    }
}
