//! How VMs begin and end.

use std::path::Path;

use cocoon::vm::spec::{Boot, OnReset, VmSpec};
use cocoon::vmm::engine::{Event, StopReason};
use rustix::process::{Signal, getpid, kill_process};

use super::spec::{Tap, disk, nic};
use super::ticker::{Ticker, Ticks};
use super::{Case, Lab, Needs, SOON, say, wait_for_go};

/// The cases, quickest first.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "a_missing_tap_is_refused",
        needs: Needs::Kvm,
        body: a_missing_tap_is_refused,
    },
    Case {
        name: "a_missing_disk_fails_the_boot_with_its_name",
        needs: Needs::Kvm,
        body: a_missing_disk_fails_the_boot_with_its_name,
    },
    Case {
        name: "a_kernel_that_is_none_fails_the_boot",
        needs: Needs::Kvm,
        body: a_kernel_that_is_none_fails_the_boot,
    },
    Case {
        name: "a_payload_counts_until_cocoon_ends_it",
        needs: Needs::Payload,
        body: a_payload_counts_until_cocoon_ends_it,
    },
    Case {
        name: "a_payload_that_resets_itself_counts_from_one_again",
        needs: Needs::Payload,
        body: a_payload_that_resets_itself_counts_from_one_again,
    },
    Case {
        name: "a_payload_that_resets_itself_and_is_not_to_boot_again_is_over",
        needs: Needs::Payload,
        body: a_payload_that_resets_itself_and_is_not_to_boot_again_is_over,
    },
    Case {
        name: "a_killed_vm_process_lets_go_of_disk_and_tap",
        needs: Needs::Taps,
        body: a_killed_vm_process_lets_go_of_disk_and_tap,
    },
    Case {
        name: "the_guest_powers_off",
        needs: Needs::Guest,
        body: the_guest_powers_off,
    },
    Case {
        name: "the_power_button_reaches_the_guest",
        needs: Needs::Guest,
        body: the_power_button_reaches_the_guest,
    },
    Case {
        name: "cocoon_ends_the_vm",
        needs: Needs::Guest,
        body: cocoon_ends_the_vm,
    },
    Case {
        name: "sigterm_ends_the_vm",
        needs: Needs::Guest,
        body: sigterm_ends_the_vm,
    },
    Case {
        name: "the_guest_reboots_and_its_console_lives_on",
        needs: Needs::Guest,
        body: the_guest_reboots_and_its_console_lives_on,
    },
    Case {
        name: "a_panicked_guest_is_ended",
        needs: Needs::Patience,
        body: a_panicked_guest_is_ended,
    },
];

fn a_missing_tap_is_refused(lab: &Lab) {
    let mut spec = lab.payload();
    spec.nics.push(nic("cocoon-no-tap", 1));
    let said = lab.boot_error(&spec);
    assert!(said.contains("cocoon-no-tap"), "{said}");
    lab.assert_vm_is_gone(&spec);
}

fn a_missing_disk_fails_the_boot_with_its_name(lab: &Lab) {
    let mut spec = lab.payload();
    spec.disks
        .push(disk("/nowhere/overlay.img".as_ref(), "cocoon-cow", 1));
    let said = lab.boot_error(&spec);
    assert!(said.contains("boot the VM"), "{said}");
    assert!(said.contains("/nowhere/overlay.img"), "{said}");
    assert!(said.contains("No such file"), "{said}");
    lab.assert_vm_is_gone(&spec);
}

fn a_kernel_that_is_none_fails_the_boot(lab: &Lab) {
    let mut spec = lab.payload();
    let Boot::Direct { kernel, .. } = &mut spec.boot else {
        unreachable!("a payload is a kernel")
    };
    *kernel = "/etc/passwd".into();
    let said = lab.boot_error(&spec);
    assert!(said.contains("boot the VM"), "{said}");
    lab.assert_vm_is_gone(&spec);
}

fn a_payload_counts_until_cocoon_ends_it(lab: &Lab) {
    let mut vm = Ticker::Payload.boot(lab, lab.payload());
    let mut ticks = Ticks::default();
    ticks.listen(&mut vm.console, 10);
    assert_eq!(ticks.last(), Some(ticks.count()), "from one on");
    vm.is_ended();
}

