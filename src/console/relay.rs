//! What `cocoon vm console` does between attaching and leaving.
//!
//! ```text
//!   input ──▶ escape keys ──▶ to_hub ──▶ viewer socket
//!   output ◀───── to_local ◀─────────── frames ◀──┘        one thread, one poll(2)
//!   resized, interrupted: signals
//! ```
//! Invariants: both buffers are bounded, so a side that does not read slows the other one down
//! instead of filling memory; a local terminal is raw exactly while [`relay`] runs; all that was
//! received before the end is written before [`relay`] returns, except after a detach.
//!
//! **Input that is no terminal** (`echo uptime | cocoon vm console web`) passes line by line as it
//! comes, without raw mode. Its end does not end the relay, because the guest's answer is still to
//! come: the output goes on until the console is over, a signal comes, or, with
//! [`Session::linger`], the guest has been silent for that long.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::escape::{self, Action, EscapeByte, EscapeKeys};
use super::protocol::{self, Closing, Decoder, FromHub, ProtocolError};
use super::signals::Signals;
use crate::sys::tty::{self, RawMode};

/// Bytes that wait for one side before the other one has to wait: a screen full of colours.
const WAITING_MAX: usize = 64 << 10;

/// One read.
const READ_MAX: usize = 8 << 10;

/// What the user brings to a console.
#[derive(Debug)]
pub struct Session<'a> {
    /// Where the user types; made raw if it is a terminal.
    pub input: BorrowedFd<'a>,
    /// Where the guest's output goes. The guest gets its window size, or else the input's.
    pub output: BorrowedFd<'a>,
    /// The escape byte; without one every byte of the input is the guest's.
    pub escape: Option<EscapeByte>,
    /// Whether to show what was printed before.
    pub history: bool,
    /// How long the guest must be silent, after input that is no terminal has ended, for the relay
    /// to end; without it the relay goes on.
    pub linger: Option<Duration>,
    /// The caught signals, if any are.
    pub signals: Option<&'a Signals>,
}

/// How a relay ended, when nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayEnd {
    /// The user left with the escape keys; the VM keeps running.
    Detached,
    /// The VM stopped, or its process is gone.
    ConsoleClosed,
    /// The user's terminal is gone, or other input has ended and the guest was silent since.
    InputClosed,
    /// A signal asked the process to end.
    Interrupted,
}

