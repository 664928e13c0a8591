//! The guest's console, as the port gives it.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::SOON;

/// Silence after which nothing more is under way from a guest that is halted.
const SILENCE: Duration = Duration::from_millis(300);

/// The terminal's slave, and what was read from it.
#[derive(Debug)]
pub(crate) struct Console {
    /// The terminal itself.
    pub(crate) terminal: OwnedFd,
    unread: Vec<u8>,
}

impl Console {
    /// The console on this terminal.
    pub(crate) fn new(terminal: OwnedFd) -> Self {
        Self {
            terminal,
            unread: vec![],
        }
    }

    /// Types a line.
    pub(crate) fn enter(&mut self, line: &str) {
        self.press(format!("{line}\n").as_bytes());
    }

    /// Presses keys.
    pub(crate) fn press(&mut self, keys: &[u8]) {
        let written = rustix::io::write(&self.terminal, keys).expect("the terminal takes input");
        assert_eq!(written, keys.len(), "a line fits the terminal");
    }

    /// Reads until `text` has come.
    pub(crate) fn until(&mut self, text: &str) {
        self.before(text);
    }

    /// Reads until `text` has come, and returns what came before it.
    pub(crate) fn before(&mut self, text: &str) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            let seen = self.seen();
            if let Some(at) = seen.find(text) {
                self.unread = seen.as_bytes()[at + text.len()..].to_vec();
                return seen[..at].to_owned();
            }
            assert!(
                self.read(deadline),
                "no {text:?} in:\n{seen}",
                seen = self.seen()
            );
        }
    }

    /// Has the guest's shell run a line, and returns what it printed.
    pub(crate) fn run(&mut self, line: &str) -> String {
        // The terminal shows what is typed, too, and breaks it anywhere; but not the words that this
        // makes.
        self.enter(&format!("echo b''egin; {line}; echo d''one"));
        self.until("begin");
        self.before("done").trim().to_owned()
    }

    /// Reads something more, and returns all that was not returned yet.
    pub(crate) fn more(&mut self) -> String {
        assert!(
            self.read(Instant::now() + SOON),
            "nothing more after:\n{}",
            self.seen()
        );
        self.take()
    }

    /// All that a halted guest has said: reads until nothing more comes.
    pub(crate) fn rest(&mut self) -> String {
        while self.read(Instant::now() + SILENCE) {}
        self.take()
    }

    fn take(&mut self) -> String {
        let seen = self.seen();
        self.unread.clear();
        seen
    }

    fn seen(&self) -> String {
        String::from_utf8_lossy(&self.unread).into_owned()
    }

    /// Reads until `text` has come, or until the other end is closed; true if it is.
    pub(crate) fn until_or_hung_up(&mut self, text: &str) -> bool {
        let deadline = Instant::now() + SOON;
        loop {
            if self.seen().contains(text) {
                return false;
            }
            if !self.read(deadline) {
                assert!(
                    Instant::now() < deadline,
                    "no {text:?} in:\n{}",
                    self.seen()
                );
                return true;
            }
        }
    }

    /// Reads once; false at the end of the terminal or of the time.
    fn read(&mut self, deadline: Instant) -> bool {
        if !readable(&self.terminal, deadline) {
            return false;
        }
        let mut chunk = [0; 4096];
        match rustix::io::read(&self.terminal, &mut chunk) {
            Ok(0) | Err(rustix::io::Errno::IO) => false,
            Ok(length) => {
                self.unread.extend_from_slice(&chunk[..length]);
                true
            }
            Err(rustix::io::Errno::AGAIN) => true,
            Err(error) => panic!("cannot read the terminal: {error}"),
        }
    }
}

/// Waits until something can be read, or the deadline has passed.
pub(crate) fn readable(fd: &OwnedFd, deadline: Instant) -> bool {
    let patience = deadline.saturating_duration_since(Instant::now());
    let patience = Timespec::try_from(patience).expect("minutes fit");
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&patience)).expect("poll works") > 0
}
