//! The agent's side: one thread a connection, one request a connection.
//!
//! ```text
//!   listener ──accept──▶ serve ──▶ hello | identity | grow | exec | files | shutdown
//! ```
//! Invariant: whatever a request leaves in the guest on purpose is what it says; all else ends with its
//! connection.

mod exec;
mod files;
mod grow;
mod hello;
mod identity;
mod renewal;
mod rtnetlink;
mod shutdown;
mod spawn;
mod users;

use std::fs::File;
use std::io;

use serde::Serialize;

use crate::frame::{self, FrameError};
use crate::protocol::{Answer, Failure, FailureKind, Request};

/// Serves one connection to its end.
///
/// # Errors
/// The connection failed, or what came is no request; the host has been told as far as that went.
pub fn serve(mut connection: File) -> Result<(), FrameError> {
    let Some(frame) = frame::read(&mut connection)? else {
        return Ok(());
    };
    let request = match frame.header::<Request>() {
        Ok(request) => request,
        Err(error) => {
            let message = match &error {
                FrameError::Header(source) => format!("the agent cannot do this: {source}"),
                error => error.to_string(),
            };
            let failure = Failure::new(FailureKind::Unsupported, message);
            return answer::<()>(&mut connection, Err(failure));
        }
    };
    match request {
        Request::Hello => answer(&mut connection, hello::hello()),
        Request::Identity(wanted) => answer(&mut connection, identity::renew(&wanted)),
        Request::Grow => answer(&mut connection, Ok(grow::grow())),
        Request::Exec(wanted) => exec::exec(connection, &wanted),
        Request::Get(wanted) => files::get(connection, &wanted),
        Request::Put(wanted) => files::put(connection, &wanted),
        Request::Shutdown(wanted) => {
            let prepared = shutdown::prepare(wanted);
            let done = prepared.as_ref().map(|_| ()).map_err(Failure::clone);
            // The host may have gone without waiting; what it wanted stands.
            let answered = answer(&mut connection, done);
            drop(connection);
            if let Ok(prepared) = prepared {
                prepared.run();
            }
            answered
        }
    }
}

fn answer<T: Serialize>(
    connection: &mut File,
    result: Result<T, Failure>,
) -> Result<(), FrameError> {
    let answer = match result {
        Ok(done) => Answer::Done(done),
        Err(failure) => Answer::Failed(failure),
    };
    frame::write(connection, &answer, b"")
}

/// A step that the system refused.
fn refused(what: impl std::fmt::Display, error: impl Into<io::Error>) -> Failure {
    Failure::new(
        FailureKind::Failed,
        format!("cannot {what}: {}", error.into()),
    )
}

#[cfg(test)]
mod tests;
