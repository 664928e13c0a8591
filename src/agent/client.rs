//! Calls to the agent of a guest, one connection each.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cocoon_agent::frame::{self, FrameError};
use cocoon_agent::protocol::{
    Answer, Copied, Exec, Get, Grown, Hello, Identity, PORT, Put, Renewed, Request, Shutdown,
    Started, printable,
};
use cocoon_agent::tree::{self, Destination, Receiver, TreeError};
use jiff::Timestamp;
use serde::de::DeserializeOwned;

use super::AgentError;
use super::channel::{Channel, Stopped};
use super::exec::{self, ExecEnd, Session};

/// The first wait between two tries, and the longest: nobody tells when a guest begins to listen.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// How long one try may take at first. A guest whose driver is not up yet says nothing, and may lose the try.
const TRY: Duration = Duration::from_secs(2);

/// What part of the time since the first try a later one may take: a guest on a crowded host answers late, and
/// would never in time if no try were longer than another.
const PART: u32 = 4;

/// How long the answer of a short call may take, unless the caller has more patience; keys for sshd take an
/// emulated guest some seconds, beside many clones of it some times that.
const CALL: Duration = Duration::from_secs(180);

/// How late the clock of a guest may be, and how often it is set while it may be later: a guest beside many others
/// hears what it is told up to some seconds later.
const CLOCK_LATE: Duration = Duration::from_millis(200);
const CLOCK_TRIES: u32 = 50;

/// How often what may be said twice is said to a guest that lost the connection. One that was saved in the middle of
/// others ends these when it goes on, and with them a new one that has the number of an old one.
const LOST_TRIES: u32 = 5;

/// Warnings of one answer that anybody would read.
const WARNINGS_MAX: usize = 16;

/// Mode bits that are taken over from a guest: none with which a file runs as its owner here.
const FROM_GUEST: u32 = 0o777;

/// The agent of a guest.
#[derive(Clone, Debug)]
pub struct Agent<'a> {
    socket: PathBuf,
    stop: BorrowedFd<'a>,
}

impl<'a> Agent<'a> {
    /// The agent behind the VM's `vsock` socket. Nothing is connected yet. `stop` becomes readable when
    /// the user wants the command to stop: a `sys::interrupt::Interrupt`, for example.
    pub fn new(socket: &Path, stop: BorrowedFd<'a>) -> Self {
        Self {
            socket: socket.to_owned(),
            stop,
        }
    }

    /// Waits until the agent answers, and returns who it is.
    ///
    /// # Errors
    /// It does not answer within `patience`; its first answer makes no sense; `stop` was raised.
    pub fn hello(&self, patience: Duration) -> Result<Hello, AgentError> {
        hello_over(self.connect(patience, |_| false)?, patience)
    }

    /// As [`Agent::hello`], and again where the connection is lost, as by a guest that goes on after it was saved. One
    /// in which nobody listens is waited for only if an agent is `expected`; one that is silent always is.
    ///
    /// # Errors
    /// As [`Agent::hello`].
    pub fn hello_again(&self, expected: bool, patience: Duration) -> Result<Hello, AgentError> {
        let is_final = |error: &io::Error| !expected && error.kind() != io::ErrorKind::TimedOut;
        self.insist(|| hello_over(self.connect(patience, is_final)?, patience))
    }

    /// Makes the guest somebody else, and tells it what time it is; again while it takes too long to hear that. Returns
    /// what the agent could not do besides, a sentence each.
    ///
    /// # Errors
    /// As [`Agent::hello`], or the agent could not do it.
    pub fn identity(
        &self,
        identity: Identity,
        patience: Duration,
    ) -> Result<Vec<String>, AgentError> {
        let deadline = Instant::now() + patience;
        let (mut warnings, mut late) = self.insist(|| self.renew(identity.clone(), patience))?;
        for _ in 1..CLOCK_TRIES {
            if late <= CLOCK_LATE || Instant::now() >= deadline {
                break;
            }
            (_, late) = self.renew(Identity::default(), patience)?;
        }
        if late > CLOCK_LATE {
            let late = late.as_millis();
            warnings.push(format!(
                "cannot set the clock better: it may be {late} ms late"
            ));
        }
        Ok(warnings)
    }

