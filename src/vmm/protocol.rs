//! Messages between a command and a VM process.
//!
//! ```text
//! control.sock   command ──Request──▶ process,  process ──Response──▶ command
//!                each: length, 4 bytes big-endian │ JSON of that length
//! stdout pipe    process ──Report──▶ its parent, once: one line of JSON
//! ```

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// No message is longer; an engine's description of a VM takes some 20 KiB.
const MAX_MESSAGE: u32 = 1 << 20;

/// What a command wants of a VM process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Describe the running VM in the engine's words.
    Info,
    /// Ask the guest to power off.
    PressPowerButton,
    /// End the VM without asking the guest.
    PowerOff,
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
        send(&mut stream, &Request::Info).unwrap();
        let mut stream = stream.as_slice();
        assert_eq!(
            receive(&mut stream).unwrap(),
            Some(Request::PressPowerButton)
        );
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
