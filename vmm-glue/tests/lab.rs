//! The engine against a real KVM: each case is a process of its own that boots a guest through the
//! port, as `cocoon __vmm` does.
//!
//! Needs root, `/dev/kvm`, `/dev/net/tun`, and in `COCOON_LAB_GUEST` a folder that `guest/pack`
//! filled; without them every case is counted as skipped. Arguments are names of cases.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a test program prints is its result"
)]

mod support;

use std::io::{BufRead, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use cocoon::vmm::engine::{Event, StopReason};
use rustix::process::{Pid, Signal, kill_process};

use support::{Guest, Vm, children, die_with};

/// A case by its name.
type Case = (&'static str, fn(&Guest));

/// The cases, quickest first.
const CASES: &[Case] = &[
    ("a_missing_tap_is_refused", a_missing_tap_is_refused),
    ("a_forbidden_call_is_named", a_forbidden_call_is_named),
    (
        "a_missing_disk_fails_the_boot_with_its_name",
        a_missing_disk_fails_the_boot_with_its_name,
    ),
    (
        "a_kernel_that_is_none_fails_the_boot",
        a_kernel_that_is_none_fails_the_boot,
    ),
    ("the_guest_powers_off", the_guest_powers_off),
    (
        "the_power_button_reaches_the_guest",
        the_power_button_reaches_the_guest,
    ),
    ("cocoon_ends_the_vm", cocoon_ends_the_vm),
    ("sigterm_ends_the_vm", sigterm_ends_the_vm),
    (
        "the_guest_reboots_and_its_console_lives_on",
        the_guest_reboots_and_its_console_lives_on,
    ),
    (
        "the_window_size_is_the_guests",
        the_window_size_is_the_guests,
    ),
    (
        "disks_and_nics_are_what_the_spec_says",
        disks_and_nics_are_what_the_spec_says,
    ),
    (
        "a_killed_vm_process_leaves_no_child",
        a_killed_vm_process_leaves_no_child,
    ),
    ("a_panicked_guest_is_ended", a_panicked_guest_is_ended),
];

/// Wait for one line of a guest under emulation, on a busy host.
const SOON: Duration = Duration::from_secs(90);

/// A case may not hang the list.
const CASE_LIMIT: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name] = args.as_slice()
        && flag == "--in-this-process"
    {
        let Some((_, case)) = CASES.iter().find(|(known, _)| known == name) else {
            return ExitCode::from(2);
        };
        support::log_to_stderr();
        case(&Guest::from_env().expect("the list was started with a guest"));
        return ExitCode::SUCCESS;
    }
    let chosen = CASES
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| args.is_empty() || args.iter().any(|arg| arg == name));
    if let Err(missing) = Guest::from_env() {
        println!("0 passed, 0 failed, {} skipped: {missing}", chosen.count());
        return ExitCode::SUCCESS;
    }
    run(chosen)
}

/// Runs each case in a child and counts.
fn run<'a>(names: impl Iterator<Item = &'a str>) -> ExitCode {
    let (mut passed, mut failed) = (0, 0);
    for name in names {
        let begin = Instant::now();
        let (well, said) = in_a_child(name);
        let seconds = begin.elapsed().as_secs_f32();
        if well {
            passed += 1;
            println!("PASS {name} ({seconds:.1} s)");
            for line in said.lines().filter(|line| line.starts_with("TIME")) {
                println!("     {line}");
            }
        } else {
            failed += 1;
            println!("FAIL {name} ({seconds:.1} s)\n{said}");
        }
    }
    println!("{passed} passed, {failed} failed, 0 skipped");
    ExitCode::from(u8::from(failed > 0))
}

fn child_command(name: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(["--in-this-process", name]);
    command
}

fn in_a_child(name: &str) -> (bool, String) {
    let mut child = child_command(name)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program can start itself");
    let pid = Pid::from_child(&child);
    let mut said = String::new();
    let mut stderr = child.stderr.take().expect("it is piped");
    std::thread::scope(|scope| {
        let (done, finished) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            if finished
                .recv_timeout(CASE_LIMIT)
                .is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        let mut bytes = Vec::new();
        let _ = stderr.read_to_end(&mut bytes);
        said = String::from_utf8_lossy(&bytes).into_owned();
        drop(done);
    });
    let status = child.wait().expect("it is ours");
    if !status.success() {
        said.push_str(&format!("{status}\n"));
    }
    (status.success(), said)
}

fn a_missing_tap_is_refused(guest: &Guest) {
    let mut spec = guest.spec(1);
    spec.nics.push(support::nic("cocoon-no-tap", 1));
    let said = support::boot_error(&spec);
    assert!(said.contains("no TAP device cocoon-no-tap"), "{said}");
}

