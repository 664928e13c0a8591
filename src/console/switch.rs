//! The hub's thread: one loop around one poll(2).
//!
//! ```text
//!   wait ──▶ output to log, history, viewers ──▶ input from viewers ──▶ commands ──▶ settle ─┐
//!     ▲                                                                                      │
//!     └──────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//! Invariants: only poll waits; a descriptor that poll would report without pause is left out of it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::history::History;
use super::log::ConsoleLog;
use super::protocol::{self, Closing};
use super::socket::ConsoleSocket;
use super::terminal::Terminal;
use super::viewer::Viewer;

/// Viewers at a time: more than people look at one VM, and with [`super::viewer`]'s bound 32 MiB.
pub(super) const VIEWERS_MAX: usize = 32;

/// How long no one is accepted after accept(2) failed, which it does when descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How long the end may take, so that a viewer that does not read cannot keep a VM process alive.
pub(super) const END_MAX: Duration = Duration::from_secs(1);

/// How much output is still taken when the hub stops: more than a kernel holds in a pty. A guest
/// that prints on and on cannot keep the hub from stopping.
const LAST_WORDS_MAX: usize = 256 << 10;

/// What the handle asks for.
#[derive(Debug)]
pub(super) enum Command {
    /// Go on with this terminal.
    ReplaceTerminal(Terminal),
    /// End.
    Stop,
}

/// The thread's end of what it shares with the handle.
#[derive(Debug)]
pub(super) struct Link {
    /// An eventfd, readable when there are commands.
    pub(super) wake: Arc<OwnedFd>,
    /// The commands.
    pub(super) commands: Receiver<Command>,
    /// The number of viewers who watch.
    pub(super) viewers: Arc<AtomicUsize>,
}

/// The thread's own state.
#[derive(Debug)]
pub(super) struct Switch {
    terminal: Terminal,
    socket: ConsoleSocket,
    accept_again: Option<Instant>,
    viewers: Vec<Viewer>,
    history: History,
    log: ConsoleLog,
    link: Link,
}

/// What poll found something for.
#[derive(Clone, Copy, Debug)]
enum Source {
    Wake,
    Terminal,
    Socket,
    Viewer(usize),
}

impl Switch {
    pub(super) fn new(
        terminal: Terminal,
        socket: ConsoleSocket,
        log: ConsoleLog,
        link: Link,
    ) -> Self {
        Self {
            terminal,
            socket,
            accept_again: None,
            viewers: Vec::new(),
            history: History::default(),
            log,
            link,
        }
    }

    /// Works until the handle says stop.
    pub(super) fn run(mut self) {
        loop {
            let found = match self.wait() {
                Ok(found) => found,
                Err(error) => {
                    tracing::error!(%error, "the console hub cannot wait for input and ends");
                    break;
                }
            };
            let now = Instant::now();
            for (source, flags) in found {
                match source {
                    Source::Wake => drop(rustix::io::read(&*self.link.wake, &mut [0; 8])),
                    Source::Terminal => drop(self.take_output(now)),
                    Source::Socket => self.accept(now),
                    Source::Viewer(index) => {
                        if let Some(viewer) = self.viewers.get_mut(index) {
                            viewer.handle(flags, &mut self.terminal, now);
                        }
                    }
                }
            }
            if self.obey() {
                break;
            }
            self.settle(now);
        }
        self.end();
    }

    /// Waits until something can be done, and returns what.
    fn wait(&self) -> io::Result<Vec<(Source, PollFlags)>> {
        let now = Instant::now();
        let mut watched = vec![(Source::Wake, self.link.wake.as_fd(), PollFlags::IN)];
        if let Some((fd, flags)) = self.terminal.interest(now) {
            watched.push((Source::Terminal, fd, flags));
        }
        if self.accept_again.is_none_or(|at| at <= now) {
            watched.push((
                Source::Socket,
                self.socket.listener().as_fd(),
                PollFlags::IN,
            ));
        }
        for (index, viewer) in self.viewers.iter().enumerate() {
            if let Some((fd, flags)) = viewer.interest(self.terminal.has_room()) {
                watched.push((Source::Viewer(index), fd, flags));
            }
        }
        let wake = [self.terminal.wakes_at(), self.accept_again]
            .into_iter()
            .chain(self.viewers.iter().map(Viewer::wakes_at))
            .flatten()
            .filter(|at| *at > now)
            .min();
        poll(&watched, wake.map(|at| at - now))
    }

