//! A command's side of the control socket.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::protocol::{self, Request, Response};
use crate::sys::interrupt::Interrupt;
use crate::sys::pidfd::PidFd;

/// A VM process answers at once, but a busy host may keep it from running for some seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection to a living VM process.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    process: PidFd,
}

/// What goes wrong between a command and a VM process.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No one listens.
    #[error("cannot reach the VM process at {socket}")]
    Connect {
        /// The socket's path.
        socket: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// No answer came.
    #[error("the VM process did not answer")]
    Exchange(#[source] io::Error),
    /// The user did not want to wait any longer; the connection is of no more use.
    #[error("interrupted while the VM process was at work")]
    Interrupted,
    /// It said no.
    #[error("the VM process refused: {0}")]
    Refused(String),
}

impl Client {
    /// Connects to the VM process that listens at `socket`.
    ///
    /// # Errors
    /// No process listens there.
    pub fn connect(socket: &Path) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Connect {
            socket: socket.display().to_string(),
            source,
        };
        let stream = UnixStream::connect(socket).map_err(failed)?;
        stream
            .set_read_timeout(Some(ANSWER_TIMEOUT))
            .map_err(failed)?;
        stream
            .set_write_timeout(Some(ANSWER_TIMEOUT))
            .map_err(failed)?;
        let process = PidFd::of_peer(&stream).map_err(failed)?;
        Ok(Self { stream, process })
    }

    /// The process at the other end.
    pub fn process(&self) -> &PidFd {
        &self.process
    }

    /// The process alone; the connection is closed.
    pub fn into_process(self) -> PidFd {
        self.process
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The process does not answer in time, or refuses.
    pub fn call(&mut self, request: Request) -> Result<serde_json::Value, ClientError> {
        protocol::send(&mut self.stream, &request).map_err(ClientError::Exchange)?;
        self.receive()
    }

    /// Asks for what takes as long as it takes: the answer, the end of the process or `interrupt` ends
    /// the wait.
    ///
    /// # Errors
    /// The process ends or refuses, or the user interrupts.
    pub fn call_patiently(
        &mut self,
        request: Request,
        interrupt: &Interrupt,
    ) -> Result<serde_json::Value, ClientError> {
        protocol::send(&mut self.stream, &request).map_err(ClientError::Exchange)?;
        loop {
            let mut fds = [
                PollFd::new(&self.stream, PollFlags::IN),
                PollFd::new(interrupt, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(ClientError::Exchange(error.into())),
                Ok(_) if !fds[0].revents().is_empty() => return self.receive(),
                Ok(_) => return Err(ClientError::Interrupted),
            }
        }
    }

    fn receive(&mut self) -> Result<serde_json::Value, ClientError> {
        let response = protocol::receive(&mut self.stream).map_err(ClientError::Exchange)?;
        match response.ok_or_else(|| ClientError::Exchange(io::ErrorKind::UnexpectedEof.into()))? {
            Response::Done(value) => Ok(value),
            Response::Failed(reason) => Err(ClientError::Refused(reason)),
        }
    }
}
