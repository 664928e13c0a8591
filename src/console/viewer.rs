//! One viewer, as the hub sees it.
//!
//! ```text
//!   Watching ──too slow, bad frame, end──▶ Leaving(until) ──flushed, late or gone──▶ Over
//!       └─────hung up──▶ HungUp ──all that it typed is read─────────────────────────────▶┘
//! ```
//! What someone typed before they left is the guest's, also when the guest reads it later.
//! Invariants: nothing here blocks; a viewer's outbox is bounded; a viewer is let go of between two
//! frames, so it can always read why.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::protocol::{self, Closing, Decoder, FromViewer};
use super::terminal::Terminal;

/// How far a viewer may fall behind: a minute of a 115,200 baud line, more than a boot prints.
/// Counts what the frames take in memory.
const OUTBOX_MAX: usize = 1 << 20;

/// What one waiting frame takes beside its bytes: its place in the queue and its reference counts.
const FRAME_OVERHEAD: usize = 64;

/// How long a viewer that is let go of may take to read why, behind a link that stalls.
const FAREWELL: Duration = Duration::from_secs(10);

/// One connection to the hub's socket.
#[derive(Debug)]
pub(super) struct Viewer {
    stream: UnixStream,
    decoder: Decoder,
    outbox: Outbox,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Watching,
    HungUp,
    Leaving { until: Instant },
    Over,
}

impl Viewer {
    /// A viewer who is to be shown `history` first.
    ///
    /// # Errors
    /// The socket cannot be made non-blocking.
    pub(super) fn new(stream: UnixStream, history: &[u8]) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let mut outbox = Outbox::default();
        if !history.is_empty() {
            outbox.push(protocol::output_frames(history).into());
        }
        outbox.push(protocol::history_end_frame().into());
        Ok(Self {
            stream,
            decoder: Decoder::default(),
            outbox,
            state: State::Watching,
        })
    }

    /// Whether the viewer sees the console, and is not on its way out.
    pub(super) fn is_watching(&self) -> bool {
        self.state == State::Watching
    }

    /// Whether the viewer is there only for its last input.
    pub(super) fn has_hung_up(&self) -> bool {
        self.state == State::HungUp
    }

    /// Whether nothing more can be done for the viewer.
    pub(super) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// What to poll for. Poll reports a hang-up even to who asks for nothing, so a viewer that hung
    /// up is left out of it until its input has room.
    pub(super) fn interest(&self, room_for_input: bool) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let reads = room_for_input && matches!(self.state, State::Watching | State::HungUp);
        if self.state == State::HungUp && !reads {
            return None;
        }
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, reads);
        flags.set(PollFlags::OUT, !self.outbox.is_empty());
        Some((self.stream.as_fd(), flags))
    }

    /// When the viewer must be looked at even if nothing happens.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        match self.state {
            State::Leaving { until } => Some(until),
            State::Watching | State::HungUp | State::Over => None,
        }
    }

    /// Queues output frames and sends what the socket takes. Who falls too far behind leaves.
    pub(super) fn show(&mut self, frames: &Arc<[u8]>, now: Instant) {
        if !self.is_watching() {
            return;
        }
        self.outbox.push(Arc::clone(frames));
        self.flush(now);
        if self.outbox.weight > OUTBOX_MAX {
            self.outbox.forget_unsent();
            self.leave(Closing::TooSlow, now);
        }
    }

    /// Lets go of the viewer once it has been told why.
    pub(super) fn leave(&mut self, reason: Closing, now: Instant) {
        match self.state {
            State::Watching => {
                self.outbox.push(protocol::closing_frame(reason).into());
                let until = now + FAREWELL;
                self.state = State::Leaving { until };
                self.flush(now);
            }
            State::HungUp => self.state = State::Over,
            State::Leaving { .. } | State::Over => {}
        }
    }

    /// Does what poll found to do.
    pub(super) fn handle(&mut self, found: PollFlags, terminal: &mut Terminal, now: Instant) {
        let reads = matches!(self.state, State::Watching | State::HungUp);
        if found.contains(PollFlags::IN) && reads && terminal.has_room() {
            self.receive(terminal, now);
        } else if found.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
            self.hang_up();
        }
        if found.contains(PollFlags::OUT) {
            self.flush(now);
        }
    }

    fn hang_up(&mut self) {
        self.outbox = Outbox::default();
        self.state = match self.state {
            State::Watching | State::HungUp => State::HungUp,
            State::Leaving { .. } | State::Over => State::Over,
        };
    }

    fn receive(&mut self, terminal: &mut Terminal, now: Instant) {
        let mut buffer = [0; 8 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.state = State::Over,
            Ok(read) => {
                self.decoder.push(buffer.get(..read).unwrap_or_default());
                if let Err(error) = self.take_frames(terminal) {
                    tracing::warn!(%error, "a console viewer is let go of");
                    self.leave(Closing::BadFrame, now);
                }
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                _ => self.state = State::Over,
            },
        }
    }

    fn take_frames(&mut self, terminal: &mut Terminal) -> Result<(), protocol::ProtocolError> {
        while let Some(frame) = self.decoder.next_frame()? {
            match frame {
                FromViewer::Input(bytes) => terminal.queue(&bytes),
                FromViewer::Resize(size) => terminal.resize(size),
            }
        }
        Ok(())
    }

    /// Sends what the socket takes, and notices the end of a farewell.
    pub(super) fn flush(&mut self, now: Instant) {
        if self.outbox.send(&self.stream).is_err() {
            self.hang_up();
        }
        match self.state {
            State::Leaving { until } if self.outbox.is_empty() || now >= until => {
                self.state = State::Over;
            }
            _ => {}
        }
    }
}

