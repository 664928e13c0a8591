//! Runs cases: each in a process of its own, one after another.

use std::env;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use cocoon::sys::{hugepages, malloc};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use super::spec::PAYLOAD_MEMORY;
use super::{Case, Lab, Needs, Subject, counter, devices, grow, life, sample, saved};

/// A case may not hang the list; the slowest one is a minute in the lab.
const CASE_LIMIT: Duration = Duration::from_secs(240);

/// What each further round of saving and restoring may add to that.
const ROUND_LIMIT: Duration = Duration::from_secs(20);

/// What the cases measured.
static FIGURES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Runs the program of one engine.
pub(crate) fn main(subject: &'static Subject) -> ExitCode {
    // As the process of a VM does.
    malloc::keep_to_one_arena();
    let mut args = env::args().skip(1);
    match args.next().as_deref() {
        Some("--case") => {
            let name = args.next().unwrap_or_default();
            // The next one is `--part`.
            let part = args.nth(1).zip(args.next().map(PathBuf::from));
            return run_here(subject, &name, part);
        }
        Some("--idle-kernel") => {
            let path = args.next().unwrap_or_default();
            std::fs::write(path, counter::idle()).expect("there is room");
            return ExitCode::SUCCESS;
        }
        Some("--sample") => return sample::main(subject, &args.collect::<Vec<_>>()),
        _ => {}
    }
    let mut arguments = Arguments::from_args();
    // A guest under emulation takes all there is.
    arguments.test_threads = Some(1);
    let conclusion = libtest_mimic::run(&arguments, trials(subject));
    for line in FIGURES.lock().expect("no one panics with it").iter() {
        println!("{line}");
    }
    conclusion.exit_code()
}

/// All cases, with the groups that their names begin with.
fn cases(subject: &'static Subject) -> impl Iterator<Item = (&'static str, &'static Case)> {
    let groups = [
        ("life", life::CASES),
        ("devices", devices::CASES),
        ("saved", saved::CASES),
        ("grow", grow::CASES),
        ("special", subject.special),
    ];
    groups
        .into_iter()
        .flat_map(|(group, cases)| cases.iter().map(move |case| (group, case)))
}

/// Is this the process of a case, and not the list?
fn run_here(subject: &'static Subject, name: &str, part: Option<(String, PathBuf)>) -> ExitCode {
    let Some((_, case)) = cases(subject).find(|(_, case)| case.name == name) else {
        return ExitCode::from(2);
    };
    (case.body)(&lab(subject, case.name, part));
    ExitCode::SUCCESS
}

/// Makes this process one that runs a VM.
pub(crate) fn lab(
    subject: &'static Subject,
    case: &'static str,
    part: Option<(String, PathBuf)>,
) -> Lab {
    // Whatever becomes of the list, its guests do not stay.
    set_parent_process_death_signal(Some(Signal::KILL)).expect("it is a signal");
    cocoon::vmm::logging::install().expect("there is no other log");
    Lab {
        subject,
        folder: tempfile::tempdir().expect("there is room"),
        part,
        case,
        guest: guest(),
    }
}

fn guest() -> Option<PathBuf> {
    env::var_os("COCOON_ENGINE_GUEST").map(PathBuf::from)
}

/// How often to save and restore, if not as few times as the case wants by itself.
pub(crate) fn rounds(default: u32) -> u32 {
    let wanted = env::var("COCOON_ENGINE_ROUNDS").ok();
    wanted.map_or(default, |text| text.parse().expect("a number of rounds"))
}

fn trials(subject: &'static Subject) -> Vec<Trial> {
    let has_guest = guest().is_some();
    let trial = |(group, case): (&str, &'static Case)| {
        let runs =
            has_guest || matches!(case.needs, Needs::Kvm | Needs::Payload | Needs::HugePages);
        let name = format!("{group}::{}", case.name);
        runs.then(|| Trial::ignorable_test(name, move || run(subject, case)))
    };
    let mut trials: Vec<Trial> = cases(subject).filter_map(trial).collect();
    let left = cases(subject).count() - trials.len();
    if left > 0 {
        trials.push(Trial::ignorable_test("linux_guests", move || {
            Ok(Completion::ignored_with(format!(
                "COCOON_ENGINE_GUEST is not set; {left} cases with Linux run in the lab"
            )))
        }));
    }
    trials
}