    /// Takes what the guest printed, and returns how many bytes that were.
    fn take_output(&mut self, now: Instant) -> usize {
        let mut buffer = [0; protocol::MAX_PAYLOAD];
        let read = self.terminal.read(&mut buffer, now);
        let output = buffer.get(..read).unwrap_or_default();
        if !output.is_empty() {
            self.log.append(output);
            self.history.push(output);
            let frames: Arc<[u8]> = protocol::output_frames(output).into();
            for viewer in &mut self.viewers {
                viewer.show(&frames, now);
            }
        }
        read
    }

    /// Takes what the guest printed until there is no more, within bounds.
    fn take_last_words(&mut self, now: Instant) {
        let mut taken = 0;
        while taken < LAST_WORDS_MAX {
            match self.take_output(now) {
                0 => break,
                read => taken += read,
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        self.accept_again = None;
        let stream = match self.socket.listener().accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    tracing::warn!(%error, "the console hub cannot accept a viewer");
                    self.accept_again = Some(now + ACCEPT_PAUSE);
                }
                return;
            }
        };
        let full = self.viewers.len() >= VIEWERS_MAX;
        let history = if full {
            Vec::new()
        } else {
            self.history.shown()
        };
        match Viewer::new(stream, &history) {
            Ok(mut viewer) if full => viewer.leave(Closing::TooMany, now),
            // Sent to in the next turn, so that it is counted before it hears anything.
            Ok(viewer) => self.viewers.push(viewer),
            Err(error) => tracing::warn!(%error, "the console hub cannot serve a viewer"),
        }
    }

    /// Follows the commands that came, and returns whether the hub is to stop.
    fn obey(&mut self) -> bool {
        loop {
            match self.link.commands.try_recv() {
                Ok(Command::ReplaceTerminal(terminal)) => {
                    self.take_last_words(Instant::now());
                    self.terminal.replace(terminal);
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return true,
                Err(TryRecvError::Empty) => return false,
            }
        }
    }

    /// Passes input on, and forgets the viewers who are over.
    fn settle(&mut self, now: Instant) {
        self.terminal.write_pending(now);
        for viewer in &mut self.viewers {
            if viewer.wakes_at().is_some_and(|at| at <= now) {
                viewer.flush(now);
            }
        }
        self.viewers.retain(|viewer| !viewer.is_over());
        if self.viewers.len() >= VIEWERS_MAX {
            // The last input of those who left, for a guest that does not read, makes room.
            self.viewers.retain(|viewer| !viewer.has_hung_up());
        }
        let watching = self.viewers.iter().filter(|v| v.is_watching()).count();
        self.link.viewers.store(watching, Ordering::Relaxed);
    }

    /// Says goodbye to everyone, within [`END_MAX`].
    fn end(mut self) {
        let end = Instant::now() + END_MAX;
        self.take_last_words(Instant::now());
        for viewer in &mut self.viewers {
            viewer.leave(Closing::Stopped, Instant::now());
        }
        self.link.viewers.store(0, Ordering::Relaxed);
        loop {
            self.viewers.retain(|viewer| !viewer.is_over());
            let left = end.saturating_duration_since(Instant::now());
            if self.viewers.is_empty() || left.is_zero() {
                return;
            }
            let interests = self
                .viewers
                .iter()
                .filter_map(|viewer| viewer.interest(false));
            let watched: Vec<_> = interests.map(|(fd, flags)| ((), fd, flags)).collect();
            if poll(&watched, Some(left)).is_err() {
                return;
            }
            for viewer in &mut self.viewers {
                viewer.flush(Instant::now());
            }
        }
    }
}

/// Waits for at most `timeout` until something is found, and returns what; nothing when a signal
/// or the time ended the wait.
fn poll<S: Copy>(
    watched: &[(S, BorrowedFd<'_>, PollFlags)],
    timeout: Option<Duration>,
) -> io::Result<Vec<(S, PollFlags)>> {
    let mut fds: Vec<_> = watched
        .iter()
        .map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
        .collect();
    // A timeout that the kernel cannot count is as good as none.
    let timeout = timeout.and_then(|time| Timespec::try_from(time).ok());
    match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    }
    Ok(watched
        .iter()
        .zip(&fds)
        .map(|((source, ..), fd)| (*source, fd.revents()))
        .filter(|(_, found)| !found.is_empty())
        .collect())
}
