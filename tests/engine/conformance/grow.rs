//! Growth: a saved VM comes to life with more processors, more memory and larger disks, its guest takes
//! them into use, and keeps them.
//!
//! ```text
//!  boot ─▶ save ─▶ restore with more ─▶ save ─▶ restore as it is ─▶ save ─▶ …
//!                   │ plugged in, told            │ all of it is still there
//!                   └▶ reset ─▶ boots with all of it
//! ```

use std::fs::File;
use std::os::unix::fs::FileExt;

use cocoon::units::ByteSize;
use cocoon::vm::spec::VmSpec;
use cocoon::vmm::engine::Event;

use super::saved::Shared;
use super::spec::{disk, noise};
use super::ticker::{Ticker, Ticks};
use super::vm::Vm;
use super::{Case, Lab, Needs, SOON};

/// The cases, quickest first.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "a_payload_that_grows_loses_no_tick",
        needs: Needs::Payload,
        body: a_payload_that_grows_loses_no_tick,
    },
    Case {
        name: "a_payload_that_resets_itself_after_growing_boots_and_may_grow_again",
        needs: Needs::Payload,
        body: a_payload_that_resets_itself_after_growing_boots_and_may_grow_again,
    },
    Case {
        name: "a_guest_takes_into_use_by_what_its_vm_grew",
        needs: Needs::Guest,
        body: a_guest_takes_into_use_by_what_its_vm_grew,
    },
    Case {
        name: "a_guest_that_reboots_after_growing_has_all_of_it",
        needs: Needs::Guest,
        body: a_guest_that_reboots_after_growing_has_all_of_it,
    },
];

/// Ticks that show that a guest lives.
const SOME: u32 = 5;

/// Ticks after which a payload resets itself: more than are heard before it is saved.
const UNTIL_RESET: u32 = 200;

const DISK_BYTES: u64 = 32 << 20;

/// More than half of what the guest had at first: a copy of it and what the kernel keeps of it in its
/// cache do not fit there.
const GROWN_DISK_BYTES: u64 = 128 << 20;

/// How much at the disk's new end is not zero, and is compared: a guest under emulation sums up some MiB
/// in a second.
const END_BYTES: u64 = 4 << 20;

/// The CPUs of a guest that has grown.
const GROWN_CPUS: u32 = 4;

/// By how much its memory has.
const ADDED: ByteSize = ByteSize::from_mib(512);

/// `spec` with room for four CPUs and 2 GiB.
fn with_room(spec: VmSpec) -> VmSpec {
    let mut spec = spec;
    spec.cpus.max = GROWN_CPUS;
    spec.memory.max = ByteSize::from_gib(2);
    // It would take memory from the guest while that is counted.
    spec.memory.balloon = None;
    spec
}

/// `spec` with more.
fn grown(spec: VmSpec) -> VmSpec {
    let mut spec = spec;
    spec.cpus.added = GROWN_CPUS - spec.cpus.boot;
    spec.memory.added = ADDED;
    spec
}

/// Saves the VM for another process, and ends it.
fn save(mut vm: Vm, shared: &Shared) {
    vm.pause();
    shared.save(&vm);
    vm.is_ended();
}

fn a_payload_that_grows_loses_no_tick(lab: &Lab) {
    if let Some((name, folder)) = &lab.part {
        let from = Shared::of(folder);
        if name == "smaller" {
            let mut spec = from.spec(lab);
            spec.cpus.added = 0;
            lab.restore_error(&spec, &from.saved());
            lab.assert_vm_is_gone(&spec);
            return;
        }
        let mut vm = lab.restore(grown(from.spec(lab)), &from.saved());
        let mut said = Ticks::default().listen(&mut vm.console, SOME);
        said.push_str(&vm.pause_and_listen());
        from.leave("said", &said);
        save(vm, &Shared::of(&from.make_next()));
        return;
    }
    let mut shared = Shared::of(&lab.make_folder("first"));
    let ticker = Ticker::Payload;
    let mut vm = ticker.boot(lab, with_room(ticker.spec(lab)));
    let mut ticks = Ticks::default();
    ticks.listen(&mut vm.console, SOME);
    ticks.hear(&vm.pause_and_listen());
    save(vm, &shared);
    for name in ["grown", "as it is"] {
        lab.part(name, &shared.folder).ends_well();
        ticks.hear(&shared.left("said"));
        shared = Shared::of(&shared.folder.join("next"));
    }
    lab.part("smaller", &shared.folder).ends_well();
}

