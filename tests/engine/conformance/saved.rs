//! Pause, save and restore: nothing is lost, nothing happens twice, nothing is left behind.
//!
//! ```text
//!  boot ─ ticks ─▶ pause ─▶ save ─▶ resume ─ ticks ─▶ …          the VM that was saved lives on
//!                            └──▶ folder ─▶ restore ─ ticks ─▶    the same tick comes next here, too
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use cocoon::sys::hugepages;
use cocoon::vm::spec::VmSpec;
use cocoon::vmm::engine::{RestoredMemory, StopReason};

use super::devices::NIC_UP;
use super::run::rounds;
use super::spec::{HOST, PAYLOAD_MEMORY, Tap, disk, nic, paths, run, text};
use super::ticker::{Ticker, Ticks, count};
use super::vm::{Vm, kib, open_files, threads};
use super::{Case, Lab, Needs, Part, figure, say, wait_for_go};

/// The cases, quickest first.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "a_payload_stands_still_while_it_is_paused",
        needs: Needs::Payload,
        body: |lab| stands_still(lab, Ticker::Payload),
    },
    Case {
        name: "a_restored_payload_loses_no_tick",
        needs: Needs::Payload,
        body: |lab| loses_no_tick(lab, Ticker::Payload),
    },
    Case {
        name: "a_restored_payload_in_huge_pages_loses_no_tick",
        needs: Needs::HugePages,
        body: in_huge_pages_loses_no_tick,
    },
    Case {
        name: "two_payloads_of_one_save_live_at_once",
        needs: Needs::Payload,
        body: |lab| live_at_once(lab, Ticker::Payload),
    },
    Case {
        name: "saving_a_payload_often_leaks_nothing",
        needs: Needs::Payload,
        body: |lab| saving_leaks_nothing(lab, Ticker::Payload, rounds(20)),
    },
    Case {
        name: "a_chain_of_restored_payloads_leaks_nothing",
        needs: Needs::Payload,
        body: |lab| a_chain_leaks_nothing(lab, Ticker::Payload, rounds(10)),
    },
    Case {
        name: "what_is_no_saved_vm_is_not_restored",
        needs: Needs::Kvm,
        body: what_is_no_saved_vm_is_not_restored,
    },
    Case {
        name: "a_guest_stands_still_while_it_is_paused",
        needs: Needs::Guest,
        body: |lab| stands_still(lab, Ticker::Shell),
    },
    Case {
        name: "two_guests_of_one_save_live_at_once",
        needs: Needs::Guest,
        body: |lab| live_at_once(lab, Ticker::Shell),
    },
    Case {
        name: "a_restored_guest_keeps_its_disk_and_network",
        needs: Needs::Taps,
        body: a_restored_guest_keeps_its_disk_and_network,
    },
    Case {
        name: "a_restored_guest_reboots_and_powers_off",
        needs: Needs::Guest,
        body: a_restored_guest_reboots_and_powers_off,
    },
    Case {
        name: "a_chain_of_restored_guests_leaks_nothing",
        needs: Needs::Guest,
        body: |lab| a_chain_leaks_nothing(lab, Ticker::Shell, rounds(2)),
    },
    Case {
        name: "two_guests_of_one_save_draw_other_random_numbers",
        needs: Needs::Guest,
        body: two_guests_of_one_save_draw_other_random_numbers,
    },
];

/// Ticks that show that a guest lives.
const SOME: u32 = 5;

/// What a chain of processes shares: the spec, the saved VM, and what it has said.
pub(crate) struct Shared {
    /// Where it is.
    pub(crate) folder: PathBuf,
}

impl Shared {
    /// What is in `folder`, or will be.
    pub(crate) fn of(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// The folder of the saved VM.
    pub(crate) fn saved(&self) -> PathBuf {
        self.folder.join("saved")
    }

    /// An empty folder for who comes next.
    pub(crate) fn make_next(&self) -> PathBuf {
        let next = self.folder.join("next");
        fs::create_dir(&next).expect("there is room");
        next
    }

    /// Saves the paused VM for a part to come.
    pub(crate) fn save(&self, vm: &Vm) {
        fs::create_dir(self.saved()).expect("there is room");
        vm.save(&self.saved());
        let spec = serde_json::to_vec(&vm.spec).expect("it is JSON");
        fs::write(self.folder.join("spec.json"), spec).expect("there is room");
    }

    /// The spec of the saved VM, with this process's own files.
    pub(crate) fn spec(&self, lab: &Lab) -> VmSpec {
        let spec = fs::read(self.folder.join("spec.json")).expect("it was saved");
        let spec: VmSpec = serde_json::from_slice(&spec).expect("it is JSON");
        VmSpec {
            paths: paths(lab.folder.path()),
            ..spec
        }
    }

    fn restore(&self, lab: &Lab) -> Vm {
        lab.restore(self.spec(lab), &self.saved())
    }

    /// Leaves words for the first process.
    pub(crate) fn leave(&self, name: &str, words: &str) {
        fs::write(self.folder.join(name), words).expect("there is room");
    }

    /// The words that somebody left.
    pub(crate) fn left(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).expect("the part left it")
    }
}

