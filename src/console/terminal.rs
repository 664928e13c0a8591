//! The guest's terminal, as the hub sees it.
//!
//! ```text
//!   Live ──read: EOF or EIO──▶ HungUp ──after 100 ms: polled again──▶ Live
//!     ▲                           │
//!     └────── replaced ───────────┘
//! ```
//! While a guest reboots, no one may hold the other end of its terminal. poll(2) reports that
//! without pause, so a terminal that hung up is left out of it for a while.
//! Invariant: input waits here in bounded memory; none is lost unless the terminal fails.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::sys::tty::{self, WindowSize};

/// Input that waits for a guest which does not read: a pasted page, and some. More waits in the
/// sockets of the viewers.
const PENDING_MAX: usize = 64 << 10;

/// How long a terminal that hung up is left alone: unnoticed by a person, and nothing for the CPU.
const HANG_UP_PAUSE: Duration = Duration::from_millis(100);

/// The guest's terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    fd: OwnedFd,
    /// Input that the terminal has not taken yet.
    pending: VecDeque<u8>,
    /// When a terminal that hung up is tried again.
    hung_up_until: Option<Instant>,
    /// The last window size that a viewer asked for.
    size: Option<WindowSize>,
}

impl Terminal {
    /// # Errors
    /// `fd` cannot be made non-blocking.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        tty::set_nonblocking(&fd)?;
        Ok(Self {
            fd,
            pending: VecDeque::new(),
            hung_up_until: None,
            size: None,
        })
    }

    /// Goes on with another terminal, which gets the waiting input and the window size.
    pub(super) fn replace(&mut self, with: Terminal) {
        self.fd = with.fd;
        self.hung_up_until = None;
        self.apply_size();
    }

    /// What to poll for, or nothing while it is left alone.
    pub(super) fn interest(&self, now: Instant) -> Option<(BorrowedFd<'_>, PollFlags)> {
        if self.hung_up_until.is_some_and(|until| now < until) {
            return None;
        }
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, !self.pending.is_empty());
        Some((self.fd.as_fd(), flags))
    }

    /// When [`Terminal::interest`] changes by itself.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        self.hung_up_until
    }

    /// Reads output into `buffer` and returns how much there was: 0 if there is none now.
    pub(super) fn read(&mut self, buffer: &mut [u8], now: Instant) -> usize {
        match rustix::io::read(&self.fd, &mut *buffer) {
            Ok(0) | Err(Errno::IO) => self.hang_up(now),
            Ok(read) => {
                self.hung_up_until = None;
                return read;
            }
            Err(Errno::AGAIN | Errno::INTR) => self.hung_up_until = None,
            Err(error) => {
                tracing::warn!(%error, "the console's terminal cannot be read");
                self.hang_up(now);
            }
        }
        0
    }

    fn hang_up(&mut self, now: Instant) {
        self.hung_up_until = Some(now + HANG_UP_PAUSE);
    }

    /// Whether more input may be queued. Asked before each read from a viewer, so the bound is
    /// passed by one read at most.
    pub(super) fn has_room(&self) -> bool {
        self.pending.len() < PENDING_MAX
    }

    /// Queues input; call [`Terminal::write_pending`] after.
    pub(super) fn queue(&mut self, input: &[u8]) {
        self.pending.extend(input);
    }

    /// Writes as much waiting input as the terminal takes now.
    pub(super) fn write_pending(&mut self, now: Instant) {
        while self.hung_up_until.is_none() && !self.pending.is_empty() {
            match rustix::io::write(&self.fd, self.pending.as_slices().0) {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.hang_up(now),
            }
        }
    }

    /// Sets the window size, also of terminals to come. An unknown size changes nothing.
    pub(super) fn resize(&mut self, size: WindowSize) {
        if size.is_known() {
            self.size = Some(size);
            self.apply_size();
        }
    }

    fn apply_size(&self) {
        if let Some(size) = self.size
            && let Err(error) = tty::set_window_size(&self.fd, size)
        {
            tracing::debug!(%error, "the console has no window size");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_that_hung_up_is_left_alone_and_then_tried_again() {
        let pty = tty::open_pty().unwrap();
        tty::make_raw(&pty.main).unwrap();
        let guest = pty.open_peer().unwrap();
        let mut terminal = Terminal::new(pty.main.try_clone().unwrap()).unwrap();
        let (now, mut buffer) = (Instant::now(), [0; 16]);
        assert_eq!(terminal.read(&mut buffer, now), 0);
        assert!(terminal.interest(now).is_some());

        drop(guest);
        assert_eq!(terminal.read(&mut buffer, now), 0);
        assert!(terminal.interest(now).is_none());
        let later = terminal.wakes_at().unwrap();
        assert!(terminal.interest(later).is_some());

        let guest = pty.open_peer().unwrap();
        rustix::io::write(&guest, b"back").unwrap();
        assert_eq!(terminal.read(&mut buffer, later), 4);
        assert!(terminal.interest(now).is_some());
    }

    #[test]
    fn input_for_a_guest_that_does_not_read_is_bounded_and_kept() {
        let pty = tty::open_pty().unwrap();
        tty::make_raw(&pty.main).unwrap();
        let mut terminal = Terminal::new(pty.open_peer().unwrap()).unwrap();
        let now = Instant::now();
        let mut sent = Vec::new();
        while terminal.has_room() {
            let piece: Vec<u8> = (0..=250).cycle().take(1000).collect();
            terminal.queue(&piece);
            terminal.write_pending(now);
            sent.extend(piece);
        }
        assert!(terminal.pending.len() < PENDING_MAX + 1000);
        let mut got = Vec::new();
        while got.len() < sent.len() {
            let mut buffer = [0; 4096];
            let read = rustix::io::read(&pty.main, &mut buffer).unwrap();
            got.extend_from_slice(&buffer[..read]);
            terminal.write_pending(now);
        }
        assert_eq!(got, sent);
    }

    #[test]
    fn a_new_terminal_gets_the_window_size_and_the_waiting_input() {
        let size = WindowSize { rows: 30, cols: 90 };
        let first = tty::open_pty().unwrap();
        let mut terminal = Terminal::new(first.open_peer().unwrap()).unwrap();
        terminal.resize(size);
        terminal.resize(WindowSize { rows: 0, cols: 0 });
        assert_eq!(tty::window_size(&first.main).unwrap(), size);
        drop(first);
        let now = Instant::now();
        terminal.queue(b"typed early");
        terminal.write_pending(now);

        let second = tty::open_pty().unwrap();
        tty::make_raw(&second.main).unwrap();
        terminal.replace(Terminal::new(second.open_peer().unwrap()).unwrap());
        terminal.write_pending(now);
        assert_eq!(tty::window_size(&second.main).unwrap(), size);
        let mut buffer = [0; 32];
        let read = rustix::io::read(&second.main, &mut buffer).unwrap();
        assert_eq!(&buffer[..read], b"typed early");
    }
}
