//! The conformance cases against Cloud Hypervisor, and what it alone has: an API socket, threads
//! under filters of its own, and a child that watches the terminal's size.

#[path = "../../tests/engine/conformance/mod.rs"]
mod conformance;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitCode;
use std::time::Instant;

use cocoon::units::ByteSize;
use cocoon::vm::spec::{Boot, Console, VmSpec};
use cocoon_full::CloudHypervisor;
use conformance::console::readable;
use conformance::payload;
use conformance::spec::{Tap, disk, nic, paths};
use conformance::{Case, Lab, Needs, SOON, Subject, say};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use rustix::termios::{Winsize, tcsetwinsize};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

static CLOUD_HYPERVISOR: Subject = Subject {
    engine: &CloudHypervisor,
    // The stream of events ends with the process, those of `life` are at their last line, and a
    // boot that fails early leaves the kernel's loader to end by itself.
    may_stay: &[
        "event-monitor",
        "ch-events",
        "ch-life",
        "ch-join",
        "payload_loader",
    ],
    serial_console: false,
    cannot: &[(
        "two_guests_of_one_save_draw_other_random_numbers",
        "Cloud Hypervisor v53.0 has no generation id",
    )],
    special: &[
        Case {
            name: "firmware_runs_and_finds_the_disk",
            needs: Needs::Kvm,
            body: firmware_runs_and_finds_the_disk,
        },
        Case {
            name: "a_forbidden_call_is_named",
            needs: Needs::Kvm,
            body: a_forbidden_call_is_named,
        },
        Case {
            name: "a_saved_vm_is_restored_larger_and_what_is_saved_of_it_is_as_large",
            // Not Linux, but a KVM that gives a VM's whole state, as where Linux runs.
            needs: Needs::Guest,
            body: a_saved_vm_is_restored_larger,
        },
        Case {
            name: "the_window_size_is_the_guests",
            needs: Needs::Guest,
            body: the_window_size_is_the_guests,
        },
        Case {
            name: "its_threads_are_confined_and_its_own_client_is_answered",
            needs: Needs::Taps,
            body: its_threads_are_confined_and_its_own_client_is_answered,
        },
        Case {
            name: "a_killed_vm_process_leaves_no_child",
            needs: Needs::Guest,
            body: a_killed_vm_process_leaves_no_child,
        },
    ],
};

pub(crate) fn main() -> ExitCode {
    conformance::main(&CLOUD_HYPERVISOR)
}

/// A call that is no part of any VM: getppid, on x86-64.
const FORBIDDEN_CALL: i64 = 110;

/// Looks for a virtio disk (1af4:1042) among the first 32 PCI devices, and prints `FIRMWARE D` at port 3f8 if
/// there is one, else `FIRMWARE N`. 32-bit code; each comment begins with the offset.
#[rustfmt::skip]
const FIRMWARE: &[u8] = &[
    0xb9, 0x00, 0x00, 0x00, 0x80,        //  0; mov ecx, 0x80000000
    // next:
    0x89, 0xc8,                          //  5; mov eax, ecx
    0x66, 0xba, 0xf8, 0x0c,              //  7; mov dx, 0xcf8
    0xef,                                // 11; out dx, eax
    0x66, 0xba, 0xfc, 0x0c,              // 12; mov dx, 0xcfc
    0xed,                                // 16; in eax, dx
    0x3d, 0xf4, 0x1a, 0x42, 0x10,        // 17; cmp eax, 0x10421af4
    0xb3, b'D',                          // 22; mov bl, 'D'
    0x74, 0x10,                          // 24; je print (42 - 26)
    0x81, 0xc1, 0x00, 0x08, 0x00, 0x00,  // 26; add ecx, 0x800
    0x81, 0xf9, 0x00, 0x00, 0x01, 0x80,  // 32; cmp ecx, 0x80010000
    0x75, 0xdd,                          // 38; jne next (5 - 40)
    0xb3, b'N',                          // 40; mov bl, 'N'
    // print:
    0xbe, 0x44, 0x00, 0x10, 0x00,        // 42; mov esi, 0x100044
    0x66, 0xba, 0xf8, 0x03,              // 47; mov dx, 0x3f8
    // letter:
    0xac,                                // 51; lodsb
    0x84, 0xc0,                          // 52; test al, al
    0x74, 0x03,                          // 54; jz +3
    0xee,                                // 56; out dx, al
    0xeb, 0xf8,                          // 57; jmp letter (51 - 59)
    0x88, 0xd8,                          // 59; mov al, bl
    0xee,                                // 61; out dx, al
    0xb0, 0x0a,                          // 62; mov al, '\n'
    0xee,                                // 64; out dx, al
    0xf4,                                // 65; hlt
    0xeb, 0xfd,                          // 66; jmp 65
    // 68:
    b'F', b'I', b'R', b'M', b'W', b'A', b'R', b'E', b' ', 0,
];

