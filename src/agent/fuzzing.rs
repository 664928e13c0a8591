//! Where fuzz targets enter: one function each, which takes any bytes.
//!
//! ```text
//! a tree's bytes:  piece │ length of the name │ name, and after a NUL in it where a link points │ piece ...
//! ```

use std::fs;
use std::path::Path;

use cocoon_agent::frame::{self, BODY_MAX, Decoder, FrameError};
use cocoon_agent::protocol::{
    Answer, Copied, Failure, FailureKind, FromCommand, Grown, Hello, Renewed, Request, Started,
    ToCommand,
};
use cocoon_agent::tree::{Destination, Meta, Piece, Receiver};
use serde::de::DeserializeOwned;

use super::AgentError;

/// Frames: what a reader that waits takes out of them is what one takes that gets them in pieces.
pub fn frames(data: &[u8]) {
    let Some((step, data)) = data.split_first() else {
        return;
    };
    let mut decoder = Decoder::default();
    let mut rest = data;
    for piece in data.chunks(usize::from(*step).max(1)) {
        decoder.push(piece);
        loop {
            match decoder.take() {
                Ok(Some(taken)) => {
                    let read = frame::read(&mut rest).expect("a frame").expect("no end");
                    assert!(read == taken, "two readers differ");
                    understand(&read);
                }
                Ok(None) => break,
                Err(_) => {
                    let refused = frame::read(&mut rest).expect_err("a frame that is too large");
                    shown(&AgentError::of_frame(refused));
                    return;
                }
            }
        }
    }
    match frame::read(&mut rest) {
        Ok(None) | Err(FrameError::Cut) => {}
        Err(FrameError::TooLarge { .. }) => panic!("the other reader has not seen it"),
        other => panic!("{other:?} of an unfinished frame"),
    }
}

/// Reads a frame as all that it may be.
fn understand(frame: &frame::Frame) {
    fn answer<T: DeserializeOwned>(frame: &frame::Frame) {
        match frame.header::<Answer<T>>() {
            Ok(Answer::Done(_)) => {}
            Ok(Answer::Failed(failure)) => shown(&AgentError::Refused(failure)),
            Err(error) => shown(&AgentError::of_frame(error)),
        }
    }
    answer::<()>(frame);
    answer::<Hello>(frame);
    answer::<Renewed>(frame);
    answer::<Grown>(frame);
    answer::<Started>(frame);
    answer::<Copied>(frame);
    let _ = frame.header::<FromCommand>();
    let _ = frame.header::<ToCommand>();
    let _ = frame.header::<Piece>();
    if let Ok(request) = frame.header::<Request>() {
        let bytes = frame::encode(&request, &frame.body).expect("what was read can be written");
        let again = frame::read(&mut &bytes[..])
            .expect("a frame")
            .expect("no end");
        assert_eq!(again.header::<Request>().expect("a request"), request);
    }
}

/// Whatever a guest says, nothing that moves a cursor is shown.
fn shown(error: &AgentError) {
    let text = error.to_string();
    assert!(!text.contains(char::is_control), "{text:?}");
}

/// A tree of files that a guest sends: what is beside its destination stays as it is.
pub fn tree(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a folder");
    let (inside, outside) = (dir.path().join("inside"), dir.path().join("outside"));
    for folder in [&inside, &outside] {
        fs::create_dir(folder).expect("a folder");
        fs::write(folder.join("mine"), "mine").expect("a file");
    }
    let is_root = data.first().is_some_and(|byte| byte & 0x80 != 0);
    let receiver = Receiver::new(Destination {
        path: inside,
        name: (!is_root).then(|| "copy".into()),
        mode_mask: 0o777,
    });
    let _ = receiver.run(&mut &pieces(data)[..]);
    assert_eq!(names(dir.path()), ["inside", "outside"]);
    assert_eq!(names(&outside), ["mine"]);
    let mine = fs::read(outside.join("mine")).expect("the file");
    assert_eq!(mine, b"mine");
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut names: Vec<_> = entries
        .map(|entry| name(entry.expect("an entry")))
        .collect();
    names.sort();
    names
}

/// The frames of a tree.
fn pieces(mut data: &[u8]) -> Vec<u8> {
    let mut frames = Vec::new();
    while let [kind, length, rest @ ..] = data {
        let (body, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        data = rest;
        let meta = Meta {
            mode: u32::from(*kind) << 5,
            mtime: i64::from(*length) - 100,
            mtime_ns: u32::from(*length) << 24,
        };
        let piece = match kind & 7 {
            0 | 1 => Piece::Folder(meta),
            2 => Piece::File(meta),
            3 => Piece::Link(meta),
            4 => Piece::Data,
            5 | 6 => Piece::Close,
            _ if body.is_empty() => Piece::End(Copied::default()),
            _ => Piece::Failed(Failure::new(FailureKind::Failed, "enough")),
        };
        let body = &body[..body.len().min(BODY_MAX)];
        frames.extend(frame::encode(&piece, body).expect("a small frame"));
    }
    frames
}

/// So that the entries stay alive where nobody fuzzes.
#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Few, so that they meet, and among them those that lead out.
    const NAMES: &[&str] = &[
        "",
        ".",
        "..",
        "a",
        "b",
        "a\0../outside",
        "b\0..",
        "../x",
        "a/b",
    ];

    /// Pieces of any order.
    fn trees() -> impl Strategy<Value = Vec<u8>> {
        let piece = (any::<u8>(), prop::sample::select(NAMES));
        let piece = piece.prop_map(|(kind, name)| {
            let length = u8::try_from(name.len()).unwrap();
            [&[kind, length][..], name.as_bytes()].concat()
        });
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        // A look, not a search.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_tree_leaves_its_folder(data in trees()) {
            tree(&data);
        }

        #[test]
        fn no_bytes_harm_the_readers_of_frames(
            header in "[ -~]{0,40}", body in any::<Vec<u8>>(), step in any::<u8>(), data in any::<Vec<u8>>()
        ) {
            let whole = frame::encode(&header, &body).unwrap();
            frames(&[&[step][..], &whole, &data].concat());
        }
    }
}