fn a_payload_that_resets_itself_after_growing_boots_and_may_grow_again(lab: &Lab) {
    if let Some((name, folder)) = &lab.part {
        let from = Shared::of(folder);
        let mut spec = grown(from.spec(lab));
        if name == "again" {
            spec.memory.added = ByteSize::from_bytes(2 * ADDED.bytes());
        }
        let mut vm = lab.restore(spec, &from.saved());
        assert_eq!(vm.events.recv_timeout(SOON), Ok(Event::Rebooted));
        vm.console.until("T00000001");
        save(vm, &Shared::of(&from.make_next()));
        return;
    }
    let shared = Shared::of(&lab.make_folder("first"));
    let mut vm = lab.boot(with_room(lab.resetting_payload(UNTIL_RESET)));
    Ticks::default().listen(&mut vm.console, SOME);
    save(vm, &shared);
    lab.part("grown", &shared.folder).ends_well();
    lab.part("again", &shared.folder.join("next")).ends_well();
}

/// A number that the guest's shell prints.
fn number(vm: &mut Vm, line: &str) -> u64 {
    let said = vm.console.run(line);
    said.parse()
        .unwrap_or_else(|_| panic!("{line} is no number but {said:?}"))
}

/// The guest's memory in KiB, as it counts it.
fn memory_kib(vm: &mut Vm) -> u64 {
    number(vm, "grep MemTotal /proc/meminfo | tr -dc 0-9")
}

/// Has the guest wait for `condition`.
fn wait_until(vm: &mut Vm, condition: &str) {
    vm.console
        .run(&format!("until {condition}; do sleep 0.1; done"));
}

/// Switches on what came, as the guest's agent does.
fn switch_on(vm: &mut Vm, blocks_before: u64) {
    let last = GROWN_CPUS - 1;
    wait_until(
        vm,
        &format!("[ -e /sys/devices/system/cpu/cpu{last}/online ]"),
    );
    let block = cocoon::vm::spec::MEMORY_BLOCK.bytes();
    let blocks = blocks_before + ADDED.bytes() / block;
    wait_until(vm, &format!("[ $({BLOCKS}) -ge {blocks} ]"));
    for (files, off, on) in [
        ("cpu/cpu[0-9]*/online", "0", "1"),
        ("memory/memory*/state", "offline", "online"),
    ] {
        let each = format!("[ $(cat $f) != {off} ] || echo {on} > $f");
        vm.console.run(&format!(
            "for f in /sys/devices/system/{files}; do {each}; done"
        ));
    }
}

/// Command that counts the guest's blocks of memory.
const BLOCKS: &str = "ls -d /sys/devices/system/memory/memory* | wc -l";

/// Checks that the guest has, and works with, all that it was given.
fn assert_has_all(vm: &mut Vm, kib_before: u64) {
    assert_eq!(number(vm, "nproc"), u64::from(GROWN_CPUS));
    let more_mib = (memory_kib(vm) - kib_before) >> 10;
    let expected_mib = ADDED.bytes() >> 20;
    assert!(more_mib.abs_diff(expected_mib) <= 2, "{more_mib} MiB more");
    let bytes = number(vm, "blockdev --getsize64 /dev/vda");
    assert_eq!(bytes, GROWN_DISK_BYTES);
    // With what is on the disk itself, once nothing of it is in memory but the copy.
    vm.console.run("sync; echo 3 > /proc/sys/vm/drop_caches");
    let [disk, copy] = ["/dev/vda", "/tmp/copy"].map(|file| {
        let skipped_mib = (GROWN_DISK_BYTES - END_BYTES) >> 20;
        let end = format!("dd if={file} bs=1M skip={skipped_mib} 2>/dev/null");
        vm.console.run(&format!("{end} | md5sum"))
    });
    assert_eq!(disk, copy);
    assert_eq!(disk.len(), "d41d8cd98f00b204e9800998ecf8427e  -".len());
}