    /// Makes the guest somebody else once; returns what the agent could not do besides, and how late the guest's
    /// clock may be: it was set when the time was heard, not when it was told.
    fn renew(
        &self,
        identity: Identity,
        patience: Duration,
    ) -> Result<(Vec<String>, Duration), AgentError> {
        // Until somebody accepts, the time would grow old.
        let channel = self.connect(patience, |_| false)?;
        let clock_ns = now_ns();
        let request = Request::Identity(Identity {
            clock_ns,
            ..identity
        });
        let (_, renewed): (_, Renewed) = ask(channel, &request, patience)?;
        let late = match (now_ns(), renewed.clock_ns) {
            (Some(now), Some(clock)) => Duration::from_nanos(now.saturating_sub(clock)),
            _ => Duration::ZERO,
        };
        Ok((sentences(&renewed.warnings), late))
    }

    /// Takes into use what was added to the VM.
    ///
    /// # Errors
    /// As [`Agent::hello`].
    pub fn grow(&self, patience: Duration) -> Result<Grown, AgentError> {
        let grown: Grown = self.call(&Request::Grow, patience)?;
        Ok(Grown {
            warnings: sentences(&grown.warnings),
            ..grown
        })
    }

    /// Asks the guest to end; returns before it has.
    ///
    /// # Errors
    /// As [`Agent::identity`].
    pub fn shutdown(&self, reboot: bool, patience: Duration) -> Result<(), AgentError> {
        self.call(&Request::Shutdown(Shutdown { reboot }), patience)
    }

    /// Copies a file or folder of the guest to the host; mode bits that make a file run as its owner
    /// are left out.
    ///
    /// # Errors
    /// As [`Agent::identity`], or something cannot be written here.
    pub fn get(
        &self,
        path: String,
        to: &Path,
        name: Option<&str>,
        patience: Duration,
    ) -> Result<Copied, AgentError> {
        let (mut channel, ()) = self.ask(&Request::Get(Get { path }), patience)?;
        let receiver = Receiver::new(Destination {
            path: to.to_owned(),
            name: name.map(Into::into),
            mode_mask: FROM_GUEST,
        });
        receiver.run(&mut channel).map_err(AgentError::of_tree)
    }

    /// Copies a file or folder of the host into the guest.
    ///
    /// # Errors
    /// As [`Agent::identity`], or something cannot be read here.
    pub fn put(
        &self,
        from: &Path,
        path: String,
        name: Option<String>,
        patience: Duration,
    ) -> Result<Copied, AgentError> {
        let (mut channel, ()) = self.ask(&Request::Put(Put { path, name }), patience)?;
        match tree::send(from, &mut Outgoing(&mut channel)) {
            // Either the agent has an answer already, or the connection is lost: reading tells.
            Ok(_) | Err(TreeError::Frame(FrameError::Io(_))) => answer(&mut channel),
            Err(error) => Err(AgentError::of_tree(error)),
        }
    }

    /// Runs a command in the guest, and relays its streams until it ends.
    ///
    /// # Errors
    /// As [`Agent::identity`], or a local stream failed.
    pub fn exec(
        &self,
        command: Exec,
        session: &Session<'_>,
        patience: Duration,
    ) -> Result<ExecEnd, AgentError> {
        let (channel, _): (_, Started) = self.ask(&Request::Exec(command), patience)?;
        exec::relay(&channel, session)
    }

    fn insist<T>(&self, call: impl Fn() -> Result<T, AgentError>) -> Result<T, AgentError> {
        for _ in 1..LOST_TRIES {
            match call() {
                Err(AgentError::Lost(_)) => self.pause(FIRST_PAUSE)?,
                answer => return answer,
            }
        }
        call()
    }

