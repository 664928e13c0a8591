//! Guests, their consoles and their ends, for `lab.rs`.

use std::error::Error;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use cocoon::units::{ByteSize, Mac};
use cocoon::vm::spec::{
    Boot, Cpus, Disk, DiskFormat, EngineName, Memory, Nic, Paths, VERSION, VmSpec,
};
use cocoon::vmm::engine::{Event, StopReason};
use cocoon::vmm::{Engine, Machine};
use cocoon_full::CloudHypervisor;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::termios::{Winsize, tcsetwinsize};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// From a stop that was asked for to its event; a guest under emulation takes some of it.
const END: Duration = Duration::from_secs(150);

/// Threads that outlive a VM and keep nothing of it: the stream of events ends with the process,
/// those of `life` are at their last line, and a boot that fails early leaves the kernel's loader
/// to end by itself.
const MAY_STAY: [&str; 5] = [
    "event-monitor",
    "ch-events",
    "ch-life",
    "ch-join",
    "payload_loader",
];

/// The kernel and RAM disk to boot.
#[derive(Debug)]
pub(crate) struct Guest {
    folder: PathBuf,
}

impl Guest {
    /// The guest of this lab.
    ///
    /// # Errors
    /// What is missing.
    pub(crate) fn from_env() -> Result<Self, String> {
        let folder = std::env::var_os("COCOON_LAB_GUEST").ok_or("COCOON_LAB_GUEST is not set")?;
        for device in ["/dev/kvm", "/dev/net/tun"] {
            std::fs::File::options()
                .read(true)
                .write(true)
                .open(device)
                .map_err(|error| format!("{device}: {error}"))?;
        }
        Ok(Self {
            folder: folder.into(),
        })
    }

    /// A VM of this guest with `cpus` CPUs, no disks and no NICs, in a fresh folder.
    pub(crate) fn spec(&self, cpus: u32) -> VmSpec {
        let run = tempfile::tempdir().expect("there is room").keep();
        let file = |name: &str| run.join(name);
        VmSpec {
            version: VERSION,
            id: "0123456789abcdef".parse().expect("an id"),
            name: "lab".parse().expect("a name"),
            engine: EngineName::CloudHypervisor,
            cpus: Cpus { boot: cpus, max: 8 },
            memory: Memory {
                size: ByteSize::from_mib(256),
                hugepages: false,
                balloon: Some(ByteSize::from_mib(64)),
            },
            boot: Boot::Direct {
                kernel: self.folder.join("vmlinuz"),
                initrd: self.folder.join("initrd"),
                cmdline: "{console} loglevel=3 net.ifnames=0 mitigations=off".to_owned(),
            },
            disks: vec![],
            nics: vec![],
            netns: None,
            watchdog: true,
            paths: Paths {
                root_dir: dir.to_owned(),
                alive_lock: file("alive.lock"),
                control_socket: file("control.sock"),
                console_socket: file("console.sock"),
                api_socket: file("api.sock"),
                console_log: file("console.log"),
                vmm_log: file("vmm.log"),
            },
        }
    }
}

/// A raw disk at `path`.
pub(crate) fn disk(path: PathBuf, serial: &str, queues: u16) -> Disk {
    Disk {
        path,
        readonly: false,
        format: DiskFormat::Raw,
        serial: serial.to_owned(),
        queues,
    }
}

/// A NIC on `tap`.
pub(crate) fn nic(tap: &str, queue_pairs: u16) -> Nic {
    Nic {
        tap: tap.to_owned(),
        mac: Mac::new([2, 0, 0, 0, 0, 7]),
        queue_pairs,
        mtu: 1450,
    }
}

/// A disk image of 1 MiB beside `spec`'s files that begins with `head`.
pub(crate) fn image(spec: &VmSpec, name: &str, head: &[u8]) -> PathBuf {
    let path = spec.paths.api_socket.with_file_name(name);
    let mut file = std::fs::File::create(&path).expect("there is room");
    file.write_all(head).expect("there is room");
    file.set_len(1 << 20).expect("there is room");
    path
}

/// Makes a TAP device as `network::tap` will, with `address` on the host's side.
pub(crate) fn make_tap(name: &str, address: &str) {
    let tuntap = [
        "tuntap",
        "add",
        name,
        "mode",
        "tap",
        "multi_queue",
        "vnet_hdr",
    ];
    ip(&tuntap);
    ip(&["addr", "add", address, "dev", name]);
    ip(&["link", "set", name, "up"]);
}

