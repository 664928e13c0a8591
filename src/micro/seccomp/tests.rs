//! Threads under each filter do what they must, and nothing else.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use kvm_ioctls::Kvm;
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::micro::bus::Bus;
use crate::micro::cpu;
use crate::micro::lane::Lanes;
use crate::micro::notice::{Fault, Notice, Notices};
use crate::micro::vcpu::{Surroundings, Vcpus};
use crate::micro::virtio::device::QueueHandler;

/// Says what the child process of a test is to do.
const DEED: &str = "COCOON_TEST_DOES_UNDER_A_FILTER";

fn confined<T: Send + 'static>(
    prologue: &Prologue,
    deed: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let prologue = Arc::clone(prologue);
    std::thread::spawn(move || {
        prologue().unwrap();
        deed()
    })
}

/// Runs the test `name` again, in a process of its own in which [`DEED`] is `deed`.
fn child(name: &str, deed: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("micro::seccomp::tests::{name}")])
        .arg("--nocapture")
        .env(DEED, deed)
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap()
}

fn deed() -> Option<String> {
    std::env::var(DEED).ok()
}

#[test]
fn every_thread_may_allocate_talk_wait_and_end() {
    for prologue in [vcpu().unwrap(), lane().unwrap()] {
        let (sender, receiver) = channel();
        let thread = confined(&prologue, move || {
            // Small, large enough for mmap, and grown by mremap.
            let mut numbers: Vec<u64> = (0..10).collect();
            numbers.extend(0..1_000_000);
            numbers.extend(0..2_000_000);
            let table: std::collections::HashMap<u64, String> =
                (0..1000).map(|n| (n, n.to_string())).collect();
            eprintln!("at {:?}", std::time::SystemTime::now());
            receiver.recv().unwrap();
            numbers.len() + table.len()
        });
        sender.send(()).unwrap();
        assert_eq!(thread.join().unwrap(), 3_001_010);
    }
}

/// Many threads at once make malloc look for arenas.
#[test]
fn threads_under_filters_may_quarrel_for_memory() {
    let prologue = lane().unwrap();
    let allocate = || {
        (0..2000_usize)
            .map(|n| vec![0_u8; n % 700].len())
            .sum::<usize>()
    };
    let threads: Vec<_> = (0..32).map(|_| confined(&prologue, allocate)).collect();
    for thread in threads {
        assert!(thread.join().unwrap() > 0);
    }
}

/// As an I/O thread does when a vsock connection's peer has caught up.
#[test]
fn threads_under_filters_may_let_go_of_much_memory() {
    let name = "threads_under_filters_may_let_go_of_much_memory";
    if let Some(deed) = deed() {
        // The test's own thread has an arena; the next one is to have none.
        crate::sys::malloc::keep_to_one_arena();
        let prologue = if deed == "vcpu" { vcpu() } else { lane() };
        let much = || (0..1000).map(|_| vec![1_u8; 16 << 10]).collect::<Vec<_>>();
        let thread = confined(&prologue.unwrap(), move || much().len());
        assert_eq!(thread.join().unwrap(), 1000);
        return;
    }
    // What libc asks, it asks once in the life of a process.
    for thread in ["vcpu", "lane"] {
        let output = child(name, thread);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{thread}: {said}");
    }
}

#[derive(Debug)]
struct Reader(EventFd, std::sync::mpsc::Sender<u64>);

impl MutEventSubscriber for Reader {
    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        self.1.send(self.0.read().unwrap()).unwrap();
    }
}

