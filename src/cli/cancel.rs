//! Ctrl-C, carried over to work that can be cancelled.

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};

use super::error::Failure;
use crate::image::cancel::Cancel;
use crate::sys::interrupt::Interrupt;

/// What Ctrl-C cancels from now on.
pub(super) fn on_interrupt() -> Result<Cancel, Failure> {
    let interrupt = Interrupt::on_signals().map_err(Failure::Signals)?;
    let cancel = Cancel::new();
    let raised = cancel.clone();
    let watch = move || {
        let interrupt = interrupt.as_fd();
        while let Err(rustix::io::Errno::INTR) =
            poll(&mut [PollFd::new(&interrupt, PollFlags::IN)], None)
        {}
        raised.cancel();
    };
    std::thread::Builder::new()
        .name("interrupt".into())
        .spawn(watch)
        .map_err(Failure::Signals)?;
    Ok(cancel)
}
