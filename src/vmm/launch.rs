//! Starts a VM process and waits for its one report: no polling, no sleeping.
//!
//! Invariant: the VM's alive lock is held from before the VM process is started until it ends, by the
//! command first and then by the process, which gets it as its standard input.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};

use super::protocol::Report;
use crate::sys::failpoint;
use crate::sys::flock::FileLock;
use crate::sys::interrupt::Interrupt;
use crate::units::RunId;

/// This very program, also after its file was replaced.
const SELF: &str = "/proc/self/exe";

/// A report with a chain of errors is far shorter.
const MAX_REPORT: u64 = 64 << 10;

/// How much of the VM process's log goes into an error, in bytes.
const LOG_TAIL: usize = 2000;

/// Why a VM process did not get ready.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// It could not be started.
    #[error("cannot start a VM process")]
    Spawn(#[source] io::Error),
    /// Its log cannot be written.
    #[error("cannot write the log {}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It said why not.
    #[error("{}", .0.join(": "))]
    Failed(Vec<String>),
    /// It ended without a word; the end of its log may tell.
    #[error("the VM process ended ({status}) before the guest ran; its log {} ends:\n{tail}", log.display())]
    Died {
        /// How it ended.
        status: String,
        /// The last lines of its log.
        tail: String,
        /// The whole log.
        log: PathBuf,
    },
    /// The user interrupted the wait; the process was ended.
    #[error("interrupted before the guest ran")]
    Interrupted,
}

/// Starts the VM process for the spec in `spec`, as `run`, hands the VM's alive lock on to it, and returns
/// when the guest runs. If this process is killed before, that one ends, too.
///
/// # Errors
/// The guest does not run, and no VM process is left.
pub fn launch(
    spec: &Path,
    run: RunId,
    alive: FileLock,
    log: &Path,
    interrupt: &Interrupt,
) -> Result<(), LaunchError> {
    let open = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o640)
        .open(log);
    let stderr = open.map_err(|source| LaunchError::Log {
        path: log.to_owned(),
        source,
    })?;
    let mut child = Command::new(SELF)
        .arg("__vmm")
        .arg(spec)
        .arg(run.to_string())
        .stdin(alive.into_stdin())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .map_err(LaunchError::Spawn)?;
    failpoint::reach("launch: VM process started");
    let result = await_report(&mut child, log, interrupt);
    failpoint::reach("launch: VM process heard");
    if result.is_err() {
        // It has ended, or must: kill and wait fail only for a process that was waited for.
        let _ = child.kill();
        let _ = child.wait();
    }
    result
}

fn await_report(child: &mut Child, log: &Path, interrupt: &Interrupt) -> Result<(), LaunchError> {
    let mut pipe = child
        .stdout
        .take()
        .ok_or_else(|| LaunchError::Spawn(io::ErrorKind::BrokenPipe.into()))?;
    match read_report(&mut pipe, interrupt).map_err(LaunchError::Spawn)? {
        Outcome::Interrupted => Err(LaunchError::Interrupted),
        Outcome::Report(Report::Ready) => Ok(()),
        Outcome::Report(Report::Failed(chain)) => Err(LaunchError::Failed(chain)),
        Outcome::Nothing => {
            let status = child
                .wait()
                .map_or_else(|error| error.to_string(), |status| status.to_string());
            Err(LaunchError::Died {
                status,
                tail: tail(log),
                log: log.to_owned(),
            })
        }
    }
}

enum Outcome {
    Report(Report),
    Nothing,
    Interrupted,
}

fn read_report(pipe: &mut ChildStdout, interrupt: &Interrupt) -> io::Result<Outcome> {
    let mut text = Vec::new();
    loop {
        let interrupt = interrupt.as_fd();
        let mut fds = [
            PollFd::new(&*pipe, PollFlags::IN),
            PollFd::new(&interrupt, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result?,
        };
        if fds[0].revents().is_empty() {
            return Ok(Outcome::Interrupted);
        }
        let mut part = [0; 4096];
        let length = pipe.read(&mut part)?;
        text.extend_from_slice(&part[..length]);
        if length == 0 || text.ends_with(b"\n") || text.len() as u64 > MAX_REPORT {
            return Ok(serde_json::from_slice(&text).map_or(Outcome::Nothing, Outcome::Report));
        }
    }
}

/// The last lines of a log, as far as they can be read.
fn tail(log: &Path) -> String {
    let mut text = Vec::new();
    // A log that cannot be read has nothing to tell; the error above it names the file.
    let _ = File::open(log).and_then(|mut file| file.read_to_end(&mut text));
    let start = text.len().saturating_sub(LOG_TAIL);
    String::from_utf8_lossy(&text[start..])
        .trim_end()
        .to_owned()
}
