//! `get` and `put`: trees of files, out of the guest and into it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::frame::{self, FrameError};
use crate::protocol::{Failure, FailureKind, Get, Put};
use crate::tree::{self, Destination, Piece, Receiver, TreeError};

pub(super) fn get(mut connection: File, wanted: &Get) -> Result<(), FrameError> {
    let path = match absolute(&wanted.path) {
        Ok(path) => path,
        Err(failure) => return super::answer::<()>(&mut connection, Err(failure)),
    };
    super::answer(&mut connection, Ok(()))?;
    match tree::send(path, &mut connection) {
        Ok(_) => Ok(()),
        Err(TreeError::Frame(error)) => Err(error),
        Err(error) => frame::write(&mut connection, &Piece::Failed(failure(&error)), b""),
    }
}

pub(super) fn put(mut connection: File, wanted: &Put) -> Result<(), FrameError> {
    let path = match absolute(&wanted.path) {
        Ok(path) => path,
        Err(failure) => return super::answer::<()>(&mut connection, Err(failure)),
    };
    super::answer(&mut connection, Ok(()))?;
    let receiver = Receiver::new(Destination {
        path: path.to_owned(),
        name: wanted.name.as_ref().map(Into::into),
        mode_mask: 0o7777,
    });
    match receiver.run(&mut connection) {
        Ok(copied) => super::answer(&mut connection, Ok(copied)),
        Err(TreeError::Frame(error)) => Err(error),
        Err(error) => {
            super::answer::<()>(&mut connection, Err(failure(&error)))?;
            // Closing with data unread would be a reset, which may overtake the answer.
            while connection.read(&mut [0; 4096])? > 0 {}
            Ok(())
        }
    }
}

fn absolute(path: &str) -> Result<&Path, Failure> {
    let path = Path::new(path);
    match path.is_absolute() {
        true => Ok(path),
        false => Err(Failure::new(
            FailureKind::Invalid,
            format!("{path:?} is not an absolute path"),
        )),
    }
}

/// The error with its reason, as one sentence.
fn failure(error: &TreeError) -> Failure {
    let (kind, message) = match error {
        TreeError::Io { source, .. } => {
            let kind = match source.kind() {
                std::io::ErrorKind::NotFound => FailureKind::NotFound,
                _ => FailureKind::Failed,
            };
            (kind, format!("{error}: {source}"))
        }
        error => (FailureKind::Failed, error.to_string()),
    };
    Failure::new(kind, message)
}
