//! The hub: the thread in the VM process that owns the guest's terminal and shares it.
//!
//! ```text
//!   Hub (handle) ──commands, eventfd──▶ one thread, one poll(2)
//!                                        ├── terminal   what the guest prints and reads
//!                                        ├── log        all output, bounded, on disk
//!                                        ├── history    the last 64 KiB, in memory
//!                                        └── socket     ─accept─▶ viewers: history, then output
//! ```
//! Invariants: the guest waits for no viewer; input of several viewers is mixed by whole frames; the
//! last window size wins; a terminal that hangs up is kept until it is replaced or the hub stops.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use rustix::event::EventfdFlags;

use super::log::ConsoleLog;
use super::socket::{ConsoleSocket, SocketError};
use super::switch::{Command, Link, Switch};
use super::terminal::Terminal;

/// A failure to set up or command the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The hub cannot listen.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The guest's terminal is not fit to be shared.
    #[error("cannot use the guest's terminal for the console hub")]
    Terminal(#[source] io::Error),
    /// The process has no descriptor or thread left.
    #[error("cannot start the console hub's thread")]
    Start(#[source] io::Error),
    /// The hub has ended by itself; its reason is in the log of the VM process.
    #[error("the console hub is not running any more")]
    Ended,
}

/// A running hub. Dropping it stops it.
#[derive(Debug)]
pub struct Hub {
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
    viewers: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Hub {
    /// Shares `terminal`, an end of a raw pty (or any stream that can be polled), on the socket
    /// `listen`. The opening of `terminal` is made non-blocking.
    ///
    /// # Errors
    /// The socket cannot be made, which includes that another kind of file has its name; or
    /// descriptors or threads are short. Nothing is left then.
    pub fn start(terminal: OwnedFd, listen: &Path, log: ConsoleLog) -> Result<Self, HubError> {
        let terminal = Terminal::new(terminal).map_err(HubError::Terminal)?;
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| HubError::Start(error.into()))?;
        let wake = Arc::new(wake);
        let viewers = Arc::new(AtomicUsize::new(0));
        let (commands, receiver) = mpsc::channel();
        let link = Link {
            wake: Arc::clone(&wake),
            commands: receiver,
            viewers: Arc::clone(&viewers),
        };
        let switch = Switch::new(terminal, ConsoleSocket::listen(listen)?, log, link);
        let thread = std::thread::Builder::new()
            .name("console".to_owned())
            .spawn(|| switch.run())
            .map_err(HubError::Start)?;
        Ok(Self {
            commands,
            wake,
            viewers,
            thread: Some(thread),
        })
    }

    /// How many viewers are attached.
    pub fn viewers(&self) -> usize {
        self.viewers.load(Ordering::Relaxed)
    }

    /// Goes on with another terminal, such as the one of a rebooted guest. History and viewers stay.
    ///
    /// # Errors
    /// The terminal cannot be used, or the hub has ended by itself.
    pub fn replace_terminal(&self, terminal: OwnedFd) -> Result<(), HubError> {
        let terminal = Terminal::new(terminal).map_err(HubError::Terminal)?;
        self.command(Command::ReplaceTerminal(terminal))
    }

    /// Takes what the guest still printed, tells the viewers that the console is over, and removes
    /// the socket. Takes a second at most.
    pub fn stop(self) {
        drop(self);
    }

    fn command(&self, command: Command) -> Result<(), HubError> {
        self.commands.send(command).map_err(|_| HubError::Ended)?;
        // Fails only when the counter is full, and then the thread wakes anyway.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        Ok(())
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // A thread that has ended already needs no command.
        let _ = self.command(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the console hub's thread panicked");
        }
    }
}

#[cfg(test)]
mod tests;