fn ip(args: &[&str]) {
    let status = Command::new("ip")
        .args(args)
        .status()
        .expect("ip is installed");
    assert!(status.success(), "ip {args:?}");
}

/// A booted VM.
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
}

impl Vm {
    /// Boots `spec`.
    pub(crate) fn boot(spec: VmSpec) -> Self {
        CloudHypervisor
            .check(&spec)
            .expect("the engine can do this");
        let begin = Instant::now();
        let machine = match CloudHypervisor.boot(&spec) {
            Ok(machine) => machine,
            Err(error) => panic!("{}", chain(&error)),
        };
        eprintln!("TIME boot call {} ms", begin.elapsed().as_millis());
        let console = Console::new(machine.console().expect("a running VM has a console"));
        let events = machine.events().expect("no one took them");
        assert!(machine.events().is_none(), "events may be taken once");
        Self {
            spec,
            machine,
            events,
            console,
        }
    }

    /// Asks for the terminal again.
    pub(crate) fn reopen_console(&mut self) {
        self.console = Console::new(self.machine.console().expect("a rebooted VM has a console"));
    }

    /// Waits for the VM's end, and checks that nothing is left of it.
    pub(crate) fn ends_by(&mut self, reason: StopReason) {
        let begin = Instant::now();
        assert_eq!(self.events.recv_timeout(END), Ok(Event::Stopped(reason)));
        eprintln!("TIME end {} ms", begin.elapsed().as_millis());
        assert!(self.events.recv().is_err(), "nothing happens after the end");
        assert_vmm_is_gone(&self.spec);
        assert_files_are_closed();
    }
}

/// Checks that the VMM's threads have ended and that its socket is removed.
pub(crate) fn assert_vmm_is_gone(spec: &VmSpec) {
    let socket = &spec.paths.api_socket;
    assert!(!socket.exists(), "the API socket is removed");
    assert!(!socket.with_extension("sock.lock").exists(), "and its lock");
    // The kernel wakes who joins a thread before it takes the thread off this list.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = threads_of_the_vmm();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "threads are left: {left:?}");
        std::thread::yield_now();
    }
}

fn threads_of_the_vmm() -> Vec<String> {
    std::fs::read_dir("/proc/self/task")
        .expect("/proc is mounted")
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        // The first thread has the program's name, whatever the file was called.
        .filter(|name| !["exe", "log"].contains(&name.as_str()) && !name.starts_with("lab"))
        .filter(|name| !MAY_STAY.contains(&name.as_str()))
        .collect()
}

/// Checks that the named threads are among this process's and that seccomp filters hold them.
pub(crate) fn assert_confined(names: &[&str]) {
    let status: Vec<String> = std::fs::read_dir("/proc/self/task")
        .expect("/proc is mounted")
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok())
        .collect();
    for name in names {
        let thread = status
            .iter()
            .find(|status| status.starts_with(&format!("Name:\t{name}\n")));
        let thread = thread.unwrap_or_else(|| panic!("no thread {name} in {status:#?}"));
        assert!(thread.contains("\nSeccomp:\t2\n"), "{thread}");
    }
}

/// The call that [`make_forbidden_call`] makes: getppid, on x86-64.
pub(crate) const FORBIDDEN_CALL: i64 = 110;

/// Makes, on a thread that is confined as the VMM's are, a call that its filter forbids.
pub(crate) fn make_forbidden_call() {
    let filter = SeccompFilter::new(
        [(FORBIDDEN_CALL, vec![])].into(),
        SeccompAction::Allow,
        SeccompAction::Trap,
        TargetArch::x86_64,
    );
    let program: BpfProgram = filter
        .and_then(TryInto::try_into)
        .expect("the filter is sound");
    let confined = std::thread::spawn(move || {
        seccompiler::apply_filter(&program).expect("a thread may confine itself");
        rustix::process::getppid()
    });
    let _ = confined.join();
}

