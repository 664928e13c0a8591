//! A VM of this process, and what must be left of it: nothing.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use cocoon::vm::spec::VmSpec;
use cocoon::vmm::Machine;
use cocoon::vmm::engine::{EngineError, Event, StopReason};

use super::console::Console;
use super::{Lab, Subject, figure};

/// From a stop that was asked for to its event; a guest under emulation takes some of it.
const END: Duration = Duration::from_secs(150);

/// Threads that have nothing to do with the VM: the first one, and the log's.
const OWN_THREADS: usize = 2;

/// A booted or restored VM.
#[derive(Debug)]
pub(crate) struct Vm {
    /// What it was booted from.
    pub(crate) spec: VmSpec,
    /// The VM, by the port.
    pub(crate) machine: Box<dyn Machine>,
    /// What happens to it.
    pub(crate) events: Receiver<Event>,
    /// Its console.
    pub(crate) console: Console,
    subject: &'static Subject,
}

impl Lab {
    /// Boots `spec`.
    pub(crate) fn boot(&self, spec: VmSpec) -> Vm {
        let engine = self.subject.engine;
        engine.check(&spec).expect("the engine can do this");
        let machine = timed("boot call", || well(engine.boot(&spec)));
        self.take(spec, machine)
    }

    /// Restores `spec`'s VM.
    pub(crate) fn restore(&self, spec: VmSpec, from: &Path) -> Vm {
        let engine = self.subject.engine;
        engine.check(&spec).expect("the engine can do this");
        let machine = timed("restore call", || well(engine.restore(&spec, from)));
        self.take(spec, machine)
    }

    fn take(&self, spec: VmSpec, machine: Box<dyn Machine>) -> Vm {
        let console = Console::new(machine.console().expect("a running VM has a console"));
        let events = machine.events().expect("no one took them");
        assert!(machine.events().is_none(), "events may be taken once");
        Vm {
            spec,
            machine,
            events,
            console,
            subject: self.subject,
        }
    }

    /// The words of a boot that must fail.
    pub(crate) fn boot_error(&self, spec: &VmSpec) -> String {
        words(self.subject.engine.boot(spec))
    }

    /// The words of a restore that must fail.
    pub(crate) fn restore_error(&self, spec: &VmSpec, from: &Path) -> String {
        words(self.subject.engine.restore(spec, from))
    }

    /// Checks that no thread of the VM is left, and no socket.
    pub(crate) fn assert_vm_is_gone(&self, spec: &VmSpec) {
        assert_vm_is_gone(self.subject, spec);
    }
}

impl Vm {
    /// Asks for the terminal again.
    pub(crate) fn reopen_console(&mut self) {
        self.console = Console::new(self.machine.console().expect("a rebooted VM has a console"));
    }

    /// Halts it.
    pub(crate) fn pause(&self) {
        timed("pause call", || well(self.machine.pause()));
    }

    /// Halts it, and returns what it had said until then.
    pub(crate) fn pause_and_listen(&mut self) -> String {
        self.pause();
        self.console.rest()
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        timed("resume call", || well(self.machine.resume()));
    }

    /// Saves it.
    pub(crate) fn save(&self, into: &Path) {
        timed("save call", || well(self.machine.save(into)));
    }

    /// Ends it from outside.
    pub(crate) fn is_ended(&mut self) {
        self.machine.power_off().expect("the engine ends its VM");
        self.ends_by(StopReason::Stopped);
    }

    /// Waits for the VM's end, and checks that nothing is left of it.
    pub(crate) fn ends_by(&mut self, reason: StopReason) {
        timed("end", || {
            assert_eq!(self.events.recv_timeout(END), Ok(Event::Stopped(reason)));
        });
        assert!(self.events.recv().is_err(), "nothing happens after the end");
        assert_vm_is_gone(self.subject, &self.spec);
        assert_files_are_closed();
    }
}

fn timed<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let done = act();
    let micros = begin.elapsed().as_micros();
    figure(&format!(
        "TIME {what} {}.{:03} ms",
        micros / 1000,
        micros % 1000
    ));
    done
}

/// What an engine gave, or a panic in its words.
pub(crate) fn well<T>(result: Result<T, EngineError>) -> T {
    result.unwrap_or_else(|error| panic!("{}", chain(&error)))
}

fn words(result: Result<Box<dyn Machine>, EngineError>) -> String {
    match result {
        Ok(_) => panic!("this cannot be"),
        Err(error) => chain(&error),
    }
}

fn chain(error: &dyn Error) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        said = format!("{said}: {error}");
        source = error.source();
    }
    said
}

fn assert_vm_is_gone(subject: &Subject, spec: &VmSpec) {
    let socket = &spec.paths.api_socket;
    assert!(!socket.exists(), "the API socket is removed");
    assert!(!socket.with_extension("sock.lock").exists(), "and its lock");
    // The kernel wakes who joins a thread before it takes the thread off this list.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left: Vec<String> = threads()
            .into_iter()
            .skip(OWN_THREADS)
            .filter(|name| !subject.may_stay.contains(&name.as_str()))
            .collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "threads are left: {left:?}");
        std::thread::yield_now();
    }
}

/// The names of this process's threads, in the order in which they started.
pub(crate) fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc is mounted");
    let mut numbers: Vec<u32> = tasks
        .filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    let name = |number| fs::read_to_string(format!("/proc/self/task/{number}/comm"));
    let names = numbers.into_iter().filter_map(|number| name(number).ok());
    names.map(|name| name.trim().to_owned()).collect()
}

/// What this process has open.
pub(crate) fn open_files() -> Vec<PathBuf> {
    fs::read_dir("/proc/self/fd")
        .expect("/proc is mounted")
        .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
        .collect()
}

/// Checks that no KVM, TAP or disk is open.
fn assert_files_are_closed() {
    let files: Vec<PathBuf> = open_files()
        .into_iter()
        .filter(|path| {
            let path = path.to_string_lossy();
            path.contains("kvm") || path.ends_with(".img") || path.contains("tun")
        })
        .collect();
    assert!(files.is_empty(), "files are left open: {files:?}");
}

/// A figure of `/proc/self/status`, in KiB.
pub(crate) fn kib(of: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix(of));
    let line = line.unwrap_or_else(|| panic!("no {of} in {status}"));
    let figure = line.trim_matches(|c: char| !c.is_ascii_digit());
    figure.parse().expect("a figure")
}
