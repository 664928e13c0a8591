//! The process that started this one, and what becomes of this one without it.

use std::io;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, set_parent_process_death_signal};

/// Has the kernel end this process when the thread that started it ends, until [`outlive_it`]. Standard
/// output is a pipe to it: says whether it is still there.
///
/// # Errors
/// The kernel refuses.
pub fn die_with_it() -> io::Result<bool> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before the kernel was asked; then the pipe has no reader.
    let stdout = io::stdout();
    let mut pipe = [PollFd::new(&stdout, PollFlags::empty())];
    poll(&mut pipe, Some(&Timespec::default()))?;
    Ok(!pipe[0].revents().contains(PollFlags::ERR))
}

/// From now on this process lives, whatever becomes of the one that started it.
///
/// # Errors
/// The kernel refuses.
pub fn outlive_it() -> io::Result<()> {
    Ok(set_parent_process_death_signal(None)?)
}