fn run(subject: &'static Subject, case: &Case) -> Result<Completion, Failed> {
    if let Some(why) = missing(subject, case) {
        return Ok(Completion::ignored_with(why));
    }
    let begin = Instant::now();
    let mut child = Command::new("/proc/self/exe")
        .args(["--case", case.name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start the case: {error}"))?;
    let said = listen(&mut child);
    let status = child
        .wait()
        .map_err(|error| format!("cannot wait for the case: {error}"))?;
    if !status.success() {
        return Err(format!("{said}{status}").into());
    }
    let engine = subject.engine.name();
    let mut lines = summary(&said);
    lines.push(format!("TIME all of it {} ms", begin.elapsed().as_millis()));
    let mut figures = FIGURES.lock().expect("no one panics with it");
    let named = |line: String| format!("{} {engine} {}: {}", &line[..4], case.name, &line[5..]);
    figures.extend(lines.into_iter().map(named));
    Ok(Completion::Completed)
}

/// The figures in what a case said: rates as they are, times of the same thing together.
fn summary(said: &str) -> Vec<String> {
    let mut times: Vec<(&str, Vec<f64>)> = Vec::new();
    let mut lines = Vec::new();
    for line in said.lines() {
        if line.starts_with("RATE ") {
            lines.push(line.to_owned());
        }
        let time = line.strip_prefix("TIME ");
        let Some((what, millis)) = time.and_then(|time| time.strip_suffix(" ms")?.rsplit_once(' '))
        else {
            continue;
        };
        let millis = millis.parse().unwrap_or(f64::NAN);
        match times.iter_mut().find(|(known, _)| *known == what) {
            Some((_, all)) => all.push(millis),
            None => times.push((what, vec![millis])),
        }
    }
    let sums = times.into_iter().map(|(what, mut all)| {
        all.sort_by(f64::total_cmp);
        let (least, median, most) = (all[0], all[all.len() / 2], all[all.len() - 1]);
        match all.len() {
            1 => format!("TIME {what} {median} ms"),
            n => format!("TIME {what} {median} ms (median of {n}, {least} to {most})"),
        }
    });
    lines.extend(sums);
    lines
}

/// Why the case cannot run.
fn missing(subject: &Subject, case: &Case) -> Option<String> {
    if let Some((_, why)) = subject.cannot.iter().find(|(name, _)| *name == case.name) {
        return Some((*why).to_owned());
    }
    if matches!(case.needs, Needs::Payload | Needs::HugePages) && !subject.serial_console {
        let engine = subject.engine.name();
        return Some(format!("VMs of {engine} have no serial port to speak on"));
    }
    if case.needs == Needs::HugePages && hugepages::free_bytes() < PAYLOAD_MEMORY.bytes() {
        return Some(format!(
            "fewer than {PAYLOAD_MEMORY} of huge pages are free: vm.nr_hugepages"
        ));
    }
    if case.needs == Needs::Patience && env::var_os("COCOON_ENGINE_LONG").is_none() {
        return Some("it takes a minute: COCOON_ENGINE_LONG is not set".to_owned());
    }
    let devices: &[&str] = match case.needs {
        Needs::Taps => &["/dev/kvm", "/dev/net/tun"],
        _ => &["/dev/kvm"],
    };
    devices.iter().find_map(|device| {
        let opened = std::fs::File::options().read(true).write(true).open(device);
        opened.err().map(|error| format!("{device}: {error}"))
    })
}

/// All that the case writes to standard error, until it ends or its time is over.
fn listen(child: &mut Child) -> String {
    let pid = Pid::from_child(child);
    let mut stderr = child.stderr.take().expect("it is piped");
    let limit = CASE_LIMIT + ROUND_LIMIT * rounds(0);
    let mut bytes = Vec::new();
    thread::scope(|scope| {
        let (done, finished) = channel::<()>();
        scope.spawn(move || {
            if finished.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        let _ = stderr.read_to_end(&mut bytes);
        drop(done);
    });
    String::from_utf8_lossy(&bytes).into_owned()
}