fn stands_still(lab: &Lab, ticker: Ticker) {
    let mut vm = ticker.boot(lab, ticker.spec(lab));
    let mut ticks = Ticks::default();
    ticks.listen(&mut vm.console, SOME);
    ticks.hear(&vm.pause_and_listen());
    assert_eq!(vm.console.rest(), "", "a paused guest says nothing");
    vm.machine.pause().expect("it may be paused already");
    vm.resume();
    vm.machine.resume().expect("it may be running already");
    ticks.listen(&mut vm.console, SOME);
    ticks.hear(&vm.pause_and_listen());
    vm.is_ended();
}

/// A part that restores what was saved, listens, and listens again once all others are as far.
fn listens(lab: &Lab) -> bool {
    let Some((name, folder)) = &lab.part else {
        return false;
    };
    let shared = Shared::of(folder);
    let mut vm = shared.restore(lab);
    let memory = match vm.spec.memory.hugepages {
        true => RestoredMemory::Copied,
        false => RestoredMemory::OnDemand,
    };
    assert_eq!(vm.machine.restored_memory(), Some(memory));
    // Judged by the first process, which knows what came before.
    let mut ticks = Ticks::default();
    let mut all = ticks.listen(&mut vm.console, SOME);
    say("it ticks");
    wait_for_go();
    all.push_str(&ticks.listen(&mut vm.console, SOME));
    shared.leave(name, &all);
    vm.is_ended();
    true
}

fn loses_no_tick(lab: &Lab, ticker: Ticker) {
    if listens(lab) {
        return;
    }
    let shared = Shared::of(lab.folder.path());
    let free = hugepages::free_bytes();
    let mut vm = ticker.boot(lab, ticker.spec(lab));
    let taken = free - hugepages::free_bytes();
    let of_pool = if ticker == Ticker::Huge {
        PAYLOAD_MEMORY.bytes()
    } else {
        0
    };
    assert_eq!(taken, of_pool, "bytes of huge pages");
    assert_eq!(vm.machine.restored_memory(), None);
    let mut ticks = Ticks::default();
    let mut before = ticks.listen(&mut vm.console, SOME);
    before.push_str(&vm.pause_and_listen());
    shared.save(&vm);
    assert_eq!(vm.console.rest(), "", "saving wakes no one");
    // The saved one lives on, too.
    let mut here = Ticks::default();
    here.hear(&before);
    vm.resume();
    here.listen(&mut vm.console, SOME);
    vm.is_ended();
    let mut part = lab.part("restored", &shared.folder);
    assert_eq!(part.hears(), "it ticks");
    part.ends_well();
    let mut there = Ticks::default();
    there.hear(&before);
    there.hear(&shared.left("restored"));
}

fn in_huge_pages_loses_no_tick(lab: &Lab) {
    let before = hugepages::free_bytes();
    loses_no_tick(lab, Ticker::Huge);
    assert_eq!(hugepages::free_bytes(), before, "all are given back");
}

fn live_at_once(lab: &Lab, ticker: Ticker) {
    if listens(lab) {
        return;
    }
    let shared = Shared::of(lab.folder.path());
    let mut vm = ticker.boot(lab, ticker.spec(lab));
    let mut before = Ticks::default().listen(&mut vm.console, SOME);
    before.push_str(&vm.pause_and_listen());
    shared.save(&vm);
    vm.is_ended();
    let names = ["one", "two"];
    let mut parts: Vec<Part> = names.map(|name| lab.part(name, &shared.folder)).into();
    for part in &mut parts {
        assert_eq!(part.hears(), "it ticks");
    }
    parts.iter_mut().for_each(Part::go);
    parts.into_iter().for_each(Part::ends_well);
    for name in names {
        let mut ticks = Ticks::default();
        ticks.hear(&before);
        ticks.hear(&shared.left(name));
    }
}

