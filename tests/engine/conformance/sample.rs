//! Samples for `make bench`: what one VM costs, in the words of `bench/summary.jq`.
//!
//! ```text
//!  bench/run ─▶ PROGRAM --sample NAME MIB FOLDER            notes the time, starts
//!                └─▶ PROGRAM --sample NAME MIB FOLDER TIME      the process of the VM, which prints
//!      {"engine":"micro","guest":"counter","figure":"boot","mib":256,"unit":"ms","value":7.5}
//! ```
//! | sample | the VM, of MIB | figures |
//! |---|---|---|
//! | `counter-boot` | [`counter`] | `boot` `beyond-ram` `beyond-ram-anonymous` |
//! | `counter-save`, into FOLDER | one that touches a quarter of its memory | `pause` `halted` |
//! | `counter-restore`, from FOLDER | the same | `restore-call` `restore` |
//! | `linux-boot` | Linux with a disk and a NIC | as of the counter |
//! | `linux-speed` | the same | and `disk-write` `disk-read` `tcp-in` `tcp-out` |
//! | `linux-save`, `linux-restore` | the same | as of the counter |
//!
//! Times begin right before the VM's process is started, unless they are of a call. `boot` and
//! `restore` end when the guest is seen to run: the counter by its count, Linux by its first line or
//! its answer. `halted` is what the guest misses by a save: pause, save and resume.
//!
//! `beyond-ram` is the memory of the VM's process in KiB that is not the guest's: the resident pages
//! (Rss) of all its mappings, shared ones in full, without those that are guest memory. Guest memory
//! is what is writable and at least half as large as it; the sum must be exactly its size.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use cocoon::units::ByteSize;
use cocoon::vm::spec::VmSpec;
use cocoon::vmm::Machine;
use cocoon::vmm::engine::{Event, StopReason};
use rustix::time::{ClockId, clock_gettime};

use super::spec::{Tap, disk, nic};
use super::vm::well;
use super::{Lab, SOON, Subject, counter, run, say, throughput};

type Body = fn(&Sample);

/// What the bench can ask for.
const SAMPLES: &[(&str, Body)] = &[
    ("counter-boot", counter_boot),
    ("counter-save", counter_save),
    ("counter-restore", counter_restore),
    ("linux-boot", linux_boot),
    ("linux-speed", linux_speed),
    ("linux-save", linux_save),
    ("linux-restore", linux_restore),
];

/// Name of the TAP device of Linux.
const TAP: &str = "tap0";

/// One VM, to be measured.
#[derive(Debug)]
pub(crate) struct Sample {
    lab: Lab,
    /// What runs in it.
    guest: &'static str,
    memory: ByteSize,
    folder: PathBuf,
    spawned: Duration,
}

/// Takes a sample: `NAME MIB FOLDER`, and the time in a process that was started for it.
pub(crate) fn main(subject: &'static Subject, args: &[String]) -> ExitCode {
    let [name, mib, folder, spawned @ ..] = args else {
        return ExitCode::from(2);
    };
    let Some((name, body)) = SAMPLES.iter().find(|(known, _)| known == name) else {
        return ExitCode::from(2);
    };
    let Some(spawned) = spawned.first() else {
        return spawn(name, args);
    };
    let number = |text: &str| text.parse().expect("a number");
    let lab = run::lab(subject, name, None);
    body(&Sample {
        lab,
        guest: name.split('-').next().unwrap_or(name),
        memory: ByteSize::from_mib(number(mib)),
        folder: folder.into(),
        spawned: Duration::from_nanos(number(spawned)),
    });
    ExitCode::SUCCESS
}

fn spawn(name: &str, args: &[String]) -> ExitCode {
    let _tap = name.starts_with("linux").then(|| Tap::new(TAP, 1));
    let mut command = Command::new("/proc/self/exe");
    command.arg("--sample").args(args);
    let status = command.arg(monotonic().as_nanos().to_string()).status();
    match status.expect("the program can start itself").success() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// The time on a clock that all processes share.
fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    now.try_into().expect("it counts from the machine's start")
}