/// Checks that no KVM, TAP or disk is open.
fn assert_files_are_closed() {
    let files: Vec<PathBuf> = std::fs::read_dir("/proc/self/fd")
        .expect("/proc is mounted")
        .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
        .filter(|path| {
            let path = path.to_string_lossy();
            path.contains("kvm") || path.ends_with(".img") || path.contains("tun")
        })
        .collect();
    assert!(files.is_empty(), "files are left open: {files:?}");
}

/// The words of a boot that must fail.
pub(crate) fn boot_error(spec: &VmSpec) -> String {
    let error = CloudHypervisor.boot(spec).expect_err("this cannot boot");
    let said = chain(&error);
    eprintln!("{said}");
    said
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

/// The terminal's slave, and what was read from it.
#[derive(Debug)]
pub(crate) struct Console {
    terminal: OwnedFd,
    unread: Vec<u8>,
}

impl Console {
    fn new(terminal: OwnedFd) -> Self {
        Self {
            terminal,
            unread: vec![],
        }
    }

    /// Types a line.
    pub(crate) fn enter(&mut self, line: &str) {
        let bytes = format!("{line}\n").into_bytes();
        let written = rustix::io::write(&self.terminal, &bytes).expect("the terminal takes input");
        assert_eq!(written, bytes.len(), "a line fits the terminal");
    }

    /// Reads until `text` has come.
    pub(crate) fn until(&mut self, text: &str, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            let seen = String::from_utf8_lossy(&self.unread);
            if let Some(at) = seen.find(text) {
                self.unread = seen[at + text.len()..].as_bytes().to_vec();
                return;
            }
            assert!(
                self.read(deadline),
                "no {text:?} in:\n{seen}",
                seen = String::from_utf8_lossy(&self.unread)
            );
        }
    }

    /// Reads until the other end is closed.
    pub(crate) fn until_hung_up(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while self.read(deadline) {}
        assert!(Instant::now() < deadline, "the terminal is still there");
    }

    /// Sets the window's size.
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.terminal, size).expect("a terminal has a size");
    }

    /// Reads once; false at the end of the terminal or of the time.
    fn read(&mut self, deadline: Instant) -> bool {
        if !readable(&self.terminal, deadline) {
            return false;
        }
        let mut chunk = [0; 4096];
        match rustix::io::read(&self.terminal, &mut chunk) {
            Ok(0) | Err(rustix::io::Errno::IO) => false,
            Ok(length) => {
                self.unread.extend_from_slice(&chunk[..length]);
                true
            }
            Err(rustix::io::Errno::AGAIN) => true,
            Err(error) => panic!("cannot read the terminal: {error}"),
        }
    }
}

fn readable(fd: &OwnedFd, deadline: Instant) -> bool {
    let patience = deadline.saturating_duration_since(Instant::now());
    let patience = Timespec::try_from(patience).expect("minutes fit");
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&patience)).expect("poll works") > 0
}

/// The children of this process.
pub(crate) fn children() -> Vec<i32> {
    std::fs::read_dir("/proc/self/task")
        .expect("/proc is mounted")
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok())
        .flat_map(|line| {
            line.split_whitespace()
                .map(|pid| pid.parse().expect("a pid"))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// A process whose end is awaited.
#[derive(Debug)]
pub(crate) struct Awaited(OwnedFd);

/// Awaits the end of `pid`.
pub(crate) fn die_with(pid: i32) -> Awaited {
    let pid = Pid::from_raw(pid).expect("not zero");
    Awaited(pidfd_open(pid, PidfdFlags::empty()).expect("it is alive"))
}

impl Awaited {
    /// Fails unless the process ends in time.
    pub(crate) fn expect_within(&self, patience: Duration) {
        assert!(readable(&self.0, Instant::now() + patience), "it lives on");
    }
}

/// Logs as `cocoon __vmm` does: records go to a thread that no filter holds.
pub(crate) fn log_to_stderr() {
    struct Channel(Sender<String>);
    impl log::Log for Channel {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            let _ = self.0.send(format!(
                "{} {}: {}",
                record.level(),
                record.target(),
                record.args()
            ));
        }
        fn flush(&self) {}
    }
    let (lines, written) = channel::<String>();
    std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || written.iter().for_each(|line| eprintln!("{line}")))
        .expect("threads start");
    log::set_boxed_logger(Box::new(Channel(lines))).expect("there is no other");
    log::set_max_level(log::LevelFilter::Info);
}
