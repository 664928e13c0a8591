//! The frames between a viewer (`cocoon vm console`) and the hub, over the console's socket.
//!
//! ```text
//!   0      1          3                3 + length
//!   ├ type ┼ length ──┼ payload ───────┤     length: big endian, at most 16 KiB
//!
//!   viewer ─▶ hub    0x01 input   bytes
//!                    0x02 resize  rows, cols: two big-endian u16
//!   hub ─▶ viewer    0x81 output  bytes: first the history, then what the guest prints
//!                    0x82 the history is over
//!                    0x83 closing reason: one byte; nothing follows
//! ```
//! Invariant: a frame is checked whole before any of it is used, and a peer that breaks the format
//! is let go of. Both ends are cocoon; they may be of different versions.

use crate::sys::tty::WindowSize;

/// The longest payload: some reads of a terminal, and little memory for each viewer.
pub const MAX_PAYLOAD: usize = 16 << 10;

const HEADER_LEN: usize = 3;

const INPUT: u8 = 0x01;
const RESIZE: u8 = 0x02;
const OUTPUT: u8 = 0x81;
const HISTORY_END: u8 = 0x82;
const CLOSING: u8 = 0x83;

/// What a viewer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromViewer {
    /// Bytes for the guest.
    Input(Vec<u8>),
    /// The size of the viewer's window.
    Resize(WindowSize),
}

/// What the hub says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromHub {
    /// Bytes from the guest.
    Output(Vec<u8>),
    /// What came before was printed before the viewer attached.
    HistoryEnd,
    /// The hub lets go of the viewer.
    Closing(Closing),
}

/// Why the hub lets go of a viewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// The console is over: the VM stopped.
    Stopped,
    /// The viewer did not keep up with the output.
    TooSlow,
    /// There are too many viewers.
    TooMany,
    /// The viewer broke the format.
    BadFrame,
}

/// How a peer broke the format.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProtocolError {
    /// No such frame, in this direction.
    #[error("the console's peer sent a frame of the unknown type {0:#04x}")]
    UnknownType(u8),
    /// A payload beyond the limit.
    #[error("the console's peer sent a frame of {0} bytes, and {MAX_PAYLOAD} is the limit")]
    TooLong(usize),
    /// A payload that its type does not have.
    #[error("the console's peer sent a frame of type {kind:#04x} with {len} bytes")]
    WrongLength {
        /// The type of the frame.
        kind: u8,
        /// The length of its payload, in bytes.
        len: usize,
    },
    /// A reason that this version does not know.
    #[error("the console's peer closed for the unknown reason {0}")]
    UnknownReason(u8),
}

/// A frame of one direction.
pub trait Frame: Sized {
    /// Whether frames of this direction have the type `kind`.
    fn has_type(kind: u8) -> bool;

    /// The frame of type `kind` with that payload.
    ///
    /// # Errors
    /// There is no such frame.
    fn decode(kind: u8, payload: &[u8]) -> Result<Self, ProtocolError>;
}