fn a_missing_disk_fails_the_boot_with_its_name(guest: &Guest) {
    let mut spec = guest.spec(1);
    spec.disks.push(support::disk(
        "/nowhere/overlay.img".into(),
        "cocoon-cow",
        1,
    ));
    let said = support::boot_error(&spec);
    assert!(said.contains("boot the VM"), "{said}");
    assert!(said.contains("/nowhere/overlay.img"), "{said}");
    assert!(said.contains("No such file"), "{said}");
    support::assert_vmm_is_gone(&spec);
}

/// Runs in two processes: one makes the call, the other sees how that ends it.
fn a_forbidden_call_is_named(guest: &Guest) {
    const MAKES_THE_CALL: &str = "COCOON_LAB_FORBIDDEN";
    if std::env::var_os(MAKES_THE_CALL).is_some() {
        let mut spec = guest.spec(1);
        spec.disks
            .push(support::disk("/nowhere".into(), "cocoon-cow", 1));
        support::boot_error(&spec);
        support::make_forbidden_call();
        return;
    }
    let victim = child_command("a_forbidden_call_is_named")
        .env(MAKES_THE_CALL, "1")
        .output()
        .expect("the program can start itself");
    let said = String::from_utf8_lossy(&victim.stderr);
    let line = format!(
        "seccomp: forbidden system call {}\n",
        support::FORBIDDEN_CALL
    );
    assert!(said.contains(&line), "{said}");
    assert_eq!(victim.status.signal(), Some(Signal::SYS.as_raw()));
}

fn a_kernel_that_is_none_fails_the_boot(guest: &Guest) {
    let mut spec = guest.spec(1);
    let cocoon::vm::spec::Boot::Direct { kernel, .. } = &mut spec.boot;
    *kernel = "/etc/passwd".into();
    let said = support::boot_error(&spec);
    assert!(said.contains("boot the VM"), "{said}");
    support::assert_vmm_is_gone(&spec);
}

fn the_guest_powers_off(guest: &Guest) {
    let mut vm = Vm::boot(guest.spec(1));
    vm.console.until("GUEST UP 1", SOON);
    vm.console.enter("poweroff -f");
    vm.ends_by(StopReason::GuestPowerOff);
}

fn the_power_button_reaches_the_guest(guest: &Guest) {
    let mut vm = Vm::boot(guest.spec(1));
    vm.console.until("GUEST UP", SOON);
    // The shell comes after the listener.
    vm.console.enter("echo a''live");
    vm.console.until("alive", SOON);
    vm.machine
        .press_power_button()
        .expect("the button is there");
    vm.ends_by(StopReason::GuestPowerOff);
}

fn cocoon_ends_the_vm(guest: &Guest) {
    let mut vm = Vm::boot(guest.spec(1));
    vm.console.until("GUEST UP", SOON);
    vm.machine.power_off().expect("the VMM ends its VM");
    vm.ends_by(StopReason::Stopped);
    vm.machine
        .power_off()
        .expect("a VM that is over may be ended again");
    assert!(vm.machine.info().is_err());
    assert!(vm.machine.console().is_err());
}

fn sigterm_ends_the_vm(guest: &Guest) {
    let mut vm = Vm::boot(guest.spec(1));
    vm.console.until("GUEST UP", SOON);
    kill_process(rustix::process::getpid(), Signal::TERM).expect("a process may signal itself");
    vm.ends_by(StopReason::Stopped);
}

fn the_guest_reboots_and_its_console_lives_on(guest: &Guest) {
    let mut vm = Vm::boot(guest.spec(1));
    vm.console.until("GUEST UP", SOON);
    vm.console.enter("reboot -f");
    vm.console.until_hung_up(SOON);
    // Before the event: the answer waits for the reboot.
    vm.reopen_console();
    assert_eq!(vm.events.recv_timeout(SOON), Ok(Event::Rebooted));
    vm.console.until("GUEST UP", SOON);
    vm.console.enter("echo a''live");
    vm.console.until("alive", SOON);
    assert_eq!(children().len(), 1, "one watcher of the window's size");
    vm.machine.power_off().expect("the VMM ends its VM");
    vm.ends_by(StopReason::Stopped);
}

fn the_window_size_is_the_guests(guest: &Guest) {
    let mut vm = Vm::boot(guest.spec(1));
    vm.console.until("GUEST UP", SOON);
    vm.console.resize(37, 101);
    // The guest learns of it by an interrupt, some time later.
    vm.console
        .enter("until [ \"$(stty size)\" = '37 101' ]; do sleep 0.2; done; echo s''ized");
    vm.console.until("sized", SOON);
    vm.machine.power_off().expect("the VMM ends its VM");
    vm.ends_by(StopReason::Stopped);
}