fn a_payload_that_resets_itself_counts_from_one_again(lab: &Lab) {
    let mut vm = lab.boot(lab.resetting_payload(16));
    for _ in 0..3 {
        let mut ticks = Ticks::default();
        ticks.hear(&vm.console.before("T00000010"));
        assert_eq!((ticks.count(), ticks.last()), (15, Some(15)));
        assert_eq!(vm.events.recv_timeout(SOON), Ok(Event::Rebooted));
    }
    vm.is_ended();
}

fn a_payload_that_resets_itself_and_is_not_to_boot_again_is_over(lab: &Lab) {
    // With what it would boot, and without.
    for is_there in [true, false] {
        let spec = VmSpec {
            on_reset: OnReset::End,
            ..lab.resetting_payload(64)
        };
        let vm = lab.boot(spec);
        if !is_there {
            let Boot::Direct { kernel, .. } = &vm.spec.boot else {
                panic!("a payload is a kernel");
            };
            std::fs::remove_file(kernel).expect("it was there");
        }
        let over = Ok(Event::Stopped(StopReason::GuestReset));
        assert_eq!(vm.events.recv_timeout(SOON), over);
    }
}

fn a_killed_vm_process_lets_go_of_disk_and_tap(lab: &Lab) {
    let spec = |image: &Path| {
        let mut spec = lab.guest(1);
        spec.disks.push(disk(image, "cocoon-cow", 1));
        spec.nics.push(nic("tap0", 1));
        spec
    };
    if let Some((_, folder)) = &lab.part {
        let mut vm = lab.boot(spec(&folder.join("overlay.img")));
        vm.console.until("GUEST UP");
        say("it is up");
        wait_for_go();
        vm.is_ended();
        return;
    }
    let _tap = Tap::new("tap0", 1);
    lab.image("overlay.img", b"", 1 << 20);
    let mut part = lab.part("victim", lab.folder.path());
    assert_eq!(part.hears(), "it is up");
    part.kill();
    let mut part = lab.part("heir", lab.folder.path());
    assert_eq!(part.hears(), "it is up");
    part.ends_well();
}

fn the_guest_powers_off(lab: &Lab) {
    let mut vm = lab.boot(lab.guest(1));
    vm.console.until("GUEST UP 1");
    vm.console.enter("poweroff -f");
    vm.ends_by(StopReason::GuestPowerOff);
}

fn the_power_button_reaches_the_guest(lab: &Lab) {
    let mut vm = lab.boot(lab.guest(1));
    vm.console.until("GUEST UP");
    // The shell comes after the listener.
    vm.console.run("true");
    vm.machine
        .press_power_button()
        .expect("the button is there");
    vm.ends_by(StopReason::GuestPowerOff);
}

fn cocoon_ends_the_vm(lab: &Lab) {
    let mut vm = lab.boot(lab.guest(1));
    vm.console.until("GUEST UP");
    vm.is_ended();
    vm.machine
        .power_off()
        .expect("a VM that is over may be ended again");
    assert!(vm.machine.info().is_err());
    assert!(vm.machine.console().is_err());
    assert!(vm.machine.pause().is_err());
}

fn sigterm_ends_the_vm(lab: &Lab) {
    let mut vm = lab.boot(lab.guest(1));
    vm.console.until("GUEST UP");
    kill_process(getpid(), Signal::TERM).expect("a process may signal itself");
    vm.ends_by(StopReason::Stopped);
}

fn the_guest_reboots_and_its_console_lives_on(lab: &Lab) {
    let mut vm = lab.boot(lab.guest(1));
    vm.console.until("GUEST UP");
    vm.console.enter("reboot -f");
    if vm.console.until_or_hung_up("GUEST UP") {
        // Before the event: the answer waits for the reboot.
        vm.reopen_console();
    }
    assert_eq!(vm.events.recv_timeout(SOON), Ok(Event::Rebooted));
    vm.console.until("GUEST UP");
    assert_eq!(vm.console.run("echo a''live"), "alive");
    vm.is_ended();
}

fn a_panicked_guest_is_ended(lab: &Lab) {
    let mut vm = lab.boot(lab.guest(1));
    vm.console.until("GUEST UP");
    vm.console.enter("echo c > /proc/sysrq-trigger");
    vm.ends_by(StopReason::GuestPanic);
}
