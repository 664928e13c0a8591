//! Frames: what a connection between host and agent is made of.
//!
//! ```text
//!  ┌────────────────┬────────────────┬────────────────────┬───────────────┐
//!  │ length, u32 LE │ length, u32 LE │ header, JSON       │ body, bytes   │
//!  │ of the header  │ of the body    │ at most HEADER_MAX │ <= BODY_MAX   │
//!  └────────────────┴────────────────┴────────────────────┴───────────────┘
//! ```
//! Invariants: a length is checked before anything of the frame is kept; a header may have fields
//! that the reader does not know; an end in the middle of a frame is an error, one between two is not.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest header: Linux takes an argument of 128 KiB, and a command may have more than one.
pub const HEADER_MAX: usize = 256 << 10;

/// Longest body: what one read of a pipe gives.
pub const BODY_MAX: usize = 64 << 10;

/// Bytes before the header.
const PRELUDE: usize = 8;

/// A frame that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A length says more than there may be.
    #[error("a frame with {bytes} bytes of {part} is too large")]
    TooLarge {
        /// Header or body.
        part: &'static str,
        /// What it says.
        bytes: usize,
    },
    /// The connection ended within a frame.
    #[error("the connection ended in the middle of a frame")]
    Cut,
    /// The header is no JSON, or not what was expected here.
    #[error("a frame's header makes no sense here")]
    Header(#[source] serde_json::Error),
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
}

/// A frame that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    header: Vec<u8>,
    /// The bytes after the header.
    pub body: Vec<u8>,
}

impl Frame {
    /// The header as a value.
    ///
    /// # Errors
    /// It is something else.
    pub fn header<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        serde_json::from_slice(&self.header).map_err(FrameError::Header)
    }
}

/// The bytes of a frame.
///
/// # Errors
/// Header or body is too large.
pub fn encode(header: &impl Serialize, body: &[u8]) -> Result<Vec<u8>, FrameError> {
    let header = serde_json::to_vec(header).map_err(FrameError::Header)?;
    let mut bytes = Vec::with_capacity(PRELUDE + header.len() + body.len());
    bytes.extend(length("header", header.len(), HEADER_MAX)?.to_le_bytes());
    bytes.extend(length("body", body.len(), BODY_MAX)?.to_le_bytes());
    bytes.extend(header);
    bytes.extend(body);
    Ok(bytes)
}

/// Writes a frame.
///
/// # Errors
/// It is too large, or the connection failed.
pub fn write(to: &mut impl Write, header: &impl Serialize, body: &[u8]) -> Result<(), FrameError> {
    Ok(to.write_all(&encode(header, body)?)?)
}

/// Reads a frame, or nothing where the connection ended before one.
///
/// # Errors
/// The frame is too large or cut, or the connection failed.
pub fn read(from: &mut impl Read) -> Result<Option<Frame>, FrameError> {
    let mut prelude = [0; PRELUDE];
    // One byte alone, to tell an end from a cut.
    let first = loop {
        match from.read(&mut prelude[..1]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => break result?,
        }
    };
    if first == 0 {
        return Ok(None);
    }
    exactly(from, &mut prelude[1..])?;
    let (header, body) = lengths(&prelude)?;
    let mut frame = Frame {
        header: vec![0; header],
        body: vec![0; body],
    };
    exactly(from, &mut frame.header)?;
    exactly(from, &mut frame.body)?;
    Ok(Some(frame))
}

fn exactly(from: &mut impl Read, bytes: &mut [u8]) -> Result<(), FrameError> {
    from.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => FrameError::Cut,
        _ => FrameError::Io(error),
    })
}

/// The two lengths of a prelude, checked.
fn lengths(prelude: &[u8; PRELUDE]) -> Result<(usize, usize), FrameError> {
    let [a, b, c, d, e, f, g, h] = *prelude;
    let header = u32::from_le_bytes([a, b, c, d]) as usize;
    let body = u32::from_le_bytes([e, f, g, h]) as usize;
    length("header", header, HEADER_MAX)?;
    length("body", body, BODY_MAX)?;
    Ok((header, body))
}

