//! Ctrl-C, carried over to work that can be cancelled.

use std::io::{self, Read};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};

use super::error::Failure;
use crate::image::cancel::Cancel;
use crate::sys::interrupt::Interrupt;

/// What Ctrl-C raises from now on, and what it cancels.
pub(super) fn on_interrupt() -> Result<(Interrupt, Cancel), Failure> {
    let interrupt = Interrupt::on_signals().map_err(Failure::Signals)?;
    let cancel = Cancel::new();
    let (raised, watched) = (cancel.clone(), interrupt.clone());
    let watch = move || {
        let interrupt = watched.as_fd();
        while let Err(rustix::io::Errno::INTR) =
            poll(&mut [PollFd::new(&interrupt, PollFlags::IN)], None)
        {}
        raised.cancel();
    };
    std::thread::Builder::new()
        .name("interrupt".into())
        .spawn(watch)
        .map_err(Failure::Signals)?;
    Ok((interrupt, cancel))
}

/// Standard input, for as long as Ctrl-C does not end it, also while nothing comes.
pub(super) struct Stdin {
    interrupt: Interrupt,
    cancel: Cancel,
}

impl Stdin {
    pub(super) fn new(interrupt: Interrupt, cancel: Cancel) -> Self {
        Self { interrupt, cancel }
    }
}

impl Read for Stdin {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let (stdin, interrupt) = (io::stdin(), self.interrupt.as_fd());
        let mut ends = [
            PollFd::new(&stdin, PollFlags::IN),
            PollFd::new(&interrupt, PollFlags::IN),
        ];
        while let Err(error) = poll(&mut ends, None) {
            if error != rustix::io::Errno::INTR {
                return Err(error.into());
            }
        }
        if self.interrupt.is_raised() {
            // The thread that watches may not have come to it yet.
            self.cancel.cancel();
            // Not `Interrupted`: who gets that tries again.
            return Err(io::Error::other("interrupted"));
        }
        Ok(rustix::io::read(&stdin, to)?)
    }
}