    fn call<T: DeserializeOwned>(
        &self,
        request: &Request,
        patience: Duration,
    ) -> Result<T, AgentError> {
        self.ask(request, patience).map(|(_, done)| done)
    }

    /// Sends a request on a new connection, and reads the first answer.
    fn ask<T: DeserializeOwned>(
        &self,
        request: &Request,
        patience: Duration,
    ) -> Result<(Channel<'a>, T), AgentError> {
        ask(self.connect(patience, |_| false)?, request, patience)
    }

    /// Tries until somebody listens in the guest, or `is_final` says of what a try met that no other will do.
    fn connect(
        &self,
        patience: Duration,
        is_final: impl Fn(&io::Error) -> bool,
    ) -> Result<Channel<'a>, AgentError> {
        let begun = Instant::now();
        let deadline = begun + patience;
        let (mut pause, mut is_first) = (FIRST_PAUSE, true);
        loop {
            // The first try is a whole one, also for who does not want to wait.
            let one = Instant::now() + TRY.max(begun.elapsed() / PART);
            let until = if is_first { one } else { deadline.min(one) };
            is_first = false;
            let error = match Channel::connect(&self.socket, PORT, self.stop, until) {
                Ok(channel) => return Ok(channel),
                Err(error) if error.get_ref().is_some_and(|inner| inner.is::<Stopped>()) => {
                    return Err(AgentError::Interrupted);
                }
                Err(error) => error,
            };
            if is_final(&error) || Instant::now() + pause >= deadline {
                return Err(AgentError::NotThere {
                    waited_seconds: patience.as_secs(),
                    source: error,
                });
            }
            self.pause(pause)?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn pause(&self, pause: Duration) -> Result<(), AgentError> {
        use rustix::event::{PollFd, PollFlags, Timespec};
        let timeout = Timespec::try_from(pause).ok();
        let mut fds = [PollFd::from_borrowed_fd(self.stop, PollFlags::IN)];
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(found) if found > 0 => Err(AgentError::Interrupted),
            _ => Ok(()),
        }
    }
}

fn hello_over(channel: Channel<'_>, patience: Duration) -> Result<Hello, AgentError> {
    let (_, hello): (_, Hello) = ask(channel, &Request::Hello, patience)?;
    Ok(Hello {
        boot_id: printable(&hello.boot_id),
        hostname: printable(&hello.hostname),
        ..hello
    })
}

/// Sends a request on a new connection, and reads the first answer.
fn ask<'a, T: DeserializeOwned>(
    mut channel: Channel<'a>,
    request: &Request,
    patience: Duration,
) -> Result<(Channel<'a>, T), AgentError> {
    channel.deadline = Some(Instant::now() + CALL.max(patience));
    frame::write(&mut channel, request, b"").map_err(AgentError::of_frame)?;
    let done = answer(&mut channel)?;
    channel.deadline = None;
    Ok((channel, done))
}

/// Nanoseconds since 1970.
fn now_ns() -> Option<u64> {
    u64::try_from(Timestamp::now().as_nanosecond()).ok()
}

/// A guest's warnings, fit for a terminal.
fn sentences(warnings: &[String]) -> Vec<String> {
    let shown = warnings.iter().take(WARNINGS_MAX);
    shown.map(|warning| printable(warning)).collect()
}

fn answer<T: DeserializeOwned>(channel: &mut Channel<'_>) -> Result<T, AgentError> {
    let frame = frame::read(channel).and_then(|frame| frame.ok_or(FrameError::Cut));
    let answer = frame.and_then(|frame| frame.header());
    match answer.map_err(AgentError::of_frame)? {
        Answer::Done(done) => Ok(done),
        Answer::Failed(failure) => Err(AgentError::Refused(failure)),
    }
}

/// Writing that ends as soon as the agent has something to say, which then is a failure.
struct Outgoing<'a, 'b>(&'a mut Channel<'b>);

impl Write for Outgoing<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.is_readable() {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => self.0.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
