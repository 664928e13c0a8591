//! What every engine must do, as cases against the port. Written once; each engine has a program.
//!
//! ```text
//!  tests/engine/main.rs        ┐               ┌─ --case NAME ─▶ boots a VM, at most one
//!  vmm-glue/tests/engine.rs    ┴─▶ main: list ─┤                  └─ --part NAME FOLDER ─▶ another VM
//!     (+ cases of its own)                     └─ …
//! ```
//! An engine runs one VM in a process, so a case is a process, and so is each further VM of it.
//! With `--sample`, the program measures one VM instead, for `bench/run`: see [`sample`].
//!
//! | variable | |
//! |---|---|
//! | `COCOON_ENGINE_GUEST` | a folder that `guest/pack` filled; without it, cases that boot Linux do not run |
//! | `COCOON_ENGINE_LONG` | if it is set, also what takes a minute of waiting |
//! | `COCOON_ENGINE_ROUNDS` | how often to save and restore where leaks are looked for; few by default |
//!
//! A case that cannot run is ignored, with the reason. Lines `TIME ...` and `RATE ...` of a case are
//! shown at the end.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a test program prints is its result"
)]

pub(crate) mod console;
pub(crate) mod counter;
pub(crate) mod devices;
pub(crate) mod grow;
pub(crate) mod life;
pub(crate) mod payload;
pub(crate) mod run;
pub(crate) mod sample;
pub(crate) mod saved;
pub(crate) mod spec;
pub(crate) mod throughput;
pub(crate) mod ticker;
pub(crate) mod vm;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use cocoon::vmm::Engine;

pub(crate) use run::main;

/// Wait for one line of a guest under emulation, on a busy host.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// An engine, and what its tests must know of it.
#[derive(Debug)]
pub(crate) struct Subject {
    /// The engine.
    pub(crate) engine: &'static dyn Engine,
    /// Threads that may outlive a VM and keep nothing of it.
    pub(crate) may_stay: &'static [&'static str],
    /// What a payload without drivers writes to the first serial port reaches the console.
    pub(crate) serial_console: bool,
    /// Cases that it cannot pass, and why.
    pub(crate) cannot: &'static [(&'static str, &'static str)],
    /// Cases of this engine alone.
    pub(crate) special: &'static [Case],
}

/// One case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// A sentence.
    pub(crate) name: &'static str,
    /// What it needs.
    pub(crate) needs: Needs,
    /// Panics if it fails.
    pub(crate) body: fn(&Lab),
}

/// What a case needs beyond `/dev/kvm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing.
    Kvm,
    /// A guest that says so on a serial port.
    Payload,
    /// That guest, and room for it in the host's pool of huge pages.
    HugePages,
    /// Linux.
    Guest,
    /// Linux, and TAP devices: root and `/dev/net/tun`.
    Taps,
    /// Linux, and a minute of waiting.
    Patience,
}

/// Where a case runs.
#[derive(Debug)]
pub(crate) struct Lab {
    /// The engine.
    pub(crate) subject: &'static Subject,
    /// Of the case; its own, and gone after it.
    pub(crate) folder: tempfile::TempDir,
    /// The part of the case that this process is, and the folder that it shares with the others.
    pub(crate) part: Option<(String, PathBuf)>,
    case: &'static str,
    guest: Option<PathBuf>,
}

impl Lab {
    /// Starts a part of this case, another process.
    pub(crate) fn part(&self, part: &str, folder: &Path) -> Part {
        let mut child = self
            .command()
            .args(["--part", part])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program can start itself");
        Part {
            input: child.stdin.take(),
            output: BufReader::new(child.stdout.take().expect("it is piped")),
            child,
        }
    }

    /// This case once more.
    pub(crate) fn command(&self) -> Command {
        mind_children();
        let mut command = Command::new("/proc/self/exe");
        command.args(["--case", self.case]);
        command
    }

    /// An empty folder of the case.
    pub(crate) fn make_folder(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(&path).expect("there is room");
        path
    }
}

/// Another process of a case.
#[derive(Debug)]
pub(crate) struct Part {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<std::process::ChildStdout>,
}

impl Part {
    /// Waits for the next line that it prints, by [`say`]; empty at its end.
    pub(crate) fn hears(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("pipes work");
        line.trim_end().to_owned()
    }

    /// Lets its [`wait_for_go`] return.
    pub(crate) fn go(&mut self) {
        drop(self.input.take());
    }

    /// Waits for its end, which must be a good one.
    pub(crate) fn ends_well(mut self) {
        self.go();
        let status = self.child.wait().expect("it is ours");
        assert!(status.success(), "a part of the case failed: {status}");
    }

    /// Ends it, as a crash would.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
    }
}

/// Makes ends of children known to those who wait for them. An engine may have told the kernel to
/// forget them; and who is started by such a process inherits that.
#[expect(unsafe_code, reason = "signal dispositions have no safe interface")]
pub(crate) fn mind_children() {
    // SAFETY: the default disposition is a valid one.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Tells the process that started this part.
pub(crate) fn say(line: &str) {
    println!("{line}");
}

/// Waits for that process to let this part go on.
pub(crate) fn wait_for_go() {
    let mut nothing = String::new();
    let _ = std::io::stdin().read_line(&mut nothing);
}

/// A figure for the end of the list.
pub(crate) fn figure(line: &str) {
    eprintln!("{line}");
}