/// What a process has, which must not grow.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Held {
    files: usize,
    threads: Vec<String>,
    data_kib: u64,
}

impl Held {
    fn now() -> Self {
        Self {
            files: open_files().len(),
            threads: threads(),
            data_kib: kib("VmData:"),
        }
    }

    fn assert_no_more_than(&self, first: &Self) {
        assert_eq!(self.files, first.files, "open files");
        assert_eq!(
            self.threads.len(),
            first.threads.len(),
            "{self:?}, {first:?}"
        );
        // An allocator may take an arena for a thread when it first needs one.
        let grown = self.data_kib.saturating_sub(first.data_kib);
        assert!(grown < 2048, "{grown} KiB more than {first:?}");
    }
}

fn saving_leaks_nothing(lab: &Lab, ticker: Ticker, rounds: u32) {
    let mut vm = ticker.boot(lab, ticker.spec(lab));
    let mut ticks = Ticks::default();
    let mut first = None;
    for _ in 0..rounds.max(2) {
        ticks.listen(&mut vm.console, 1);
        vm.pause();
        let into = lab.make_folder("saved");
        vm.save(&into);
        fs::remove_dir_all(into).expect("it is ours");
        vm.resume();
        Held::now().assert_no_more_than(first.get_or_insert_with(Held::now));
    }
    vm.is_ended();
}

/// Bytes that the files of a folder take on the disk.
fn taken(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = fs::read_dir(folder).expect("it is there");
    files
        .map(|file| file.and_then(|file| file.metadata()))
        .map(|metadata| metadata.expect("it is there").blocks() * 512)
        .sum()
}

/// Each round is a process: it restores what the one before saved, listens, and saves.
fn a_chain_leaks_nothing(lab: &Lab, ticker: Ticker, rounds: u32) {
    if let Some((_, folder)) = &lab.part {
        let from = Shared::of(folder);
        let into = Shared::of(&from.make_next());
        let mut vm = from.restore(lab);
        let mut said = Ticks::default().listen(&mut vm.console, 1);
        said.push_str(&vm.pause_and_listen());
        let held = Held::now();
        into.save(&vm);
        into.leave("said", &said);
        into.leave("held", &serde_json::to_string(&held).expect("it is JSON"));
        vm.is_ended();
        return;
    }
    let mut shared = Shared::of(&lab.make_folder("first"));
    let mut vm = ticker.boot(lab, ticker.spec(lab));
    let mut ticks = Ticks::default();
    ticks.listen(&mut vm.console, SOME);
    ticks.hear(&vm.pause_and_listen());
    shared.save(&vm);
    vm.is_ended();
    let mut first = None;
    for round in 0..rounds {
        lab.part("round", &shared.folder).ends_well();
        let next = lab.folder.path().join(format!("round-{round}"));
        fs::rename(shared.folder.join("next"), &next).expect("the part made it");
        fs::remove_dir_all(&shared.folder).expect("it is ours");
        shared = Shared::of(&next);
        ticks.hear(&shared.left("said"));
        let held: Held = serde_json::from_str(&shared.left("held")).expect("it is JSON");
        let taken = taken(&shared.saved());
        let (held_first, taken_first) = first.get_or_insert_with(|| (held.clone(), taken));
        held.assert_no_more_than(held_first);
        // A guest that runs takes pages that it has not touched before; a payload does not.
        let more = if ticker == Ticker::Shell {
            8 << 20
        } else {
            64 << 10
        };
        assert!(
            taken <= *taken_first + more,
            "{taken} bytes after {taken_first}"
        );
    }
    figure(&format!("RATE {rounds} rounds, {} ticks", ticks.count()));
}

fn what_is_no_saved_vm_is_not_restored(lab: &Lab) {
    let spec = lab.payload();
    let empty = lab.make_folder("empty");
    let said = lab.restore_error(&spec, &empty);
    assert!(
        said.contains("restore the VM") || said.contains("saved VM"),
        "{said}"
    );
    assert!(said.contains("No such file"), "{said}");
    lab.assert_vm_is_gone(&spec);
}

