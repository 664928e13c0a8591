//! `exec`: a command, its streams, and its end.
//!
//! ```text
//!   connection ──Input──▶ to_command ──▶ stdin │ terminal ──▶ command
//!        ▲                (INPUT_WINDOW)                         │
//!        └──── to_host ◀── Output, Error ◀── stdout, stderr ◀────┘     one thread, one poll(2)
//! ```
//! Invariants: both buffers are bounded. The connection is always read, so its end is seen whatever the
//! command does; then the command's process group gets SIGTERM, and after a grace SIGKILL. All that a
//! command wrote before it ended is sent before `Ended`; what it left running in the background is not
//! waited for, and goes on.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::spawn::{self, Streams};
use crate::frame::{self, BODY_MAX, Decoder, FrameError};
use crate::protocol::{Ending, Exec, FromCommand, INPUT_WINDOW, Started, ToCommand};

/// Bytes that wait for the host before the command has to wait.
const TO_HOST_MAX: usize = 256 << 10;

/// How long a command may take to end in order once nobody is there any more.
const TERMINATION_GRACE: Duration = Duration::from_secs(2);

/// How long a terminal's last output may be on its way through the kernel when somebody in the background
/// keeps the terminal open, so that it has no end.
const TERMINAL_REST: Duration = Duration::from_millis(200);

/// What a new terminal takes for the end of input: Ctrl-D.
const END_OF_INPUT: u8 = 4;

/// The kernel's number for "the other end of the terminal is closed" (EIO).
const HUNG_UP: Option<i32> = Some(libc::EIO);

/// Runs a command until it or the connection ends.
pub(super) fn exec(mut connection: File, wanted: &Exec) -> Result<(), FrameError> {
    let running = match spawn::spawn(wanted) {
        Ok(running) => running,
        Err(failure) => return super::answer::<()>(&mut connection, Err(failure)),
    };
    let mut command = Command::new(running.child)?;
    super::answer(
        &mut connection,
        Ok(Started {
            pid: command.child.id(),
        }),
    )?;
    let mut session = Session::new(connection, running.streams)?;
    if session.run(&command)? {
        let ending = command.reap()?;
        set_nonblocking(&session.connection, false)?;
        frame::write(&mut session.connection, &FromCommand::Ended(ending), b"")?;
    }
    // Else: first the terminal hangs up and pipes break, as `session` goes, then `command` goes.
    Ok(())
}

fn set_nonblocking(connection: &File, on: bool) -> std::io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(connection)?;
    flags.set(OFlags::NONBLOCK, on);
    Ok(rustix::fs::fcntl_setfl(connection, flags)?)
}

/// A child that does not outlive this value.
struct Command {
    child: Child,
    /// Readable once the child has ended.
    ended: OwnedFd,
    reaped: bool,
}

impl Command {
    fn new(mut child: Child) -> Result<Self, FrameError> {
        let opened =
            pid_of(&child).map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
        match opened {
            Some(Ok(ended)) => Ok(Self {
                child,
                ended,
                reaped: false,
            }),
            failed => {
                let _ = child.kill();
                let _ = child.wait();
                let error = failed
                    .and_then(Result::err)
                    .map_or(std::io::ErrorKind::Other.into(), Into::into);
                Err(FrameError::Io(error))
            }
        }
    }

    fn reap(&mut self) -> Result<Ending, FrameError> {
        let status = self.child.wait()?;
        self.reaped = true;
        // Linux's codes have 8 bits, and its signals 7.
        let bits = |number: i32| u8::try_from(number & 0xff).unwrap_or(u8::MAX);
        Ok(match (status.code(), status.signal()) {
            (Some(code), _) => Ending::Code(bits(code)),
            (None, signal) => Ending::Signal(bits(signal.unwrap_or(0))),
        })
    }