impl QueueHandler for Reader {
    fn quiesce(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn queues(&self) -> Vec<(u16, QueueState)> {
        Vec::new()
    }
}

#[test]
fn lanes_live_under_their_filter() {
    let lanes = Lanes::start(2, &lane().unwrap()).unwrap();
    let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let (sender, receiver) = channel();
    let reader = Reader(event.try_clone().unwrap(), sender);
    let place = lanes.add(1, Box::new(reader)).unwrap();
    event.write(7).unwrap();
    assert_eq!(receiver.recv().unwrap(), 7);
    lanes.park().unwrap();
    let quiesced = lanes.with(place, |handler| handler.quiesce()).unwrap();
    quiesced.unwrap().unwrap();
    lanes.unpark();
    assert!(lanes.remove(place).unwrap().is_some());
    drop(lanes);
}

#[test]
fn vcpus_live_under_their_filter() {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return println!("SKIPPED: /dev/kvm does not open: {error}"),
    };
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    let extent = cpu::state::Extent::ask(&kvm, &vm).unwrap();
    let fds = (0..2).map(|number| vm.create_vcpu(number).unwrap());
    let (notices, noticed) = channel();
    let surroundings = Surroundings {
        mmio: Bus::default(),
        ports: Bus::default(),
        notices: Notices::new(notices),
    };
    let vcpus = Vcpus::start(fds.collect(), &surroundings, &vcpu().unwrap()).unwrap();
    // Without RAM at the reset vector: whatever KVM makes of that, it has run.
    vcpus.run().unwrap();
    let notice = noticed.recv().unwrap();
    let ran = matches!(notice, Notice::VcpuFailed { .. } | Notice::Reset);
    assert!(ran, "{notice:?}");
    vcpus.pause().unwrap();
    let saved = vcpus.each(move |number, fd| {
        // Without KVM's clock in the guest there is nobody to tell.
        let _ = fd.kvmclock_ctrl();
        cpu::state::save(fd, number, &extent).is_ok()
    });
    assert_eq!(saved.unwrap(), [true, true]);
    drop(vcpus);
}

#[test]
fn a_panic_says_its_message_and_an_abort_ends_by_its_signal() {
    let name = "a_panic_says_its_message_and_an_abort_ends_by_its_signal";
    if deed().is_some() {
        let thread = confined(&lane().unwrap(), || {
            let _ = std::panic::catch_unwind(|| panic!("on purpose"));
            // As in a release.
            std::process::abort();
        });
        thread.join().unwrap();
    }
    let output = child(name, "panic");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("on purpose"), "{said}");
    assert!(!said.contains("forbidden"), "{said}");
    assert_eq!(output.status.signal(), Some(libc::SIGABRT));
}

/// What a thread that the guest took over might try, and the call that ends it.
#[expect(unsafe_code, reason = "deeds that no safe interface offers")]
fn do_wrong(deed: &str) {
    match deed {
        "open a file" => drop(std::fs::File::open("/etc/passwd")),
        "make memory executable" => {
            // SAFETY: new memory, which nothing uses.
            let _ = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    libc::PROT_READ | libc::PROT_EXEC,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
        }
        "reach the network" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
        "become a program" => {
            let arguments = [c"/bin/true".as_ptr(), std::ptr::null()];
            // SAFETY: both end with a null.
            let _ = unsafe { libc::execv(arguments[0], arguments.as_ptr()) };
        }
        "make a VM" => {
            // SAFETY: KVM_CREATE_VM of a descriptor that is no KVM does nothing.
            let _ = unsafe { libc::ioctl(0, 0xae01, 0) };
        }
        "kill" => {
            // SAFETY: signal 0 only asks.
            let _ = unsafe { libc::kill(1, 0) };
        }
        _ => unreachable!("{deed}"),
    }
}

#[test]
fn what_is_not_listed_is_named_and_ends_the_process() {
    if let Some(deed) = deed() {
        let (thread, deed) = deed.split_once(": ").unwrap();
        let prologue = if thread == "vcpu" { vcpu() } else { lane() };
        let deed = deed.to_owned();
        confined(&prologue.unwrap(), move || do_wrong(&deed))
            .join()
            .unwrap();
        unreachable!("the call was made");
    }
    for (deed, call) in [
        ("open a file", libc::SYS_openat),
        ("make memory executable", libc::SYS_mmap),
        ("reach the network", libc::SYS_socket),
        ("make a VM", libc::SYS_ioctl),
        ("kill", libc::SYS_kill),
        ("become a program", libc::SYS_execve),
    ] {
        for (thread, called) in [("vcpu", "a vCPU's thread"), ("lane", "an I/O thread")] {
            let name = "what_is_not_listed_is_named_and_ends_the_process";
            let output = child(name, &format!("{thread}: {deed}"));
            let said = String::from_utf8_lossy(&output.stderr);
            let line = format!("seccomp: forbidden system call {call} on {called}\n");
            assert!(said.contains(&line), "{thread}, {deed}: {said}");
            assert_eq!(
                output.status.signal(),
                Some(libc::SIGSYS),
                "{thread}, {deed}"
            );
        }
    }
}
