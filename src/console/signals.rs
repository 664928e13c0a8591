//! The signals that matter to someone at a console, as descriptors that poll(2) can wait for.
//!
//! ```text
//!   SIGWINCH ───────────────────▶ resized       the local window has another size
//!   SIGINT SIGTERM SIGHUP ──────▶ interrupted   leave, with the terminal restored
//! ```
//! A handler only writes a byte. Once [`Signals`] is dropped these signals do nothing (signal-hook
//! does not give the default back), so a process that goes on for long keeps it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use signal_hook::low_level::{pipe, unregister};

/// Signals that are caught for as long as this lives.
#[derive(Debug)]
pub struct Signals {
    resized: UnixStream,
    interrupted: UnixStream,
    handlers: Vec<SigId>,
}

impl Signals {
    /// Catches the signals of this process.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn catch() -> io::Result<Self> {
        let (resized, on_resize) = UnixStream::pair()?;
        let (interrupted, on_interrupt) = UnixStream::pair()?;
        let mut signals = Self {
            resized,
            interrupted,
            handlers: Vec::new(),
        };
        for (signal, to) in [
            (SIGWINCH, &on_resize),
            (SIGINT, &on_interrupt),
            (SIGTERM, &on_interrupt),
            (SIGHUP, &on_interrupt),
        ] {
            let handler = pipe::register(signal, to.try_clone()?)?;
            signals.handlers.push(handler);
        }
        Ok(signals)
    }

    /// Readable after the local window changed its size.
    pub fn resized(&self) -> BorrowedFd<'_> {
        self.resized.as_fd()
    }

    /// Readable after the process was asked to end.
    pub fn interrupted(&self) -> BorrowedFd<'_> {
        self.interrupted.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for handler in self.handlers.drain(..) {
            unregister(handler);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::fixture;
    use std::io::Read;

    #[test]
    fn a_changed_window_size_makes_its_descriptor_readable() {
        let _alone = fixture::signals_alone();
        let mut signals = Signals::catch().unwrap();
        signal_hook::low_level::raise(SIGWINCH).unwrap();
        let mut byte = [0; 1];
        signals.resized.read_exact(&mut byte).unwrap();
        signals.interrupted.set_nonblocking(true).unwrap();
        assert!(signals.interrupted.read(&mut byte).is_err());
    }
}