fn disks_and_nics_are_what_the_spec_says(guest: &Guest) {
    let mut spec = guest.spec(4);
    let layer = support::image(&spec, "layer.img", b"lowest layer");
    let overlay = support::image(&spec, "overlay.img", b"");
    spec.disks.push(support::disk(layer, "cocoon-layer0", 4));
    spec.disks[0].readonly = true;
    spec.disks
        .push(support::disk(overlay.clone(), "cocoon-cow", 4));
    support::make_tap("tap0", "10.11.12.1/24");
    spec.nics.push(support::nic("tap0", 4));
    let mut vm = Vm::boot(spec);
    vm.console.until("GUEST UP 4", SOON);
    let cases = [
        ("cat /sys/block/vda/serial; echo", "cocoon-layer0"),
        ("cat /sys/block/vdb/serial; echo", "cocoon-cow"),
        ("head -c 12 /dev/vda; echo", "lowest layer"),
        (
            "cat /sys/block/vda/ro /sys/block/vdb/ro | tr '\\n' '-'; echo",
            "1-0-",
        ),
        ("ls /sys/block/vdb/mq | wc -w | sed s/^/mq/", "mq4"),
        ("cat /sys/class/net/eth0/address", "02:00:00:00:00:07"),
        ("cat /sys/class/net/eth0/mtu | sed s/^/mtu/", "mtu1450"),
        (
            "ls -d /sys/class/net/eth0/queues/?x-* | wc -w | sed s/^/q/",
            "q8",
        ),
        (
            "ip a add 10.11.12.2/24 dev eth0; ip link set eth0 up; ping -c 1 -W 60 10.11.12.1",
            " 0% packet loss",
        ),
        (
            "printf written | dd of=/dev/vdb conv=fsync 2>/dev/null; echo s''ynced",
            "synced",
        ),
    ];
    for (line, answer) in cases {
        vm.console.enter(line);
        vm.console.until(answer, SOON);
    }
    support::assert_confined(&[
        "vmm",
        "vcpu0",
        "vcpu3",
        "_disk0_q0",
        "_net2_qp0",
        "http-server",
    ]);
    let info = vm.machine.info().expect("a running VM has an info");
    assert_eq!(info["state"], "Running");
    assert!(info["counters"]["_net2"].is_object(), "{info:#}");
    let ping = ask_api(&vm.spec.paths.api_socket);
    assert!(ping.contains(r#""version":"53.0""#), "{ping}");
    vm.machine.power_off().expect("the VMM ends its VM");
    vm.ends_by(StopReason::Stopped);
    let mut head = [0; 7];
    std::fs::File::open(overlay)
        .and_then(|mut file| file.read_exact(&mut head))
        .expect("the overlay is there");
    assert_eq!(&head, b"written");
}

/// What the VMM's standard client would hear.
fn ask_api(socket: &std::path::Path) -> String {
    let mut stream = UnixStream::connect(socket).expect("the API socket listens");
    stream
        .set_read_timeout(Some(SOON))
        .expect("a socket has timeouts");
    stream
        .write_all(b"GET /api/v1/vmm.ping HTTP/1.1\r\nHost: vm\r\n\r\n")
        .expect("it takes requests");
    let mut answer = Vec::new();
    let mut chunk = [0; 1024];
    while !answer.ends_with(b"}") {
        let length = stream.read(&mut chunk).expect("it answers");
        assert_ne!(length, 0, "it answers in full");
        answer.extend_from_slice(&chunk[..length]);
    }
    String::from_utf8(answer).expect("HTTP is text")
}

/// Runs in two processes: one boots and waits, the other kills it.
fn a_killed_vm_process_leaves_no_child(guest: &Guest) {
    const BOOTS_AND_WAITS: &str = "COCOON_LAB_WAITS";
    if std::env::var_os(BOOTS_AND_WAITS).is_some() {
        let _vm = Vm::boot(guest.spec(1));
        println!("{}", children()[0]);
        loop {
            std::thread::park();
        }
    }
    let mut victim = child_command("a_killed_vm_process_leaves_no_child")
        .env(BOOTS_AND_WAITS, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program can start itself");
    let mut line = String::new();
    std::io::BufReader::new(victim.stdout.take().expect("it is piped"))
        .read_line(&mut line)
        .expect("it says who its child is");
    let watcher: i32 = line.trim().parse().expect("a process id");
    let gone = die_with(watcher);
    let descriptors = std::fs::read_dir(format!("/proc/{watcher}/fd")).expect("it is alive");
    // Its log and a pipe: nothing that would keep a lock, a disk or a TAP.
    assert_eq!(descriptors.count(), 2);
    victim.kill().expect("it is ours");
    victim.wait().expect("it is ours");
    gone.expect_within(SOON);
}

fn a_panicked_guest_is_ended(guest: &Guest) {
    let mut vm = Vm::boot(guest.spec(1));
    vm.console.until("GUEST UP", SOON);
    vm.console.enter("echo c > /proc/sysrq-trigger");
    vm.ends_by(StopReason::GuestPanic);
}
