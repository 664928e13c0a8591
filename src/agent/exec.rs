//! A command in the guest, and the user's streams.
//!
//! ```text
//!   input ──▶ (as far as the agent has room) ──▶ to_guest ──▶ connection
//!   output, error ◀── to_output, to_error ◀─────────────────── frames       one thread, one poll(2)
//!   resized, stop: signals
//! ```
//! Invariants: all buffers are bounded, so that a side that does not read slows the other down; a local
//! terminal is raw exactly while [`relay`] runs with a terminal in the guest; all that the command wrote
//! is written before [`relay`] returns its end. Whenever it returns, the connection ends, and so does the
//! command.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cocoon_agent::frame::{self, BODY_MAX, Decoder, Frame, FrameError};
use cocoon_agent::protocol::{Ending, FromCommand, INPUT_WINDOW, TerminalSize, ToCommand};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::AgentError;
use super::channel::Channel;
use crate::sys::tty::{self, RawMode};

/// Bytes of output that wait for the user before the guest has to wait.
const WAITING_MAX: usize = 256 << 10;

/// What the user brings to a command.
#[derive(Clone, Copy, Debug)]
pub struct Session<'a> {
    /// The command's input, if it shall have one.
    pub input: Option<BorrowedFd<'a>>,
    /// Where its output goes.
    pub output: BorrowedFd<'a>,
    /// Where its errors go.
    pub error: BorrowedFd<'a>,
    /// Whether it has a terminal: then a terminal at the input is raw, and sizes are forwarded.
    pub tty: bool,
    /// Readable when the window has another size.
    pub resized: BorrowedFd<'a>,
    /// Readable when the user wants to stop.
    pub stop: BorrowedFd<'a>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecEnd {
    /// With this exit code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

impl ExecEnd {
    /// The code with which a shell would end.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128_u8.saturating_add(signal),
        }
    }
}

/// Size of the user's terminal: that of the output, or else of the input.
pub fn terminal_size(output: BorrowedFd<'_>, input: Option<BorrowedFd<'_>>) -> TerminalSize {
    let size = tty::window_size(output).or_else(|error| match input {
        Some(input) => tty::window_size(input),
        None => Err(error),
    });
    let size = size.ok().filter(|size| size.is_known());
    size.map_or(TerminalSize::default(), |size| TerminalSize {
        rows: size.rows,
        cols: size.cols,
    })
}

/// Relays until the command ends.
pub(super) fn relay(channel: &Channel<'_>, session: &Session<'_>) -> Result<ExecEnd, AgentError> {
    let local = |action| move |source| AgentError::Local { action, source };
    let raw = match session.input {
        Some(input) if session.tty && tty::is_terminal(input) => {
            Some(RawMode::enter(input).map_err(local("prepare the local terminal"))?)
        }
        _ => None,
    };
    let mut relay = Relay {
        channel,
        session,
        input: session.input,
        room: INPUT_WINDOW,
        decoder: Decoder::default(),
        to_guest: VecDeque::new(),
        output: Local::new(session.output).map_err(local("write the command's output"))?,
        error: Local::new(session.error).map_err(local("write the command's errors"))?,
        end: None,
    };
    if session.tty {
        relay.send_size()?;
    }
    let end = relay.run();
    drop(raw);
    end
}

/// A local stream and what waits for it.
struct Local {
    fd: OwnedFd,
    waiting: VecDeque<u8>,
}

impl Local {
    fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self {
            fd: tty::writer_of(fd)?,
            waiting: VecDeque::new(),
        })
    }

    fn write(&mut self) -> Result<(), AgentError> {
        while !self.waiting.is_empty() {
            match rustix::io::write(&self.fd, self.waiting.as_slices().0) {
                Ok(written) => drop(self.waiting.drain(..written)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => {
                    return Err(AgentError::Local {
                        action: "write the command's output",
                        source: error.into(),
                    });
                }
            }
        }
        Ok(())
    }
}

struct Relay<'a> {
    channel: &'a Channel<'a>,
    session: &'a Session<'a>,
    /// The input, until its end.
    input: Option<BorrowedFd<'a>>,
    /// Bytes of input that the agent still takes.
    room: usize,
    decoder: Decoder,
    to_guest: VecDeque<u8>,
    output: Local,
    error: Local,
    end: Option<Ending>,
}

/// What poll found.
struct Found {
    stop: PollFlags,
    resized: PollFlags,
    input: PollFlags,
    guest: PollFlags,
}

