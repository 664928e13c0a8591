//! A connection to the guest that neither waits for ever nor past an interruption.
//!
//! ```text
//!   connect(vsock.sock) ── "CONNECT <port>\n" ─▶ the VM process ─▶ the guest's port
//!                       ◀─ "OK <n>\n" ────────── or the end, at once, if nobody listens there
//! ```
//! Invariant: each read and write ends by data, by an error, by `patience` without progress, by the
//! `deadline`, or because `stop` is readable.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

/// The user wants the command to stop.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(super) struct Stopped;

/// How long a guest may say nothing where nobody has said until when: it may have one busy processor on a
/// busy host.
const PATIENCE: Duration = Duration::from_secs(120);

/// `OK 4294967295\n`
const OK_MAX: usize = 14;

/// A connection to a port of the guest.
#[derive(Debug)]
pub(super) struct Channel<'a> {
    stream: UnixStream,
    stop: BorrowedFd<'a>,
    /// When all must be over, if it must.
    pub(super) deadline: Option<Instant>,
}

impl<'a> Channel<'a> {
    /// Connects to a port of the guest behind the socket `path`, until `deadline`.
    ///
    /// # Errors
    /// Nobody listens there now.
    pub(super) fn connect(
        path: &Path,
        port: u32,
        stop: BorrowedFd<'a>,
        deadline: Instant,
    ) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_nonblocking(true)?;
        let mut channel = Self {
            stream,
            stop,
            deadline: Some(deadline),
        };
        channel.write_all(format!("CONNECT {port}\n").as_bytes())?;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            // What follows the line is the agent's.
            channel.read_exact(&mut byte)?;
            line.extend(byte);
            if line.len() > OK_MAX {
                break;
            }
        }
        if !line.starts_with(b"OK ") || !line.ends_with(b"\n") {
            return Err(io::ErrorKind::InvalidData.into());
        }
        channel.deadline = None;
        Ok(channel)
    }

    /// The connection itself, for who waits for more than it.
    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether the guest has said something, or is gone.
    pub(super) fn is_readable(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
        matches!(rustix::event::poll(&mut fds, Some(&Timespec::default())), Ok(found) if found > 0)
    }

    fn wait(&self, flags: PollFlags) -> io::Result<()> {
        let until = self.deadline.unwrap_or_else(|| Instant::now() + PATIENCE);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut fds = [
                PollFd::from_borrowed_fd(self.stop, PollFlags::IN),
                PollFd::new(&self.stream, flags),
            ];
            match rustix::event::poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) if !fds[0].revents().is_empty() => {
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, Stopped));
                }
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Read for Channel<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(PollFlags::IN)?
                }
                result => return result,
            }
        }
    }
}

impl Write for Channel<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let flags = rustix::net::SendFlags::NOSIGNAL;
            match rustix::net::send(&self.stream, bytes, flags) {
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT)?,
                result => return Ok(result?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Channel<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