fn a_restored_guest_keeps_its_disk_and_network(lab: &Lab) {
    const NO_LOSS: &str = " 0% packet loss";
    let ping = format!("ping -c 1 -W 60 {HOST}");
    if let Some((_, folder)) = &lab.part {
        let shared = Shared::of(folder);
        let _tap = Tap::new("tap1", 2);
        let mut spec = shared.spec(lab);
        spec.nics[0].tap = "tap1".to_owned();
        spec.disks[0].path = folder.join("copy.img");
        let mut vm = lab.restore(spec, &shared.saved());
        let said = Ticks::default().listen(&mut vm.console, SOME);
        vm.console.press(&[3]);
        let lines = vm.console.run("wc -l < /fill/log");
        shared.leave("lines", &lines);
        shared.leave("restored", &said);
        let said = vm.console.run(&ping);
        assert!(said.contains(NO_LOSS), "{said}");
        let unmounted = vm
            .console
            .run("cat /fill/log > /fill/copy && umount /fill && echo ok");
        assert_eq!(unmounted, "ok");
        vm.console.enter("poweroff -f");
        vm.ends_by(StopReason::GuestPowerOff);
        return;
    }
    let shared = Shared::of(lab.folder.path());
    let tap = Tap::new("tap0", 2);
    let mut spec = lab.guest(2);
    let image = lab.image("fs.img", b"", 32 << 20);
    run("mkfs.ext4", &["-q", text(&image)]);
    spec.disks.push(disk(&image, "fs", 2));
    spec.nics.push(nic("tap0", 2));
    let mut vm = lab.boot(spec);
    vm.console.until("GUEST UP 2");
    vm.console.run(NIC_UP);
    let said = vm.console.run(&ping);
    assert!(said.contains(NO_LOSS), "{said}");
    assert_eq!(vm.console.run("mount /dev/vda /fill && echo ok"), "ok");
    count(&mut vm.console, "echo $i >> /fill/log; sync /fill/log;");
    let mut ticks = Ticks::default();
    ticks.listen(&mut vm.console, SOME);
    ticks.hear(&vm.pause_and_listen());
    shared.save(&vm);
    let copy = lab.folder.path().join("copy.img");
    run("cp", &["--sparse=always", text(&image), text(&copy)]);
    vm.is_ended();
    drop(tap);

    let part = lab.part("restored", &shared.folder);
    part.ends_well();
    ticks.hear(&shared.left("restored"));
    let lines: u32 = shared.left("lines").parse().expect("a figure");
    assert!(
        lines >= ticks.last().unwrap_or(0),
        "{lines} lines: each tick was written down"
    );
    run("e2fsck", &["-fn", text(&copy)]);
}

fn a_restored_guest_reboots_and_powers_off(lab: &Lab) {
    use cocoon::vmm::engine::Event;
    if let Some((_, folder)) = &lab.part {
        let mut vm = Shared::of(folder).restore(lab);
        assert_eq!(vm.console.run("echo a''live"), "alive");
        vm.console.enter("reboot -f");
        if vm.console.until_or_hung_up("GUEST UP") {
            vm.reopen_console();
        }
        assert_eq!(vm.events.recv_timeout(super::SOON), Ok(Event::Rebooted));
        vm.console.until("GUEST UP");
        vm.machine.press_power_button().expect("it is there");
        vm.ends_by(StopReason::GuestPowerOff);
        return;
    }
    let shared = Shared::of(lab.folder.path());
    let mut vm = lab.boot(lab.guest(2));
    vm.console.until("GUEST UP");
    vm.console.run("true");
    vm.pause();
    shared.save(&vm);
    vm.is_ended();
    lab.part("restored", &shared.folder).ends_well();
}

fn two_guests_of_one_save_draw_other_random_numbers(lab: &Lab) {
    const DRAW: &str = "head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '";
    if let Some((name, folder)) = &lab.part {
        let shared = Shared::of(folder);
        let mut vm = shared.restore(lab);
        let drawn = vm.console.run(DRAW);
        shared.leave(name, &drawn);
        let told = vm
            .console
            .run("dmesg | grep -c 'due to virtual machine fork'");
        assert_eq!(told, "1", "the kernel was told that it lives twice");
        vm.is_ended();
        return;
    }
    let shared = Shared::of(lab.folder.path());
    let mut vm = lab.boot(lab.minding_guest());
    vm.console.until("GUEST UP");
    vm.console.run(DRAW);
    vm.pause();
    shared.save(&vm);
    vm.is_ended();
    for name in ["one", "two"] {
        lab.part(name, &shared.folder).ends_well();
    }
    let [one, two] = ["one", "two"].map(|name| shared.left(name));
    assert_eq!(one.len(), 32, "{one}");
    assert_ne!(one, two);
}