fn firmware_runs_and_finds_the_disk(lab: &Lab) {
    let path = lab.folder.path().join("firmware");
    std::fs::write(&path, payload::kernel(FIRMWARE.to_vec())).expect("there is room");
    let image = lab.folder.path().join("disk.raw");
    std::fs::write(&image, vec![0; 1 << 20]).expect("there is room");
    let mut vm = lab.boot(VmSpec {
        boot: Boot::Firmware { path },
        console: Console::Serial,
        disks: vec![disk(&image, "cocoon-cow", 1)],
        ..lab.payload()
    });
    vm.console.until("FIRMWARE D\n");
    vm.is_ended();
}

/// Runs in two processes: one makes the call, the other sees how that ends it.
fn a_forbidden_call_is_named(lab: &Lab) {
    if lab.part.is_some() {
        // A VMM listens to the signal from its beginning on.
        let mut spec = lab.payload();
        spec.disks.push(disk("/nowhere".as_ref(), "cocoon-cow", 1));
        lab.boot_error(&spec);
        make_forbidden_call();
        return;
    }
    let victim = lab
        .command()
        .args(["--part", "victim"])
        .arg(lab.folder.path())
        .output()
        .expect("the program can start itself");
    let said = String::from_utf8_lossy(&victim.stderr);
    let line = format!("seccomp: forbidden system call {FORBIDDEN_CALL}\n");
    assert!(said.contains(&line), "{said}");
    assert_eq!(victim.status.signal(), Some(Signal::SYS.as_raw()));
}