impl Sample {
    fn report(&self, figure: &str, unit: &str, value: f64) {
        let line = serde_json::json!({
            "engine": self.lab.subject.engine.name(),
            "guest": self.guest,
            "figure": figure,
            "mib": self.memory.bytes() >> 20,
            "unit": unit,
            "value": value,
        });
        say(&line.to_string());
    }

    /// Reports the time since the process was started.
    fn report_since_spawn(&self, figure: &str) {
        self.report_time(figure, monotonic() - self.spawned);
    }

    fn report_time(&self, figure: &str, time: Duration) {
        self.report(figure, "ms", time.as_secs_f64() * 1000.0);
    }

    /// Reports how fast `bytes` went.
    pub(crate) fn report_rate(&self, figure: &str, bytes: u64, begin: Instant) {
        let mib = (bytes >> 20) as f64;
        self.report(figure, "MiB/s", mib / begin.elapsed().as_secs_f64());
    }

    fn report_beyond_ram(&self) {
        let all = mappings();
        let ram = all.iter().filter(|one| one.is_ram(self.memory));
        let ram: u64 = ram.map(|one| one.bytes).sum();
        assert_eq!(ram, self.memory.bytes(), "what is guest memory: {all:#?}");
        let others = all.iter().filter(|one| !one.is_ram(self.memory));
        let (rss, anonymous) = others.fold((0, 0), |(rss, anonymous), one| {
            (rss + one.rss_kib, anonymous + one.anonymous_kib)
        });
        self.report("beyond-ram", "KiB", rss as f64);
        self.report("beyond-ram-anonymous", "KiB", anonymous as f64);
    }

    /// Saves the VM into the folder, and reports what that costs the guest.
    fn save(&self, machine: &dyn Machine) {
        fs::create_dir_all(&self.folder).expect("there is room");
        let begin = Instant::now();
        well(machine.pause());
        self.report_time("pause", begin.elapsed());
        well(machine.save(&self.folder));
        well(machine.resume());
        self.report_time("halted", begin.elapsed());
    }

    fn quarter(&self) -> ByteSize {
        ByteSize::from_bytes(self.memory.bytes() / 4)
    }

    fn linux(&self) -> VmSpec {
        let mut spec = self.lab.guest(1);
        spec.memory.size = self.memory;
        spec.nics.push(nic(TAP, 1));
        let image = self.lab.image("disk.img", b"", throughput::DISK_BYTES);
        spec.disks.push(disk(&image, "cocoon-cow", 1));
        spec
    }
}

// ---- the counter ---------------------------------------------------------------------------------

fn counter_boot(sample: &Sample) {
    let spec = sample.lab.counter(sample.memory, ByteSize::default());
    let machine = well(sample.lab.subject.engine.boot(&spec));
    Counter::find(sample.memory).beyond(0);
    sample.report_since_spawn("boot");
    sample.report_beyond_ram();
    end(machine.as_ref());
}

fn counter_save(sample: &Sample) {
    let spec = sample.lab.counter(sample.memory, sample.quarter());
    let machine = well(sample.lab.subject.engine.boot(&spec));
    let counter = Counter::find(sample.memory);
    let seen = counter.beyond(0);
    sample.save(machine.as_ref());
    counter.beyond(seen);
    // Another file than the engine's, which may read all that is in its folder.
    fs::write(sample.folder.with_extension("count"), seen.to_string()).expect("there is room");
    end(machine.as_ref());
}

fn counter_restore(sample: &Sample) {
    let spec = sample.lab.counter(sample.memory, sample.quarter());
    let seen = fs::read_to_string(sample.folder.with_extension("count"));
    let seen = seen.expect("it was saved").parse().expect("a count");
    let begin = Instant::now();
    let machine = well(sample.lab.subject.engine.restore(&spec, &sample.folder));
    let call = begin.elapsed();
    let counter = Counter::find(sample.memory);
    counter.beyond(counter.beyond(seen));
    sample.report_since_spawn("restore");
    sample.report_time("restore-call", call);
    end(machine.as_ref());
}

