//! The pseudo terminal that the guest's console is on.
//!
//! ```text
//! Console { pty.main: read and written by the engine, never blocking
//!           _peer:    kept open, so that the main end does not hang up while no hub is there }
//! ```

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::sys::tty::{self, Pty};

/// How long a byte waits for a reader: longer than a busy hub takes to come by, shorter than what a
/// guest's watchdog bears. After that bytes are dropped, without more waiting, until one is taken.
const PATIENCE: Duration = Duration::from_secs(1);

/// The terminal. One a VM, for as long as its process lives.
#[derive(Debug)]
pub(crate) struct Console {
    pty: Pty,
    _peer: OwnedFd,
}

impl Console {
    /// Makes a raw terminal.
    ///
    /// # Errors
    /// The system has no pseudo terminal left.
    pub(crate) fn open() -> io::Result<Arc<Self>> {
        let pty = tty::open_pty()?;
        let peer = pty.open_peer()?;
        tty::make_raw(&peer)?;
        tty::set_nonblocking(&pty.main)?;
        Ok(Arc::new(Self { pty, _peer: peer }))
    }

    /// The other end, for the console hub: an opening of its own.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub(crate) fn terminal(&self) -> io::Result<OwnedFd> {
        self.pty.open_peer()
    }

    /// The engine's end; not blocking.
    pub(super) fn main(&self) -> BorrowedFd<'_> {
        self.pty.main.as_fd()
    }

    /// Reads what was typed; 0 if nothing was.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match rustix::io::read(self.main(), buffer) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            other => Ok(other?),
        }
    }
}

/// What the guest prints.
#[derive(Debug)]
pub(super) struct Output {
    console: Arc<Console>,
    /// Nobody took the last byte in time.
    given_up: bool,
}

impl Output {
    pub(super) fn new(console: &Arc<Console>) -> Self {
        Self {
            console: Arc::clone(console),
            given_up: false,
        }
    }

    /// Waits until the terminal takes more, or until `deadline`.
    fn wait(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        };
        let main = self.console.main();
        match poll(&mut [PollFd::new(&main, PollFlags::OUT)], Some(&timeout)) {
            // A vCPU is called by signals; the byte still waits.
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Write for Output {
    /// Takes all bytes, if only to drop them.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match rustix::io::write(self.console.main(), bytes) {
                Ok(written) => {
                    self.given_up = false;
                    return Ok(written);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.given_up || Instant::now() >= deadline => {
                    if !self.given_up {
                        tracing::warn!("nobody reads the guest's console: its output is dropped");
                    }
                    self.given_up = true;
                    return Ok(bytes.len());
                }
                Err(Errno::AGAIN) => self.wait(deadline)?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