fn length(part: &'static str, bytes: usize, max: usize) -> Result<u32, FrameError> {
    match u32::try_from(bytes) {
        Ok(length) if bytes <= max => Ok(length),
        _ => Err(FrameError::TooLarge { part, bytes }),
    }
}

/// Takes frames out of bytes that come in pieces, for a reader that must not wait.
///
/// It keeps no more than the largest frame and what was pushed on top of it.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Bytes at the beginning that were taken already.
    taken: usize,
}

impl Decoder {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        // Once a read, not once a frame: a read may hold thousands of small ones.
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame, if all of it is here.
    ///
    /// # Errors
    /// It is too large.
    pub fn take(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = self.bytes.get(self.taken..).unwrap_or_default();
        let Some((prelude, rest)) = rest.split_first_chunk::<PRELUDE>() else {
            return Ok(None);
        };
        let (header, body) = lengths(prelude)?;
        let Some(content) = rest.get(..header + body) else {
            return Ok(None);
        };
        self.taken += PRELUDE + content.len();
        let (header, body) = content.split_at(header);
        Ok(Some(Frame {
            header: header.to_vec(),
            body: body.to_vec(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prelude(header: u32, body: u32) -> Vec<u8> {
        [header.to_le_bytes(), body.to_le_bytes()].concat()
    }

    #[test]
    fn a_frame_survives_being_cut_into_bytes() {
        let bytes = [
            encode(&"first", b"\x00\xff").unwrap(),
            encode(&7, &[1; BODY_MAX]).unwrap(),
        ]
        .concat();
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for byte in &bytes {
            decoder.push(std::slice::from_ref(byte));
            frames.extend(decoder.take().unwrap());
        }
        let mut reader = bytes.as_slice();
        for frame in &frames {
            assert_eq!(read(&mut reader).unwrap().as_ref(), Some(frame));
        }
        assert_eq!(frames[0].header::<String>().unwrap(), "first");
        assert_eq!(frames[0].body, b"\x00\xff");
        assert_eq!(frames[1].header::<u8>().unwrap(), 7);
        assert_eq!(frames.len(), 2);
        assert!(read(&mut reader).unwrap().is_none());
    }

    #[test]
    fn lengths_are_refused_before_anything_is_kept() {
        for (header, body, part) in [
            (u32::MAX, 0, "header"),
            (1, u32::MAX, "body"),
            (0x4_0001, 0, "header"),
            (0, 0x1_0001, "body"),
        ] {
            let bytes = prelude(header, body);
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            for error in [
                decoder.take().unwrap_err(),
                read(&mut bytes.as_slice()).unwrap_err(),
            ] {
                assert!(
                    matches!(error, FrameError::TooLarge { part: p, .. } if p == part),
                    "{error}"
                );
            }
        }
        assert!(encode(&"", &[0; BODY_MAX + 1]).is_err());
        assert!(encode(&"x".repeat(HEADER_MAX), b"").is_err());
    }

    #[test]
    fn a_cut_frame_is_told_from_an_end() {
        let bytes = encode(&"header", b"body").unwrap();
        for end in 1..bytes.len() {
            let error = read(&mut &bytes[..end]).unwrap_err();
            assert!(matches!(error, FrameError::Cut), "{end}: {error}");
        }
        assert!(read(&mut [].as_slice()).unwrap().is_none());
    }

    #[test]
    fn a_header_that_is_no_json_is_an_error_of_its_own() {
        let bytes = [prelude(3, 0), b"{{{".to_vec()].concat();
        let frame = read(&mut bytes.as_slice()).unwrap().unwrap();
        let error = frame.header::<serde_json::Value>().unwrap_err();
        assert!(matches!(error, FrameError::Header(_)), "{error}");
    }
}