    /// To the whole group. Its leader is not reaped yet, so its number is nobody else's.
    fn signal(&self, signal: Signal) {
        if let Some(pid) = pid_of(&self.child) {
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        self.signal(Signal::TERM);
        let grace = Timespec::try_from(TERMINATION_GRACE).ok();
        let mut fds = [PollFd::new(&self.ended, PollFlags::IN)];
        // Interrupted or not: what is left is killed.
        let _ = rustix::event::poll(&mut fds, grace.as_ref());
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()).ok()?)
}

/// One stream of the command's output.
struct Output {
    kind: FromCommand,
    file: File,
    is_terminal: bool,
}

struct Session {
    connection: File,
    decoder: Decoder,
    to_host: VecDeque<u8>,
    input: Option<File>,
    to_command: VecDeque<u8>,
    input_ended: bool,
    outputs: Vec<Output>,
    /// The terminal, for its size.
    terminal: Option<File>,
    /// When the command had ended, or last wrote since.
    ended: Option<Instant>,
}

impl Session {
    fn new(connection: File, streams: Streams) -> Result<Self, FrameError> {
        set_nonblocking(&connection, true)?;
        let output = |kind, file, is_terminal| Output {
            kind,
            file,
            is_terminal,
        };
        let (input, terminal, outputs) = match streams {
            Streams::Terminal(file) => (
                Some(file.try_clone()?),
                Some(file.try_clone()?),
                vec![output(FromCommand::Output, file, true)],
            ),
            Streams::Pipes {
                input,
                output: out,
                error,
            } => (
                input,
                None,
                vec![
                    output(FromCommand::Output, out, false),
                    output(FromCommand::Error, error, false),
                ],
            ),
        };
        Ok(Self {
            connection,
            decoder: Decoder::default(),
            to_host: VecDeque::new(),
            input,
            to_command: VecDeque::new(),
            input_ended: false,
            outputs,
            terminal,
            ended: None,
        })
    }

