//! A VM that runs, and what may be done with it in which order.

use std::os::fd::OwnedFd;
use std::sync::mpsc::channel;

use super::*;
use crate::micro::builder::{self, Site};
use crate::micro::devices::serial::console::Console;
use crate::micro::fixture::{Payload, next_tick};
use crate::micro::notice::Notices;
use crate::vm::spec::VmSpec;

fn boot(spec: &VmSpec) -> (Vm, OwnedFd) {
    let console = Console::open().unwrap();
    let site = Site {
        spec,
        console: &console,
        notices: &Notices::new(channel().0),
    };
    let vm = builder::boot(site, None).unwrap();
    (vm, console.terminal().unwrap())
}

fn state(vm: &Vm) -> String {
    vm.describe()["state"].as_str().unwrap().to_owned()
}

#[test]
fn a_vm_may_be_paused_twice_and_goes_on_where_it_was() {
    let Some(payload) = Payload::new() else {
        return;
    };
    let (mut vm, terminal) = boot(&payload.spec);
    assert_eq!(next_tick(&terminal), 1);
    assert_eq!(state(&vm), "Running");
    for tick in 2..5 {
        vm.pause().unwrap();
        vm.pause().unwrap();
        assert_eq!((vm.is_paused(), state(&vm).as_str()), (true, "Paused"));
        vm.resume().unwrap();
        assert_eq!((vm.is_paused(), state(&vm).as_str()), (false, "Running"));
        assert_eq!(next_tick(&terminal), tick);
    }
}

#[test]
fn a_vm_that_runs_goes_on_when_it_is_resumed() {
    let Some(payload) = Payload::new() else {
        return;
    };
    let (mut vm, terminal) = boot(&payload.spec);
    for tick in 1..4 {
        vm.resume().unwrap();
        assert_eq!(next_tick(&terminal), tick);
    }
}

#[test]
fn a_vm_that_runs_is_not_saved_and_leaves_no_file() {
    let Some(payload) = Payload::new() else {
        return;
    };
    let into = tempfile::tempdir().unwrap();
    let (mut vm, _terminal) = boot(&payload.spec);
    for _ in 0..2 {
        assert!(matches!(vm.save(into.path()), Err(Error::NotPaused)));
        assert_eq!(into.path().read_dir().unwrap().count(), 0);
        vm.pause().unwrap();
        vm.resume().unwrap();
    }
}

#[test]
fn a_save_overwrites_nothing_and_names_the_file_that_it_cannot_make() {
    let Some(payload) = Payload::new() else {
        return;
    };
    let into = tempfile::tempdir().unwrap();
    let (mut vm, terminal) = boot(&payload.spec);
    let ticks = next_tick(&terminal);
    vm.pause().unwrap();
    vm.save(into.path()).unwrap();
    let read = || [STATE, MEMORY].map(|name| std::fs::read(into.path().join(name)).unwrap());
    let first = read();
    assert_eq!(first[1].len() as u64, payload.spec.memory.size.bytes());
    for folder in [into.path().to_owned(), into.path().join("none")] {
        let Err(Error::Open { path, .. }) = vm.save(&folder) else {
            panic!("saved");
        };
        assert_eq!(path, folder.join(MEMORY));
    }
    assert!(read() == first);
    // A VM that could not be saved is as good as before.
    vm.resume().unwrap();
    assert_eq!(next_tick(&terminal), ticks + 1);
}

#[test]
fn a_vm_has_the_devices_and_the_watchdog_that_it_is_to_have() {
    let Some(Payload {
        mut spec,
        folder: _folder,
    }) = Payload::new()
    else {
        return;
    };
    for (watchdog, balloon, names) in [
        (false, None, vec!["random number generator"]),
        (true, Some(1), vec!["random number generator", "balloon"]),
    ] {
        spec.watchdog = watchdog;
        spec.memory.balloon = balloon.map(crate::units::ByteSize::from_mib);
        let (vm, _terminal) = boot(&spec);
        let described = vm.describe();
        assert_eq!(described["devices"], json!(names));
        assert_eq!(described.get("balloon").is_some(), balloon.is_some());
        assert_eq!(vm.watchdog_after_reset().is_some(), watchdog);
    }
}
