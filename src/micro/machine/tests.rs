//! A VM from its boot to its end, as the port sees it. No signal is listened to here.

use super::*;
use crate::micro::fixture::{Payload, next_tick};
use crate::micro::notice::{Fault, Problem};

/// More than a VM's end takes.
const SOON: Duration = Duration::from_secs(60);

fn boot(spec: &VmSpec) -> (MicroMachine, Receiver<Event>) {
    let (sender, incoming) = channel();
    let build = |site: Site<'_>| builder::boot(site, None);
    let machine = live(spec, Notices::new(sender), incoming, build).unwrap();
    let events = machine.events().unwrap();
    (machine, events)
}

fn state(machine: &MicroMachine) -> String {
    let info = machine.info().unwrap();
    info["state"].as_str().unwrap().to_owned()
}

#[test]
fn pausing_and_resuming_twice_is_doing_it_once() {
    let Some(Payload {
        spec,
        folder: _folder,
    }) = Payload::new()
    else {
        return;
    };
    let (machine, _events) = boot(&spec);
    let terminal = machine.console().unwrap();
    assert_eq!(next_tick(&terminal), 1);
    for (tick, _) in (2..).zip(0..2) {
        machine.pause().unwrap();
        machine.pause().unwrap();
        assert_eq!(state(&machine), "Paused");
        machine.resume().unwrap();
        machine.resume().unwrap();
        assert_eq!(state(&machine), "Running");
        assert_eq!(next_tick(&terminal), tick);
    }
}

#[test]
fn what_is_asked_of_a_vm_that_is_over_is_refused_by_its_name() {
    let Some(Payload { spec, folder }) = Payload::new() else {
        return;
    };
    let (machine, events) = boot(&spec);
    assert!(machine.events().is_none(), "they are given once");
    machine.power_off().unwrap();
    let stopped = Ok(Event::Stopped(StopReason::Stopped));
    assert_eq!(events.recv_timeout(SOON), stopped);
    assert!(events.recv().is_err(), "it is the last event");
    for (operation, asked) in [
        ("open the VM's terminal", machine.console().map(drop)),
        ("press the VM's power button", machine.press_power_button()),
        ("pause the VM", machine.pause()),
        ("resume the VM", machine.resume()),
        ("save the VM", machine.save(folder.path())),
        ("describe the VM", machine.info().map(drop)),
    ] {
        let said = chain(&asked.unwrap_err());
        assert!(said.contains(operation), "{said}");
        assert!(said.ends_with("the VM is over"), "{said}");
    }
    // There is nothing left to be done.
    machine.power_off().unwrap();
}

#[test]
fn each_end_has_its_reason() {
    let Some(Payload {
        spec,
        folder: _folder,
    }) = Payload::new()
    else {
        return;
    };
    let fault = Fault {
        device: "rng".to_owned(),
        problem: Problem::Request {
            queue: 0,
            what: "that a test made up",
        },
    };
    let failed = Notice::VcpuFailed {
        vcpu: 0,
        why: "a test made it up".to_owned(),
    };
    for (notice, reason) in [
        (Notice::PowerOff, StopReason::GuestPowerOff),
        (Notice::PowerOffAsked, StopReason::Stopped),
        (Notice::Fault(fault), StopReason::DeviceFault),
        (failed, StopReason::EngineFailure),
    ] {
        let (machine, events) = boot(&spec);
        // A paused VM ends no less.
        machine.pause().unwrap();
        machine.shared.notices.tell(notice);
        assert_eq!(events.recv_timeout(SOON), Ok(Event::Stopped(reason)));
    }
}

#[test]
fn a_vm_that_is_to_end_while_it_is_reset_does_not_boot_again() {
    let Some(Payload {
        spec,
        folder: _folder,
    }) = Payload::new()
    else {
        return;
    };
    let (machine, events) = boot(&spec);
    let vm = lock(&machine.shared.vm);
    machine.shared.notices.tell(Notice::Reset);
    machine.shared.notices.tell(Notice::PowerOffAsked);
    drop(vm);
    let stopped = Ok(Event::Stopped(StopReason::Stopped));
    assert_eq!(events.recv_timeout(SOON), stopped);
}

#[test]
fn a_vm_that_cannot_boot_again_is_over() {
    let Some(Payload { spec, folder }) = Payload::new() else {
        return;
    };
    let (machine, events) = boot(&spec);
    let terminal = machine.console().unwrap();
    next_tick(&terminal);
    machine.shared.notices.tell(Notice::Reset);
    assert_eq!(events.recv_timeout(SOON), Ok(Event::Rebooted));
    std::fs::remove_file(folder.path().join("payload")).unwrap();
    machine.shared.notices.tell(Notice::Reset);
    let stopped = Ok(Event::Stopped(StopReason::EngineFailure));
    assert_eq!(events.recv_timeout(SOON), stopped);
}