impl Frame for FromViewer {
    fn has_type(kind: u8) -> bool {
        matches!(kind, INPUT | RESIZE)
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, ProtocolError> {
        match (kind, payload) {
            (INPUT, bytes) => Ok(Self::Input(bytes.to_vec())),
            (RESIZE, &[r0, r1, c0, c1]) => Ok(Self::Resize(WindowSize {
                rows: u16::from_be_bytes([r0, r1]),
                cols: u16::from_be_bytes([c0, c1]),
            })),
            _ => Err(misfit::<Self>(kind, payload.len())),
        }
    }
}

impl Frame for FromHub {
    fn has_type(kind: u8) -> bool {
        matches!(kind, OUTPUT | HISTORY_END | CLOSING)
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, ProtocolError> {
        match (kind, payload) {
            (OUTPUT, bytes) => Ok(Self::Output(bytes.to_vec())),
            (HISTORY_END, []) => Ok(Self::HistoryEnd),
            (CLOSING, &[reason]) => Ok(Self::Closing(match reason {
                0 => Closing::Stopped,
                1 => Closing::TooSlow,
                2 => Closing::TooMany,
                3 => Closing::BadFrame,
                unknown => return Err(ProtocolError::UnknownReason(unknown)),
            })),
            _ => Err(misfit::<Self>(kind, payload.len())),
        }
    }
}

fn misfit<F: Frame>(kind: u8, len: usize) -> ProtocolError {
    if F::has_type(kind) {
        ProtocolError::WrongLength { kind, len }
    } else {
        ProtocolError::UnknownType(kind)
    }
}

/// Input frames with all of `bytes`: as many as it takes, none for no bytes.
pub fn input_frames(bytes: &[u8]) -> Vec<u8> {
    byte_frames(INPUT, bytes)
}

/// Output frames with all of `bytes`: as many as it takes, none for no bytes.
pub fn output_frames(bytes: &[u8]) -> Vec<u8> {
    byte_frames(OUTPUT, bytes)
}

/// The frame that tells the size of the viewer's window.
pub fn resize_frame(size: WindowSize) -> Vec<u8> {
    let [r0, r1] = size.rows.to_be_bytes();
    let [c0, c1] = size.cols.to_be_bytes();
    vec![RESIZE, 0, 4, r0, r1, c0, c1]
}

/// The frame that ends the history.
pub fn history_end_frame() -> Vec<u8> {
    vec![HISTORY_END, 0, 0]
}

/// The frame that ends the connection.
pub fn closing_frame(reason: Closing) -> Vec<u8> {
    let reason = match reason {
        Closing::Stopped => 0,
        Closing::TooSlow => 1,
        Closing::TooMany => 2,
        Closing::BadFrame => 3,
    };
    vec![CLOSING, 0, 1, reason]
}

fn byte_frames(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let frames = bytes.len().div_ceil(MAX_PAYLOAD);
    let mut into = Vec::with_capacity(bytes.len() + frames * HEADER_LEN);
    for payload in bytes.chunks(MAX_PAYLOAD) {
        // Of a usize of at most MAX_PAYLOAD, which is below 2^16, the last two bytes are all.
        let [.., high, low] = payload.len().to_be_bytes();
        into.extend_from_slice(&[kind, high, low]);
        into.extend_from_slice(payload);
    }
    into
}

/// Cuts a stream of bytes into frames. Holds at most one incomplete frame once [`Decoder::next_frame`]
/// returned `None`.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Where the next frame begins in `buffer`.
    start: usize,
}

impl Decoder {
    /// Adds what was received.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete frame, or `None` until more is pushed.
    ///
    /// # Errors
    /// The peer broke the format; the stream cannot be read further.
    pub fn next_frame<F: Frame>(&mut self) -> Result<Option<F>, ProtocolError> {
        let rest = self.buffer.get(self.start..).unwrap_or_default();
        let Some((&[kind, high, low], rest)) = rest.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let len = usize::from(u16::from_be_bytes([high, low]));
        if !F::has_type(kind) {
            return Err(ProtocolError::UnknownType(kind));
        }
        if len > MAX_PAYLOAD {
            return Err(ProtocolError::TooLong(len));
        }
        let Some(payload) = rest.get(..len) else {
            return Ok(None);
        };
        let frame = F::decode(kind, payload)?;
        self.start += HEADER_LEN + len;
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode_all<F: Frame>(pieces: &[&[u8]]) -> Result<Vec<F>, ProtocolError> {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for piece in pieces {
            decoder.push(piece);
            while let Some(frame) = decoder.next_frame()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    #[test]
    fn frames_have_the_bytes_of_the_picture() {
        let size = WindowSize {
            rows: 0x0102,
            cols: 0x0304,
        };
        for (frame, bytes) in [
            (input_frames(b"ab"), &b"\x01\x00\x02ab"[..]),
            (resize_frame(size), b"\x02\x00\x04\x01\x02\x03\x04"),
            (output_frames(b"\xff"), b"\x81\x00\x01\xff"),
            (history_end_frame(), b"\x82\x00\x00"),
            (closing_frame(Closing::TooSlow), b"\x83\x00\x01\x01"),
            (output_frames(b""), b""),
        ] {
            assert_eq!(frame, bytes);
        }
    }

    #[test]
    fn every_frame_reads_back() {
        let size = WindowSize { rows: 24, cols: 80 };
        assert_eq!(
            decode_all(&[&resize_frame(size)]),
            Ok(vec![FromViewer::Resize(size)])
        );
        for reason in [
            Closing::Stopped,
            Closing::TooSlow,
            Closing::TooMany,
            Closing::BadFrame,
        ] {
            let frame = closing_frame(reason);
            assert_eq!(decode_all(&[&frame]), Ok(vec![FromHub::Closing(reason)]));
        }
        assert_eq!(
            decode_all(&[&history_end_frame()]),
            Ok(vec![FromHub::HistoryEnd])
        );
    }

    #[test]
    fn hostile_frames_are_refused_before_their_payload_arrives() {
        for (bytes, error) in [
            (&b"\x00\x00\x00"[..], ProtocolError::UnknownType(0)),
            (b"\x81\x00\x01", ProtocolError::UnknownType(0x81)),
            (b"GET / HTTP/1.1", ProtocolError::UnknownType(b'G')),
            (b"\x01\xff\xff", ProtocolError::TooLong(65535)),
            (
                b"\x02\x00\x00",
                ProtocolError::WrongLength { kind: 2, len: 0 },
            ),
            (
                b"\x02\x00\x05abcde",
                ProtocolError::WrongLength { kind: 2, len: 5 },
            ),
        ] {
            assert_eq!(decode_all::<FromViewer>(&[bytes]), Err(error));
        }
        let unknown = decode_all::<FromHub>(&[b"\x83\x00\x01\x09"]);
        assert_eq!(unknown, Err(ProtocolError::UnknownReason(9)));
    }

    proptest! {
        #[test]
        fn bytes_survive_any_cutting(bytes in proptest::collection::vec(any::<u8>(), 0..40_000), cut in 1usize..9000) {
            let stream = output_frames(&bytes);
            let pieces: Vec<&[u8]> = stream.chunks(cut).collect();
            let mut got = Vec::new();
            for frame in decode_all(&pieces).unwrap() {
                let FromHub::Output(part) = frame else { panic!("{frame:?}") };
                prop_assert!(part.len() <= MAX_PAYLOAD);
                got.extend(part);
            }
            prop_assert_eq!(got, bytes);
        }

        #[test]
        fn no_stream_makes_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_all::<FromViewer>(&[&bytes]);
            let _ = decode_all::<FromHub>(&[&bytes]);
        }
    }
}
