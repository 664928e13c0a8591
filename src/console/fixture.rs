//! For tests: a guest, a hub and viewers, with real terminals and sockets. Nothing here waits for a
//! time to pass; the patience is only an upper bound for a test that would hang.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::hub::Hub;
use super::log::{ConsoleLog, DEFAULT_MAX};
use super::protocol::{Decoder, FromHub};
use super::socket::connect;
use crate::sys::tty;

const PATIENCE: Duration = Duration::from_secs(60);

/// Signals belong to the process, so tests that use them take turns.
pub(super) fn signals_alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An end of a terminal: the guest's, or the one that the user sits at.
#[derive(Debug)]
pub(super) struct End(pub(super) OwnedFd);

impl End {
    /// A raw pty: this end, and the other one.
    pub(super) fn raw_pty() -> (Self, OwnedFd) {
        let (end, peer) = Self::new_pty();
        tty::make_raw(&peer).unwrap();
        (end, peer)
    }

    /// A pty as a terminal emulator makes it, with echo.
    pub(super) fn new_pty() -> (Self, OwnedFd) {
        let pty = tty::open_pty().unwrap();
        let peer = pty.open_peer().unwrap();
        (Self(pty.main), peer)
    }

    pub(super) fn write(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            wait_for(&self.0, PollFlags::OUT);
            let some = &bytes[..bytes.len().min(1024)];
            let written = rustix::io::write(&self.0, some).unwrap();
            bytes = &bytes[written..];
        }
    }

    pub(super) fn read(&self, len: usize) -> Vec<u8> {
        let mut got = vec![0; len];
        let mut filled = 0;
        while filled < len {
            wait_for(&self.0, PollFlags::IN);
            filled += rustix::io::read(&self.0, &mut got[filled..]).unwrap();
        }
        got
    }

    /// Reads until `text` was read, and returns all.
    pub(super) fn read_until(&self, text: &str) -> String {
        let mut got = Vec::new();
        while !got.ends_with(text.as_bytes()) {
            got.extend(self.read(1));
        }
        String::from_utf8(got).unwrap()
    }
}

fn wait_for(fd: impl AsFd, flags: PollFlags) {
    let timeout = Timespec::try_from(PATIENCE).unwrap();
    let mut fds = [PollFd::new(&fd, flags)];
    let ready = rustix::event::poll(&mut fds, Some(&timeout)).unwrap();
    assert_eq!(ready, 1, "nothing came");
}

/// A running hub with its files.
#[derive(Debug)]
pub(super) struct Console {
    pub(super) hub: Hub,
    pub(super) socket: PathBuf,
    pub(super) log: PathBuf,
    _folder: tempfile::TempDir,
}

impl Console {
    pub(super) fn on(terminal: OwnedFd) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("console.log");
        let log_writer = ConsoleLog::open(&log, DEFAULT_MAX).unwrap();
        Self::with(folder, terminal, log, log_writer)
    }

    pub(super) fn with(
        folder: tempfile::TempDir,
        terminal: OwnedFd,
        log: PathBuf,
        log_writer: ConsoleLog,
    ) -> Self {
        let socket = folder.path().join("console.sock");
        Self {
            hub: Hub::start(terminal, &socket, log_writer).unwrap(),
            socket,
            log,
            _folder: folder,
        }
    }

    /// A hub, and the guest behind it.
    pub(super) fn with_guest() -> (Self, End) {
        let (guest, terminal) = End::raw_pty();
        (Self::on(terminal), guest)
    }

    /// A viewer that has been shown the history, and the history.
    pub(super) fn attach(&self) -> (TestViewer, Vec<u8>) {
        let mut viewer = TestViewer::new(connect(&self.socket).unwrap());
        let mut history = Vec::new();
        loop {
            match viewer.frame() {
                Some(FromHub::Output(bytes)) => history.extend(bytes),
                Some(FromHub::HistoryEnd) => return (viewer, history),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// A viewer that looks at frames.
#[derive(Debug)]
pub(super) struct TestViewer {
    pub(super) stream: UnixStream,
    decoder: Decoder,
}

impl TestViewer {
    pub(super) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            decoder: Decoder::default(),
        }
    }

    pub(super) fn send(&mut self, frames: &[u8]) {
        self.stream.write_all(frames).unwrap();
    }

    /// The next frame, or `None` at the end.
    pub(super) fn frame(&mut self) -> Option<FromHub> {
        let mut buffer = [0; 8192];
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(read) => self.decoder.push(&buffer[..read]),
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// The next `len` bytes of output.
    pub(super) fn output(&mut self, len: usize) -> Vec<u8> {
        let mut got = Vec::new();
        while got.len() < len {
            match self.frame() {
                Some(FromHub::Output(bytes)) => got.extend(bytes),
                other => panic!("{other:?} after {} of {len} bytes", got.len()),
            }
        }
        assert_eq!(got.len(), len);
        got
    }
}

/// `len` bytes with nearly every value in them, in a period that fits no buffer.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..=250).rev().chain([255]).cycle().take(len).collect()
}