/// A failure of the relay. The local terminal is restored.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The local terminal or the connection cannot be prepared.
    #[error("cannot prepare the local terminal for the console")]
    Prepare(#[source] io::Error),
    /// The process cannot wait for input.
    #[error("cannot wait for the console")]
    Wait(#[source] io::Error),
    /// The user's input failed.
    #[error("cannot read the input for the console")]
    ReadInput(#[source] io::Error),
    /// The output is closed or failed.
    #[error("cannot write the console's output")]
    WriteOutput(#[source] io::Error),
    /// The connection to the VM process failed.
    #[error("cannot receive from the VM's console")]
    Receive(#[source] io::Error),
    /// The hub does not speak this version's format.
    #[error("cannot understand the VM's console")]
    Protocol(#[from] ProtocolError),
    /// The hub let go of this viewer.
    #[error("the VM's console let go of this viewer: {}", sentence(.0))]
    LetGo(Closing),
}

fn sentence(reason: &Closing) -> &'static str {
    match reason {
        Closing::Stopped => "the VM stopped",
        Closing::TooSlow => "it fell too far behind the output; attach again",
        Closing::TooMany => "too many viewers are attached",
        Closing::BadFrame => "it did not understand what this version of cocoon sent",
    }
}

/// Relays between the user and the hub behind `viewer` until one of them ends it. Blocks; restores
/// the local terminal before it returns. What the process writes to that terminal meanwhile needs
/// CR LF at line ends.
///
/// # Errors
/// A local descriptor failed, or the hub let go of this viewer.
pub fn relay(viewer: UnixStream, session: &Session<'_>) -> Result<RelayEnd, RelayError> {
    let prepare = || {
        viewer.set_nonblocking(true)?;
        let output = tty::writer_of(session.output)?;
        let raw = match tty::is_terminal(session.input) {
            true => Some(RawMode::enter(session.input)?),
            false => None,
        };
        Ok((output, raw))
    };
    let (output, raw) = prepare().map_err(RelayError::Prepare)?;
    let mut relay = Relay {
        viewer: &viewer,
        session,
        output,
        is_terminal: raw.is_some(),
        keys: session.escape.map(EscapeKeys::new),
        decoder: Decoder::default(),
        to_hub: VecDeque::new(),
        to_local: VecDeque::new(),
        hub_takes: true,
        showing: session.history,
        input_ended: None,
        end: None,
    };
    relay.send_size();
    let end = relay.run();
    drop(raw);
    end
}

#[derive(Debug)]
struct Relay<'a> {
    viewer: &'a UnixStream,
    session: &'a Session<'a>,
    output: OwnedFd,
    /// Whether the input is a terminal.
    is_terminal: bool,
    keys: Option<EscapeKeys>,
    decoder: Decoder,
    to_hub: VecDeque<u8>,
    to_local: VecDeque<u8>,
    /// Whether the hub still reads.
    hub_takes: bool,
    /// Whether output is shown, which without history it is only after the history.
    showing: bool,
    /// When the input ended, or the guest last printed since.
    input_ended: Option<Instant>,
    /// How the hub ended the connection; what is left is to write.
    end: Option<Result<RelayEnd, RelayError>>,
}

/// What poll found, for each descriptor.
#[derive(Clone, Copy, Debug)]
struct Found {
    interrupted: PollFlags,
    resized: PollFlags,
    input: PollFlags,
    viewer: PollFlags,
    output: PollFlags,
}

impl Relay<'_> {
    fn run(&mut self) -> Result<RelayEnd, RelayError> {
        loop {
            if self.to_local.is_empty() {
                if let Some(end) = self.end.take() {
                    return end;
                }
                if self.silence_left().is_some_and(|left| left.is_zero()) {
                    return Ok(RelayEnd::InputClosed);
                }
            }
            let found = self.wait().map_err(RelayError::Wait)?;
            if !found.interrupted.is_empty() {
                return Ok(RelayEnd::Interrupted);
            }
            if !found.resized.is_empty() {
                self.resize();
            }
            if !found.input.is_empty()
                && let Some(end) = self.take_input()?
            {
                return Ok(end);
            }
            if found.viewer.intersects(PollFlags::OUT) {
                self.send();
            }
            if found
                .viewer
                .intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)
            {
                self.receive();
            }
            if !found.output.is_empty() {
                self.write()?;
            }
        }
    }

    fn wait(&self) -> io::Result<Found> {
        let nothing = PollFlags::empty();
        let only_if = |wanted, flags| if wanted { flags } else { nothing };
        let receives = self.end.is_none() && self.to_local.len() < WAITING_MAX;
        let sends = self.hub_takes && !self.to_hub.is_empty();
        let wants_input = self.input_ended.is_none() && self.to_hub.len() < WAITING_MAX;
        let viewer_flags = only_if(receives, PollFlags::IN) | only_if(sends, PollFlags::OUT);
        let output_flags = only_if(!self.to_local.is_empty(), PollFlags::OUT);
        let signals = self.session.signals;

        // Poll reports the end of a descriptor also to who did not ask: leave out what is not asked.
        let wanted = [
            signals.map(|s| (s.interrupted(), PollFlags::IN)),
            signals.map(|s| (s.resized(), PollFlags::IN)),
            wants_input.then_some((self.session.input, PollFlags::IN)),
            Some((self.viewer.as_fd(), viewer_flags)).filter(|_| !viewer_flags.is_empty()),
            Some((self.output.as_fd(), output_flags)).filter(|_| !output_flags.is_empty()),
        ];
        let mut fds: Vec<_> = wanted
            .iter()
            .flatten()
            .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
            .collect();
        let left = self.silence_left().filter(|_| self.to_local.is_empty());
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut found = fds.iter().map(PollFd::revents);
        let [interrupted, resized, input, viewer, output] = wanted.map(|entry| {
            entry
                .and_then(|_| found.next())
                .unwrap_or(PollFlags::empty())
        });
        Ok(Found {
            interrupted,
            resized,
            input,
            viewer,
            output,
        })
    }

    /// How long the guest must still be silent, once that counts.
    fn silence_left(&self) -> Option<Duration> {
        let since = self.input_ended?;
        let linger = self.session.linger.filter(|_| self.to_hub.is_empty())?;
        Some(linger.saturating_sub(since.elapsed()))
    }

    fn resize(&mut self) {
        if let Some(signals) = self.session.signals {
            // Before the size is read, so that a signal in between is not missed.
            let _ = rustix::io::read(signals.resized(), &mut [0; 64]);
        }
        self.send_size();
    }

    fn send_size(&mut self) {
        let size =
            tty::window_size(self.session.output).or_else(|_| tty::window_size(self.session.input));
        if let Ok(size) = size
            && size.is_known()
        {
            self.to_hub.extend(protocol::resize_frame(size));
        }
    }

    fn take_input(&mut self) -> Result<Option<RelayEnd>, RelayError> {
        let mut buffer = [0; READ_MAX];
        let bytes = match rustix::io::read(self.session.input, &mut buffer) {
            Ok(read) => buffer.get(..read).unwrap_or_default(),
            Err(Errno::INTR | Errno::AGAIN) => return Ok(None),
            // What a terminal says whose other end is gone.
            Err(Errno::IO) if self.is_terminal => &[],
            Err(error) => return Err(RelayError::ReadInput(error.into())),
        };
        if bytes.is_empty() && self.is_terminal {
            return Ok(Some(RelayEnd::InputClosed));
        }
        let actions = match &mut self.keys {
            None => vec![Action::Send(bytes.to_vec())],
            Some(keys) if bytes.is_empty() => keys.finish().into_iter().collect(),
            Some(keys) => keys.feed(bytes),
        };
        if bytes.is_empty() {
            self.input_ended = Some(Instant::now());
        }
        for action in actions {
            match action {
                Action::Send(bytes) => self.to_hub.extend(protocol::input_frames(&bytes)),
                Action::Help => self.show_help(),
                Action::Detach => return Ok(Some(self.detach())),
            }
        }
        Ok(None)
    }

    fn show_help(&mut self) {
        if let Some(escape) = self.session.escape {
            self.to_local.extend(escape::help(escape).as_bytes());
        }
    }

    /// Sends what was typed before the escape keys, as far as the hub takes it at once.
    fn detach(&mut self) -> RelayEnd {
        self.send();
        RelayEnd::Detached
    }

    fn send(&mut self) {
        while self.hub_takes && !self.to_hub.is_empty() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(self.viewer, self.to_hub.as_slices().0, flags) {
                Ok(sent) => drop(self.to_hub.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // The hub is gone; what it said before is still to be read.
                Err(_) => {
                    self.hub_takes = false;
                    self.to_hub.clear();
                }
            }
        }
    }

    fn receive(&mut self) {
        if self.end.is_some() {
            return;
        }
        let mut buffer = [0; READ_MAX];
        match rustix::io::read(self.viewer, &mut buffer) {
            // A VM process that was killed says no goodbye.
            Ok(0) | Err(Errno::CONNRESET) => self.end = Some(Ok(RelayEnd::ConsoleClosed)),
            Ok(read) => {
                self.decoder.push(buffer.get(..read).unwrap_or_default());
                if let Err(error) = self.take_frames() {
                    self.end = Some(Err(error));
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => self.end = Some(Err(RelayError::Receive(error.into()))),
        }
    }

    fn take_frames(&mut self) -> Result<(), RelayError> {
        while let Some(frame) = self.decoder.next_frame()? {
            match frame {
                FromHub::Output(bytes) if self.showing => {
                    self.to_local.extend(bytes);
                    self.input_ended = self.input_ended.map(|_| Instant::now());
                }
                FromHub::Output(_) => {}
                FromHub::HistoryEnd => self.showing = true,
                FromHub::Closing(Closing::Stopped) => self.end = Some(Ok(RelayEnd::ConsoleClosed)),
                FromHub::Closing(reason) => return Err(RelayError::LetGo(reason)),
            }
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), RelayError> {
        while !self.to_local.is_empty() {
            match rustix::io::write(&self.output, self.to_local.as_slices().0) {
                Ok(written) => drop(self.to_local.drain(..written)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(RelayError::WriteOutput(error.into())),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