    /// Returns whether the command ended, else the connection did.
    fn run(&mut self, command: &Command) -> Result<bool, FrameError> {
        loop {
            if self.ended.is_some() && self.outputs.is_empty() && self.to_host.is_empty() {
                return Ok(true);
            }
            let [host, ended, input] = self.wait(command)?;
            if host.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::RDHUP) {
                return Ok(false);
            }
            if host.contains(PollFlags::IN) && !self.receive()? {
                return Ok(false);
            }
            if !ended.is_empty() && self.ended.is_none() {
                self.ended = Some(Instant::now());
            }
            if !input.is_empty() {
                self.feed()?;
            }
            self.collect()?;
            self.send()?;
        }
    }

    /// Waits, and returns what happened to the connection, to the command, and to its input.
    fn wait(&self, command: &Command) -> Result<[PollFlags; 3], FrameError> {
        let nothing = PollFlags::empty();
        let mut host = PollFlags::IN | PollFlags::RDHUP;
        host.set(PollFlags::OUT, !self.to_host.is_empty());
        let mut fds = vec![PollFd::new(&self.connection, host)];
        let feeds = self.input.as_ref().filter(|_| !self.to_command.is_empty());
        // Poll reports an end also to who did not ask: leave out what has nothing to tell.
        let watches_end = self.ended.is_none();
        if watches_end {
            fds.push(PollFd::new(&command.ended, PollFlags::IN));
        }
        if let Some(input) = feeds {
            fds.push(PollFd::new(input, PollFlags::OUT));
        }
        if self.to_host.len() < TO_HOST_MAX {
            fds.extend(
                self.outputs
                    .iter()
                    .map(|output| PollFd::new(&output.file, PollFlags::IN)),
            );
        }
        // A terminal that somebody keeps open has no end to wait for.
        let rest = self
            .ended
            .map(|since| TERMINAL_REST.saturating_sub(since.elapsed()));
        let rest = rest.filter(|_| self.to_host.is_empty());
        let timeout = rest.and_then(|rest| Timespec::try_from(rest).ok());
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(FrameError::Io(error.into())),
        }
        let mut found = fds.iter().map(PollFd::revents);
        let mut next_if = |is_there| match is_there {
            true => found.next().unwrap_or(nothing),
            false => nothing,
        };
        Ok([
            next_if(true),
            next_if(watches_end),
            next_if(feeds.is_some()),
        ])
    }

    /// Reads from the host; false at its end.
    fn receive(&mut self) -> Result<bool, FrameError> {
        let mut buffer = [0; 16 << 10];
        match self.connection.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(read) => self.decoder.push(&buffer[..read]),
            Err(error) if would_wait(&error) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
        while let Some(frame) = self.decoder.take()? {
            match frame.header()? {
                ToCommand::Input => {
                    if self.input.is_none() {
                        // Closed by the command; the host learns that it need not keep it.
                        self.taken(frame.body.len())?;
                    } else if self.to_command.len() + frame.body.len() > INPUT_WINDOW {
                        return Err(FrameError::TooLarge {
                            part: "input",
                            bytes: self.to_command.len() + frame.body.len(),
                        });
                    } else {
                        self.to_command.extend(frame.body);
                        self.feed()?;
                    }
                }
                ToCommand::InputEnd => {
                    // A terminal has no end of input but its character for it.
                    if self.terminal.is_some() && self.input.is_some() {
                        self.to_command.push_back(END_OF_INPUT);
                    }
                    self.input_ended = true;
                    self.feed()?;
                }
                ToCommand::Resize(size) => {
                    if let Some(terminal) = &self.terminal {
                        let _ = spawn::set_size(terminal, size);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Gives the command of its input what it takes.
    fn feed(&mut self) -> Result<(), FrameError> {
        let Some(input) = &mut self.input else {
            return Ok(());
        };
        let mut taken = 0;
        let mut is_open = true;
        while !self.to_command.is_empty() {
            match input.write(self.to_command.as_slices().0) {
                Ok(written) => {
                    self.to_command.drain(..written);
                    taken += written;
                }
                Err(error) if would_wait(&error) => break,
                // The command closed it.
                Err(_) => {
                    is_open = false;
                    break;
                }
            }
        }
        if !is_open {
            taken += self.to_command.len();
            self.to_command.clear();
        }
        if !is_open || (self.input_ended && self.to_command.is_empty()) {
            self.input = None;
        }
        self.taken(taken)
    }

    fn taken(&mut self, bytes: usize) -> Result<(), FrameError> {
        // Of a terminal's end of input the host knows nothing: at most one byte too many is said.
        if bytes > 0 {
            let count = u32::try_from(bytes).unwrap_or(u32::MAX);
            self.to_host
                .extend(frame::encode(&FromCommand::InputTaken(count), b"")?);
        }
        Ok(())
    }

    /// Takes the command's output, as far as there is room for it.
    fn collect(&mut self) -> Result<(), FrameError> {
        let mut buffer = vec![0; BODY_MAX];
        let mut index = 0;
        while let Some(output) = self.outputs.get_mut(index) {
            if self.to_host.len() >= TO_HOST_MAX {
                return Ok(());
            }
            let is_over = match output.file.read(&mut buffer) {
                Ok(0) => true,
                Ok(read) => {
                    self.to_host
                        .extend(frame::encode(&output.kind, &buffer[..read])?);
                    self.ended = self.ended.map(|_| Instant::now());
                    continue;
                }
                Err(error) if would_wait(&error) => match self.ended {
                    // A pipe has what was written to it; a terminal may get it a moment later.
                    Some(since) => !output.is_terminal || since.elapsed() >= TERMINAL_REST,
                    None => false,
                },
                Err(error) if output.is_terminal && error.raw_os_error() == HUNG_UP => true,
                Err(error) => return Err(error.into()),
            };
            match is_over {
                true => drop(self.outputs.remove(index)),
                false => index += 1,
            }
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), FrameError> {
        while !self.to_host.is_empty() {
            match self.connection.write(self.to_host.as_slices().0) {
                Ok(written) => drop(self.to_host.drain(..written)),
                Err(error) if would_wait(&error) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn would_wait(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
    )
}