impl Relay<'_> {
    fn run(&mut self) -> Result<ExecEnd, AgentError> {
        loop {
            let is_written = self.output.waiting.is_empty() && self.error.waiting.is_empty();
            match self.end {
                Some(Ending::Code(code)) if is_written => return Ok(ExecEnd::Code(code)),
                Some(Ending::Signal(signal)) if is_written => return Ok(ExecEnd::Signal(signal)),
                _ => {}
            }
            let found = self.wait()?;
            if !found.stop.is_empty() {
                return Err(AgentError::Interrupted);
            }
            if !found.resized.is_empty() {
                // Before the size is read, so that a signal in between is not missed.
                let _ = rustix::io::read(self.session.resized, &mut [0; 64]);
                self.send_size()?;
            }
            if !found.input.is_empty() {
                self.take_input()?;
            }
            self.send()?;
            if !found.guest.is_empty() && self.end.is_none() {
                self.receive()?;
            }
            self.output.write()?;
            self.error.write()?;
        }
    }

    fn wait(&self) -> Result<Found, AgentError> {
        let nothing = PollFlags::empty();
        let only_if = |wanted, flags| if wanted { flags } else { nothing };
        let waiting = self.output.waiting.len() + self.error.waiting.len();
        let guest = only_if(self.end.is_none() && waiting < WAITING_MAX, PollFlags::IN)
            | only_if(!self.to_guest.is_empty(), PollFlags::OUT);
        let input = self
            .input
            .filter(|_| self.room > 0 && self.to_guest.len() < BODY_MAX);
        let resized = Some(self.session.resized).filter(|_| self.session.tty);
        // Poll reports the end of a descriptor also to who did not ask: leave out what is not asked.
        let wanted = [
            Some((self.session.stop, PollFlags::IN)),
            resized.map(|fd| (fd, PollFlags::IN)),
            input.map(|fd| (fd, PollFlags::IN)),
            Some((self.channel.as_fd(), guest)).filter(|_| !guest.is_empty()),
            Some((self.output.fd.as_fd(), PollFlags::OUT))
                .filter(|_| !self.output.waiting.is_empty()),
            Some((self.error.fd.as_fd(), PollFlags::OUT))
                .filter(|_| !self.error.waiting.is_empty()),
        ];
        let some = wanted.iter().flatten();
        let mut fds: Vec<_> = some
            .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
            .collect();
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                return Err(AgentError::Local {
                    action: "wait for the command",
                    source: error.into(),
                });
            }
        }
        let mut found = fds.iter().map(PollFd::revents);
        let [stop, resized, input, guest, ..] =
            wanted.map(|entry| entry.and_then(|_| found.next()).unwrap_or(nothing));
        Ok(Found {
            stop,
            resized,
            input,
            guest,
        })
    }

    fn queue(&mut self, header: &ToCommand, body: &[u8]) -> Result<(), AgentError> {
        self.to_guest
            .extend(frame::encode(header, body).map_err(AgentError::of_frame)?);
        Ok(())
    }

    fn send_size(&mut self) -> Result<(), AgentError> {
        let size = terminal_size(self.session.output, self.session.input);
        match size == TerminalSize::default() {
            true => Ok(()),
            false => self.queue(&ToCommand::Resize(size), b""),
        }
    }

    fn take_input(&mut self) -> Result<(), AgentError> {
        let Some(input) = self.input else {
            return Ok(());
        };
        let mut buffer = vec![0; BODY_MAX.min(self.room)];
        match rustix::io::read(input, buffer.as_mut_slice()) {
            // EIO is what a terminal says whose other end is gone.
            Ok(0) | Err(Errno::IO) => {
                self.input = None;
                self.queue(&ToCommand::InputEnd, b"")
            }
            Ok(read) => {
                self.room -= read;
                self.queue(&ToCommand::Input, &buffer[..read])
            }
            Err(Errno::INTR | Errno::AGAIN) => Ok(()),
            Err(error) => Err(AgentError::Local {
                action: "read the command's input",
                source: error.into(),
            }),
        }
    }

    fn send(&mut self) -> Result<(), AgentError> {
        while !self.to_guest.is_empty() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(self.channel, self.to_guest.as_slices().0, flags) {
                Ok(sent) => drop(self.to_guest.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // The command has ended; what it said before is still to be read.
                Err(_) => {
                    self.input = None;
                    self.to_guest.clear();
                }
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(), AgentError> {
        let mut buffer = [0; 64 << 10];
        match self.channel.stream().read(&mut buffer) {
            Ok(0) => return Err(AgentError::of_frame(FrameError::Cut)),
            Ok(read) => self.decoder.push(&buffer[..read]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(AgentError::Lost(error)),
        }
        while let Some(frame) = self.decoder.take().map_err(AgentError::of_frame)? {
            self.obey(frame)?;
        }
        Ok(())
    }

    fn obey(&mut self, frame: Frame) -> Result<(), AgentError> {
        match frame.header().map_err(AgentError::of_frame)? {
            // What comes after the end is nobody's.
            _ if self.end.is_some() => {}
            FromCommand::Output => self.output.waiting.extend(frame.body),
            FromCommand::Error => self.error.waiting.extend(frame.body),
            FromCommand::InputTaken(bytes) => {
                let room = self.room.saturating_add(bytes as usize);
                self.room = room.min(INPUT_WINDOW);
            }
            FromCommand::Ended(ending) => {
                self.end = Some(ending);
                self.input = None;
                self.to_guest.clear();
            }
        }
        Ok(())
    }
}
