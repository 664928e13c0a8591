//! Ctrl-C and SIGTERM as a value: a flag to look at and a descriptor to wait on.
//!
//! The first signal raises the flag, so that the verb can undo what it has begun. The second ends
//! the process at once, for a user who does not want to wait for that.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

/// Exit code of a process that a user interrupted: 128 + SIGINT.
const EXIT_INTERRUPTED: i32 = 130;

/// Whether the user wants the verb to stop.
#[derive(Clone, Debug)]
pub struct Interrupt {
    flag: Arc<AtomicBool>,
    wake: Arc<UnixStream>,
    raise: Arc<UnixStream>,
}

impl Interrupt {
    /// One that no signal raises.
    ///
    /// # Errors
    /// No socket pair can be made.
    pub fn never() -> io::Result<Self> {
        let (wake, write) = UnixStream::pair()?;
        Ok(Self {
            flag: Arc::default(),
            wake: Arc::new(wake),
            raise: Arc::new(write),
        })
    }

    /// One that SIGINT and SIGTERM raise, from now until the process ends.
    ///
    /// # Errors
    /// The signals cannot be handled.
    pub fn on_signals() -> io::Result<Self> {
        let interrupt = Self::never()?;
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(
                signal,
                EXIT_INTERRUPTED,
                Arc::clone(&interrupt.flag),
            )?;
            signal_hook::flag::register(signal, Arc::clone(&interrupt.flag))?;
            signal_hook::low_level::pipe::register(signal, interrupt.raise.try_clone()?)?;
        }
        Ok(interrupt)
    }

    /// Whether the user wants the verb to stop.
    pub fn is_raised(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// Raises it, as a signal would.
    #[cfg(test)]
    pub(crate) fn raise(&self) {
        use std::io::Write;
        self.flag.store(true, Ordering::Relaxed);
        (&*self.raise).write_all(b"!").unwrap();
    }

    /// The flag itself, for loops in other threads.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.flag)
    }
}

impl AsFd for Interrupt {
    /// Readable from the first signal on; nobody reads it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