/// Makes the disk larger, and fills its new end.
fn grow_disk(spec: &VmSpec) {
    let file = File::options().write(true).open(&spec.disks[0].path);
    let end = noise(7, usize::try_from(END_BYTES).expect("some MiB"));
    file.and_then(|file| file.write_all_at(&end, GROWN_DISK_BYTES - END_BYTES))
        .expect("it is ours, and there is room");
}

/// Boots a Linux guest with a disk and room to grow, saves it, and leaves what it had.
fn save_guest(lab: &Lab, shared: &Shared) {
    let mut spec = with_room(lab.guest(1));
    let image = lab.image("disk.img", &noise(3, 1 << 20), DISK_BYTES);
    spec.disks.push(disk(&image, "data", 1));
    let mut vm = lab.boot(spec);
    vm.console.until("GUEST UP 1");
    shared.leave("kib", &memory_kib(&mut vm).to_string());
    shared.leave("blocks", &number(&mut vm, BLOCKS).to_string());
    save(vm, shared);
}

/// Restores what [`save_guest`] saved with more, and switches it on.
fn restore_grown(lab: &Lab, from: &Shared) -> Vm {
    let spec = grown(from.spec(lab));
    grow_disk(&spec);
    let mut vm = lab.restore(spec, &from.saved());
    let blocks = from.left("blocks").parse().expect("a figure");
    switch_on(&mut vm, blocks);
    wait_until(
        &mut vm,
        &format!(
            "[ $(cat /sys/block/vda/size) = {} ]",
            GROWN_DISK_BYTES / 512
        ),
    );
    vm
}

fn a_guest_takes_into_use_by_what_its_vm_grew(lab: &Lab) {
    let kib_before = |from: &Shared| from.left("kib").parse().expect("a figure");
    if let Some((name, folder)) = &lab.part {
        let from = Shared::of(folder);
        if name == "as it is" {
            let mut vm = lab.restore(grown(from.spec(lab)), &from.saved());
            assert_has_all(&mut vm, kib_before(&from));
            vm.is_ended();
            return;
        }
        let mut vm = restore_grown(lab, &from);
        // One that may be larger than what the guest began with.
        vm.console.run("mount -t tmpfs -o size=100% tmpfs /tmp");
        vm.console.run("cat /dev/vda > /tmp/copy");
        assert_has_all(&mut vm, kib_before(&from));
        let next = Shared::of(&from.make_next());
        next.leave("kib", &from.left("kib"));
        save(vm, &next);
        return;
    }
    let shared = Shared::of(&lab.make_folder("first"));
    save_guest(lab, &shared);
    lab.part("grown", &shared.folder).ends_well();
    lab.part("as it is", &shared.folder.join("next"))
        .ends_well();
}

fn a_guest_that_reboots_after_growing_has_all_of_it(lab: &Lab) {
    if let Some((_, folder)) = &lab.part {
        let from = Shared::of(folder);
        let mut vm = restore_grown(lab, &from);
        vm.console.enter("reboot -f");
        if vm.console.until_or_hung_up("GUEST UP") {
            vm.reopen_console();
        }
        assert_eq!(vm.events.recv_timeout(SOON), Ok(Event::Rebooted));
        // Of what it finds when it boots nothing has to be switched on.
        vm.console.until(&format!("GUEST UP {GROWN_CPUS}"));
        let before: u64 = from.left("kib").parse().expect("a figure");
        let more_mib = (memory_kib(&mut vm) - before) >> 10;
        // The kernel keeps tables of all memory that it boots with: 1/64 of it.
        let expected_mib = (ADDED.bytes() >> 20) * 63 / 64;
        assert!(more_mib.abs_diff(expected_mib) <= 16, "{more_mib} MiB more");
        vm.is_ended();
        return;
    }
    let shared = Shared::of(&lab.make_folder("first"));
    save_guest(lab, &shared);
    lab.part("grown", &shared.folder).ends_well();
}
