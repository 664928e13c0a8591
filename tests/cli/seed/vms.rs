//! `vm`

use std::path::Path;

use serde_json::json;

use crate::support::counter::{Counter, SHAPE};
use crate::support::stderr;

impl Counter {
    /// Creates VMs of the counting image, by these names.
    fn create(&self, names: &[&str]) {
        for name in names {
            let create = [
                &["vm", "create", "--name", name, "--nics", "0"],
                &SHAPE[..],
                &["counter"],
            ];
            self.ok(&create.concat());
        }
    }

    /// The numbers that the guest of `vm` has printed.
    fn numbers(&self, vm: &str) -> Vec<u32> {
        let vm = self.json(&["vm", "inspect", vm]);
        let log = std::fs::read_to_string(vm["console_log"].as_str().unwrap()).unwrap();
        let digits = log.lines().filter_map(|line| line.strip_prefix('T'));
        let whole = digits.filter(|digits| digits.len() == 8);
        whole
            .map(|digits| u32::from_str_radix(digits, 16).unwrap())
            .collect()
    }
}

#[test]
fn root_vm_create_makes_a_vm_that_does_not_run() {
    let Some(counter) = Counter::idle(Vec::new()) else {
        return;
    };
    counter.create(&["one"]);
    let vm = counter.json(&["vm", "inspect", "one"]);
    assert_eq!(vm["state"], "created");
    assert_eq!(vm["pid"], json!(null));
    assert!(!Path::new(vm["console_log"].as_str().unwrap()).exists());
    let folder = Path::new(vm["run_dir"].as_str().unwrap());
    assert!(folder.join("cow.raw").exists());
}

#[test]
fn root_vm_run_creates_and_starts_a_vm() {
    let Some(counter) = Counter::run() else {
        return;
    };
    let vm = counter.json(&["vm", "inspect", "counter"]);
    assert_eq!(vm["state"], "running");
    assert!(Path::new(&format!("/proc/{}", vm["pid"])).exists());
    assert_eq!(counter.numbers("counter")[0], 1, "its guest began");
}

#[test]
fn root_vm_start_vm_stop_and_vm_rm_take_several_vms() {
    let timeout = ("COCOON_STOP_TIMEOUT_SECONDS", "1".into());
    let Some(counter) = Counter::idle(vec![timeout]) else {
        return;
    };
    let names = ["one", "two", "three"];
    counter.create(&names);
    let states = || names.map(|name| counter.state_of(name));
    let both = |verb| assert_eq!(counter.ok(&["vm", verb, "one", "two"]), "one\ntwo");
    both("start");
    assert_eq!(states(), ["running", "running", "created"]);
    counter.vm_goes_on("one");
    counter.vm_goes_on("two");
    both("stop");
    assert_eq!(states(), ["stopped", "stopped", "created"]);
    both("start");
    assert_eq!(states(), ["running", "running", "created"]);
    both("stop");
    both("rm");
    assert_eq!(counter.ok(&["vm", "list", "-q"]).lines().count(), 1);
    assert_eq!(counter.state_of("three"), "created");
}

#[test]
fn root_vm_rm_removes_a_running_vm_by_force_alone_which_stops_it_first() {
    let Some(counter) = Counter::run() else {
        return;
    };
    let vm = counter.json(&["vm", "inspect", "counter"]);
    let refused = counter.refused(&["vm", "rm", "counter"]);
    assert!(refused.contains("VM counter is running"), "{refused}");
    counter.goes_on();
    counter.ok(&["vm", "rm", "--force", "counter"]);
    // Whoever has ended, and was not waited for yet, has no command line any more.
    let words = std::fs::read_to_string(format!("/proc/{}/cmdline", vm["pid"]));
    assert_eq!(words.unwrap_or_default(), "");
    assert!(!Path::new(vm["run_dir"].as_str().unwrap()).exists());
    assert_eq!(counter.ok(&["vm", "list", "-q"]), "");
}

#[test]
fn root_vm_list_and_its_alias_ls_show_each_vm_with_its_status() {
    let Some(counter) = Counter::run() else {
        return;
    };
    counter.create(&["other"]);
    let table = counter.ok(&["vm", "list"]);
    let rows = table.lines().map(|row| {
        let cells: Vec<_> = row.split_whitespace().skip(1).take(2).collect();
        cells.join(" ")
    });
    let rows: Vec<_> = rows.collect();
    assert_eq!(rows, ["NAME STATE", "counter running", "other created"]);
    assert_eq!(counter.ok(&["vm", "ls"]), table);
}

#[test]
fn root_vm_inspect_shows_a_vm_as_json_by_its_name_and_its_id() {
    let Some(counter) = Counter::idle(Vec::new()) else {
        return;
    };
    counter.create(&["one"]);
    let vm = counter.json(&["vm", "inspect", "one"]);
    assert_eq!(vm["name"], "one");
    assert_eq!(vm["config"]["memory"], 64 << 20);
    let id = vm["id"].as_str().unwrap();
    for reference in [id, &id[..6]] {
        assert_eq!(counter.json(&["vm", "inspect", reference]), vm);
    }
}

#[test]
fn root_vm_clone_makes_a_new_vm_that_goes_on_where_the_snapshot_was_saved() {
    let Some(counter) = Counter::run() else {
        return;
    };
    let saved_after = *counter.numbers("counter").last().unwrap();
    counter.ok(&["snapshot", "save", "--name", "moment", "counter"]);
    let clone = counter.command(&["vm", "clone", "moment"]).output();
    let clone = clone.unwrap();
    let told = stderr(&clone);
    assert!(clone.status.success(), "{told}");
    let id = String::from_utf8(clone.stdout).unwrap();
    let id = id.trim_end();
    let vm = counter.json(&["vm", "inspect", id]);
    assert_eq!(vm["name"], format!("cocoon-clone-{id}"), "by default");
    assert!(told.contains("its guest has no agent"), "{told}");
    counter.vm_goes_on(id);
    assert!(counter.numbers(id)[0] > saved_after, "it began anew");
    counter.goes_on();
    assert_ne!(vm["id"], counter.json(&["vm", "inspect", "counter"])["id"]);
}

#[test]
fn root_vm_restore_takes_a_running_vm_back_to_what_the_snapshot_has() {
    let Some(counter) = Counter::run() else {
        return;
    };
    counter.ok(&["snapshot", "save", "--name", "moment", "counter"]);
    let saved_before = *counter.numbers("counter").last().unwrap() + 1;
    while *counter.numbers("counter").last().unwrap() <= saved_before {
        counter.goes_on();
    }
    counter.ok(&["vm", "restore", "counter", "moment"]);
    counter.goes_on();
    let numbers = counter.numbers("counter");
    let falls = numbers.windows(2).filter(|pair| pair[1] < pair[0]);
    let falls: Vec<_> = falls.collect();
    assert_eq!(falls.len(), 1, "{falls:?}");
    assert!((2..=saved_before).contains(&falls[0][1]), "{falls:?}");
}