/// Makes the call on a thread that is confined as the VMM's are.
fn make_forbidden_call() {
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

/// Memory that is plugged in: two blocks of it.
const PLUGGED: ByteSize = ByteSize::from_mib(256);

/// A chain of three processes: one saves, the next restores that larger and saves it, the last restores
/// what is so large already.
fn a_saved_vm_is_restored_larger(lab: &Lab) {
    if let Some((part, folder)) = &lab.part {
        let spec = std::fs::read(folder.join("spec.json")).expect("it was saved");
        let mut spec: VmSpec = serde_json::from_slice(&spec).expect("it is JSON");
        spec.paths = paths(lab.folder.path());
        spec.cpus.added = 3;
        spec.memory.added = PLUGGED;
        let mut vm = lab.restore(spec, &folder.join(part));
        assert_confined("vcpu3");
        let info = vm.machine.info().expect("a running VM has an info");
        let sizes = [
            &info["config"]["cpus"]["boot_vcpus"],
            &info["memory_actual_size"],
        ];
        let memory = ByteSize::from_mib(64).bytes() + PLUGGED.bytes();
        assert_eq!(sizes.map(|size| size.as_u64()), [Some(4), Some(memory)]);
        vm.pause();
        let next = folder.join(format!("{part}-next"));
        std::fs::create_dir(&next).expect("there is room");
        vm.save(&next);
        let state = std::fs::read_to_string(next.join("state.json")).expect("it was saved");
        assert!(state.contains(r#"disk_nsectors\":8192"#), "{state}");
        vm.is_ended();
        return;
    }
    let mut spec = lab.counter(ByteSize::from_mib(64), ByteSize::from_mib(16));
    spec.cpus.max = 8;
    spec.memory.max = ByteSize::from_gib(1);
    let mut vm = lab.boot(spec);
    vm.pause();
    vm.save(&lab.make_folder("saved"));
    vm.is_ended();
    let folder = lab.folder.path();
    let spec = serde_json::to_vec(&vm.spec).expect("it is JSON");
    std::fs::write(folder.join("spec.json"), spec).expect("there is room");
    let disk = std::fs::OpenOptions::new()
        .write(true)
        .open(&vm.spec.disks[0].path);
    let grown = disk.and_then(|disk| disk.set_len(4 << 20));
    grown.expect("there is room");
    lab.part("saved", folder).ends_well();
    lab.part("saved-next", folder).ends_well();
}

fn the_window_size_is_the_guests(lab: &Lab) {
    let mut vm = lab.boot(lab.guest(1));
    vm.console.until("GUEST UP");
    let size = Winsize {
        ws_row: 37,
        ws_col: 101,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&vm.console.terminal, size).expect("a terminal has a size");
    // The guest learns of it by an interrupt, some time later.
    vm.console
        .run("until [ \"$(stty size)\" = '37 101' ]; do sleep 0.2; done");
    vm.console.enter("reboot -f");
    assert!(vm.console.until_or_hung_up("GUEST UP"), "a new terminal");
    vm.reopen_console();
    vm.console.until("GUEST UP");
    assert_eq!(children().len(), 1, "one watcher of the window's size");
    vm.machine.power_off().expect("the VMM ends its VM");
}

fn its_threads_are_confined_and_its_own_client_is_answered(lab: &Lab) {
    let mut spec = lab.guest(4);
    let overlay = lab.image("overlay.img", b"", 1 << 20);
    spec.disks.push(disk(&overlay, "cocoon-cow", 4));
    let _tap = Tap::new("tap0", 4);
    spec.nics.push(nic("tap0", 4));
    let mut vm = lab.boot(spec);
    vm.console.until("GUEST UP 4");
    for name in [
        "vmm",
        "vcpu0",
        "vcpu3",
        "_disk0_q0",
        "_net1_qp0",
        "http-server",
    ] {
        assert_confined(name);
    }
    let info = vm.machine.info().expect("a running VM has an info");
    assert!(info["counters"]["_net1"].is_object(), "{info:#}");
    let ping = ask_api(&vm.spec.paths.api_socket);
    assert!(ping.contains(r#""version":"53.0""#), "{ping}");
    vm.is_ended();
}

/// Checks that the named thread is among this process's and that a seccomp filter holds it.
fn assert_confined(name: &str) {
    let status: Vec<String> = std::fs::read_dir("/proc/self/task")
        .expect("/proc is mounted")
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok())
        .collect();
    let named = |status: &&String| status.starts_with(&format!("Name:\t{name}\n"));
    let thread = status.iter().find(named);
    let thread = thread.unwrap_or_else(|| panic!("no thread {name} in {status:#?}"));
    assert!(thread.contains("\nSeccomp:\t2\n"), "{thread}");
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
fn a_killed_vm_process_leaves_no_child(lab: &Lab) {
    if lab.part.is_some() {
        let _vm = lab.boot(lab.guest(1));
        say(&children()[0].to_string());
        loop {
            std::thread::park();
        }
    }
    let mut victim = lab.part("victim", lab.folder.path());
    let watcher: i32 = victim.hears().parse().expect("a process id");
    let pid = Pid::from_raw(watcher).expect("not zero");
    let gone = pidfd_open(pid, PidfdFlags::empty()).expect("it is alive");
    let descriptors = std::fs::read_dir(format!("/proc/{watcher}/fd")).expect("it is alive");
    // Its log and a pipe: nothing that would keep a lock, a disk or a TAP.
    assert_eq!(descriptors.count(), 2);
    victim.kill();
    assert!(readable(&gone, Instant::now() + SOON), "it lives on");
}

/// The children of this process.
fn children() -> Vec<i32> {
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