/// Frames that wait for a viewer, shared with the outboxes of the others.
#[derive(Debug, Default)]
struct Outbox {
    frames: VecDeque<Arc<[u8]>>,
    /// Bytes of the first frame that are sent.
    sent: usize,
    /// Bytes that `frames` take in memory.
    weight: usize,
}

impl Outbox {
    fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    fn push(&mut self, frames: Arc<[u8]>) {
        self.weight += frames.len() + FRAME_OVERHEAD;
        self.frames.push_back(frames);
    }

    fn pop(&mut self) {
        if let Some(frames) = self.frames.pop_front() {
            self.weight -= frames.len() + FRAME_OVERHEAD;
            self.sent = 0;
        }
    }

    /// Drops all but what is being sent.
    fn forget_unsent(&mut self) {
        let begun = usize::from(self.sent > 0);
        while self.frames.len() > begun {
            if let Some(frames) = self.frames.pop_back() {
                self.weight -= frames.len() + FRAME_OVERHEAD;
            }
        }
    }

    fn send(&mut self, to: &UnixStream) -> io::Result<()> {
        while let Some(frames) = self.frames.front() {
            let rest = frames.get(self.sent..).unwrap_or_default();
            // Not write: a viewer that is gone must not raise SIGPIPE in the VM process.
            match rustix::net::send(to, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) if sent == rest.len() => self.pop(),
                Ok(sent) => self.sent += sent,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::protocol::FromHub;

    #[test]
    fn a_viewer_that_does_not_read_takes_bounded_memory_and_learns_why_it_was_let_go() {
        let (hub, mut user) = UnixStream::pair().unwrap();
        let mut viewer = Viewer::new(hub, b"history").unwrap();
        let now = Instant::now();
        let piece: Arc<[u8]> = protocol::output_frames(&[7; 4000]).into();
        let mut pieces = 0;
        while viewer.is_watching() {
            viewer.show(&piece, now);
            pieces += 1;
            assert!(viewer.outbox.weight <= OUTBOX_MAX + piece.len() + FRAME_OVERHEAD);
            assert!(pieces < 10_000, "never let go");
        }
        assert!(viewer.outbox.frames.len() <= 2);

        user.set_nonblocking(true).unwrap();
        let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
        let mut buffer = [0; 8192];
        while let Ok(read) = user.read(&mut buffer) {
            if read == 0 {
                break;
            }
            decoder.push(&buffer[..read]);
            while let Some(frame) = decoder.next_frame::<FromHub>().unwrap() {
                frames.push(frame);
            }
            viewer.flush(now);
        }
        assert_eq!(frames[0], FromHub::Output(b"history".to_vec()));
        assert_eq!(frames.last(), Some(&FromHub::Closing(Closing::TooSlow)));
        assert!(viewer.is_over());
    }

    #[test]
    fn many_tiny_frames_are_bounded_by_what_they_take_in_memory() {
        let (hub, _user) = UnixStream::pair().unwrap();
        let mut viewer = Viewer::new(hub, b"").unwrap();
        let piece: Arc<[u8]> = protocol::output_frames(b"x").into();
        let mut most = 0;
        while viewer.is_watching() {
            viewer.show(&piece, Instant::now());
            most = most.max(viewer.outbox.frames.len());
        }
        assert!(most <= OUTBOX_MAX / FRAME_OVERHEAD);
    }

    #[test]
    fn a_farewell_ends_at_its_time_even_if_no_one_reads() {
        let (hub, _user) = UnixStream::pair().unwrap();
        let mut viewer = Viewer::new(hub, b"").unwrap();
        let piece: Arc<[u8]> = protocol::output_frames(&[7; 4000]).into();
        while viewer.is_watching() {
            viewer.show(&piece, Instant::now());
        }
        let until = viewer.wakes_at().unwrap();
        viewer.flush(until - Duration::from_millis(1));
        assert!(!viewer.is_over());
        viewer.flush(until);
        assert!(viewer.is_over());
    }
}
