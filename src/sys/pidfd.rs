//! Processes by descriptor: a pidfd never names another process than the one it was opened for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process that may be signalled and waited for.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
    pid: Pid,
}

/// How a wait for a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The process has ended.
    Ended,
    /// The time was up first.
    TimedOut,
    /// The other descriptor became readable first.
    Interrupted,
}

impl PidFd {
    /// The process that listens at the other end of `stream`.
    ///
    /// The process may die, and its number be used again, between asking the kernel who it is and
    /// opening it. Its end of the stream is closed then; so a stream that is still open afterwards
    /// proves that the right process was opened.
    ///
    /// # Errors
    /// The process has ended.
    pub fn of_peer(stream: &UnixStream) -> io::Result<Self> {
        let pid = rustix::net::sockopt::socket_peercred(stream)?.pid;
        let fd = pidfd_open(pid, PidfdFlags::empty())?;
        let mut hung_up = [PollFd::new(stream, PollFlags::RDHUP)];
        poll(&mut hung_up, Some(&timespec(Duration::ZERO)))?;
        if hung_up[0]
            .revents()
            .intersects(PollFlags::RDHUP | PollFlags::HUP)
        {
            return Err(io::Error::from(io::ErrorKind::ConnectionReset));
        }
        Ok(Self { fd, pid })
    }

    /// The process's number, for people to read.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sends a signal. A process that has ended already is no error.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.fd, signal) {
            Err(rustix::io::Errno::SRCH) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the process ends, the time is up, or `interrupt` becomes readable.
    ///
    /// # Errors
    /// The kernel refuses to wait.
    pub fn wait(&self, timeout: Duration, interrupt: Option<BorrowedFd<'_>>) -> io::Result<Wait> {
        let deadline = Instant::now() + timeout;
        loop {
            let mut fds = vec![PollFd::new(&self.fd, PollFlags::IN)];
            fds.extend(interrupt.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
            let left = deadline.saturating_duration_since(Instant::now());
            match poll(&mut fds, Some(&timespec(left))) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) if !fds[0].revents().is_empty() => return Ok(Wait::Ended),
                Ok(0) => return Ok(Wait::TimedOut),
                Ok(_) => return Ok(Wait::Interrupted),
            }
        }
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn timespec(duration: Duration) -> rustix::event::Timespec {
    rustix::event::Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_of_a_stream_is_the_process_that_made_it() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let process = PidFd::of_peer(&ours).unwrap();
        assert_eq!(u32::try_from(process.pid()).unwrap(), std::process::id());
        assert_eq!(process.wait(Duration::ZERO, None).unwrap(), Wait::TimedOut);
    }

    #[test]
    fn a_closed_stream_proves_no_process() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(PidFd::of_peer(&ours).is_err());
    }

    #[test]
    fn a_wait_ends_with_the_process_or_the_interrupt() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let process = PidFd::of_peer(&ours).unwrap();
        let (mut writer, reader) = UnixStream::pair().unwrap();
        io::Write::write_all(&mut writer, b"!").unwrap();
        assert_eq!(
            process
                .wait(Duration::from_secs(60), Some(reader.as_fd()))
                .unwrap(),
            Wait::Interrupted
        );
        drop(theirs);
    }
}