fn end(machine: &dyn Machine) {
    let events = machine.events().expect("no one took them");
    well(machine.power_off());
    let event = events.recv_timeout(SOON);
    assert_eq!(event, Ok(Event::Stopped(StopReason::Stopped)));
}

/// The count in the memory of a guest, read behind its back.
struct Counter {
    memory: File,
    at: u64,
}

impl Counter {
    fn find(memory: ByteSize) -> Self {
        let all = mappings();
        let ram = all.iter().find(|one| one.is_ram(memory));
        Self {
            memory: File::open("/proc/self/mem").expect("a process may read its own memory"),
            at: ram.expect("a VM has memory").start + counter::COUNT,
        }
    }

    /// Waits until it has counted on from `last`, and returns how far it is.
    fn beyond(&self, last: u32) -> u32 {
        let deadline = Instant::now() + SOON;
        loop {
            let mut count = [0; 4];
            let read = self.memory.read_exact_at(&mut count, self.at);
            read.expect("guest memory is there");
            let count = u32::from_le_bytes(count);
            if count.wrapping_sub(last).cast_signed() > 0 {
                return count;
            }
            assert!(Instant::now() < deadline, "it stays at {count}, {last}");
            std::thread::yield_now();
        }
    }
}

// ---- Linux ---------------------------------------------------------------------------------------

fn linux_boot(sample: &Sample) {
    let mut vm = sample.lab.boot(sample.linux());
    vm.console.until("GUEST UP");
    sample.report_since_spawn("boot");
    sample.report_beyond_ram();
    vm.is_ended();
}

fn linux_speed(sample: &Sample) {
    let mut vm = sample.lab.boot(sample.linux());
    vm.console.until("GUEST UP");
    sample.report_since_spawn("boot");
    sample.report_beyond_ram();
    throughput::disk(sample, &mut vm);
    throughput::tcp(sample, &mut vm);
    vm.is_ended();
}

fn linux_save(sample: &Sample) {
    let mut vm = sample.lab.boot(sample.linux());
    vm.console.until("GUEST UP");
    vm.console.run("true");
    sample.save(vm.machine.as_ref());
    vm.console.run("true");
    vm.is_ended();
}

fn linux_restore(sample: &Sample) {
    let begin = Instant::now();
    let mut vm = sample.lab.restore(sample.linux(), &sample.folder);
    let call = begin.elapsed();
    vm.console.run("true");
    sample.report_since_spawn("restore");
    sample.report_time("restore-call", call);
    vm.is_ended();
}

// ---- memory --------------------------------------------------------------------------------------

/// One mapping of this process.
#[derive(Debug)]
struct Mapping {
    start: u64,
    bytes: u64,
    writable: bool,
    rss_kib: u64,
    anonymous_kib: u64,
}

impl Mapping {
    fn is_ram(&self, memory: ByteSize) -> bool {
        self.writable && self.bytes >= memory.bytes() / 2
    }
}

/// The mappings of this process, from `/proc/self/smaps`.
fn mappings() -> Vec<Mapping> {
    let text = fs::read_to_string("/proc/self/smaps").expect("/proc is mounted");
    let mut all: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let second = words.next().unwrap_or_default();
        if let Some(range) = first.split_once('-') {
            let address = |text| u64::from_str_radix(text, 16).expect("an address");
            let (start, end) = (address(range.0), address(range.1));
            all.push(Mapping {
                start,
                bytes: end - start,
                writable: second.starts_with("rw"),
                rss_kib: 0,
                anonymous_kib: 0,
            });
            continue;
        }
        let mapping = all.last_mut().expect("a mapping comes first");
        match first {
            "Rss:" => mapping.rss_kib = second.parse().expect("a figure"),
            "Anonymous:" => mapping.anonymous_kib = second.parse().expect("a figure"),
            _ => {}
        }
    }
    all
}
