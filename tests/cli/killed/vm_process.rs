//! The VM process dies, or its command does while it is at work.

use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::counter::Counter;
use crate::support::{left, stderr};

/// Wait for a process to come to a halt or an end, on a busy host.
const SOON: Duration = Duration::from_secs(60);

const SAVE: [&str; 5] = ["snapshot", "save", "--name", "moment", "counter"];

/// The steps that the VM process of a command reaches until the command is done.
fn steps(counter: &Counter, args: &[&str]) -> Vec<String> {
    let list = counter.cocoon.root.path().join("vm-steps");
    let _ = fs::remove_file(&list);
    let mut command = counter.command(args);
    let output = command.env("COCOON_VM_FAILPOINT_LIST", &list);
    let output = output.output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    let steps = fs::read_to_string(&list).unwrap();
    println!("VM process of {args:?}: {} steps", steps.lines().count());
    steps.lines().map(str::to_owned).collect()
}

/// The steps of a VM process that saves; the VM runs on.
fn steps_of_a_save(counter: &Counter) -> Vec<String> {
    let begin = steps(counter, &["vm", "start", "counter"]).len();
    counter.ok(&SAVE);
    let list = counter.cocoon.root.path().join("vm-steps");
    let steps = fs::read_to_string(list).unwrap();
    println!(
        "VM process at a save: {} steps",
        steps.lines().count() - begin
    );
    steps.lines().skip(begin).map(str::to_owned).collect()
}

/// Runs a command, whose VM process dies at `step`; it must fail.
fn fail_at(counter: &Counter, args: &[&str], step: &str) {
    let mut command = counter.command(args);
    let output = command.env("COCOON_VM_FAILPOINT", step).output().unwrap();
    let code = output.status.code();
    assert_eq!(code, Some(1), "{args:?} at {step}: {}", stderr(&output));
}

#[test]
fn root_a_vm_process_that_dies_leaves_no_clone_and_a_vm_its_own_disk() {
    let Some(counter) = Counter::run() else {
        return;
    };
    counter.ok(&["snapshot", "save", "--name", "moment", "counter"]);
    let clone = ["vm", "clone", "--name", "other", "moment"];
    for step in steps(&counter, &clone) {
        let _ = counter.try_(&["vm", "rm", "--force", "other"]);
        fail_at(&counter, &clone, &step);
        left::nothing(&counter, &step);
        counter.ok(&clone);
    }
    counter.ok(&["vm", "rm", "--force", "other"]);
    let restore = ["vm", "restore", "counter", "moment"];
    let disk = counter.json(&["vm", "inspect", "counter"])["run_dir"].clone();
    let disk = format!("{}/cow.raw", disk.as_str().unwrap());
    let own = || fs::metadata(&disk).map(|file| std::os::unix::fs::MetadataExt::ino(&file));
    for step in steps(&counter, &restore) {
        let before = own().unwrap();
        fail_at(&counter, &restore, &step);
        assert_ne!(counter.state(), "running");
        assert_eq!(own().unwrap(), before, "{step}: it has its own disk again");
        left::nothing(&counter, &step);
        fail_at(
            &counter,
            &["vm", "start", "counter"],
            "VM process: alive lock held",
        );
        counter.ok(&["vm", "start", "counter"]);
        counter.goes_on();
        counter.ok(&restore);
    }
    counter.ok(&["vm", "stop", "--force", "counter"]);
    for step in steps(&counter, &["vm", "start", "counter"]) {
        counter.ok(&["vm", "stop", "--force", "counter"]);
        fail_at(&counter, &["vm", "start", "counter"], &step);
        left::nothing(&counter, &step);
        counter.ok(&["vm", "start", "counter"]);
        counter.goes_on();
    }
}

/// Starts the VM anew, without a snapshot, in a process that obeys `variable` at a later step.
fn start_obeying(counter: &Counter, variable: &str, step: &str) {
    let _ = counter.try_(&["snapshot", "rm", "moment"]);
    counter.ok(&["vm", "stop", "--force", "counter"]);
    let mut start = counter.command(&["vm", "start", "counter"]);
    let started = start.env(variable, step).output().unwrap();
    assert!(started.status.success(), "{step}: {}", stderr(&started));
}

#[test]
fn root_a_vm_process_that_dies_in_a_save_leaves_a_stopped_vm_and_no_snapshot() {
    let Some(counter) = Counter::run() else {
        return;
    };
    counter.ok(&["vm", "stop", "--force", "counter"]);
    for step in steps_of_a_save(&counter) {
        start_obeying(&counter, "COCOON_VM_FAILPOINT", &step);
        counter.refused(&SAVE);
        counter.wait_for_process();
        assert_eq!(counter.state(), "stopped", "{step}");
        left::nothing(&counter, &step);
        counter.ok(&["vm", "start", "counter"]);
        counter.ok(&SAVE);
        counter.goes_on();
    }
}

#[test]
fn root_a_save_that_is_killed_while_the_vm_process_is_at_it_leaves_nothing_after_one_gc() {
    let Some(counter) = Counter::run() else {
        return;
    };
    counter.ok(&["vm", "stop", "--force", "counter"]);
    for step in steps_of_a_save(&counter) {
        start_obeying(&counter, "COCOON_VM_FAILPOINT_STOP", &step);
        let pid = counter.json(&["vm", "inspect", "counter"])["pid"].clone();
        let pid = i32::try_from(pid.as_i64().unwrap()).unwrap();
        kill_when_halted(counter.command(&SAVE).spawn().unwrap(), pid, &step);
        assert_eq!(counter.ok(&["snapshot", "list", "-q"]), "", "{step}");
        counter.ok(&["gc"]);
        left::nothing(&counter, &step);
        assert_eq!(counter.state(), "running", "{step}");
        counter.goes_on();
        counter.ok(&SAVE);
        counter.goes_on();
    }
}

/// Kills a command when the VM process `pid` stands still, which then goes on.
fn kill_when_halted(mut command: Child, pid: i32, step: &str) {
    wait_until_halted(pid, step);
    command.kill().unwrap();
    command.wait().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::CONT).unwrap();
}

pub(super) fn wait_until_halted(pid: i32, step: &str) {
    let deadline = Instant::now() + SOON;
    let status = format!("/proc/{pid}/status");
    // Nobody tells of another's child that it has stopped.
    while !fs::read_to_string(&status).unwrap().contains("\nState:\tT") {
        assert!(Instant::now() < deadline, "{step} is not reached");
    }
}

/// The first process that a command starts.
fn child_of(command: &Child) -> i32 {
    let deadline = Instant::now() + SOON;
    loop {
        let tasks = fs::read_dir(format!("/proc/{}/task", command.id())).unwrap();
        let children = tasks.flatten().map(|task| task.path().join("children"));
        let mut children = children.filter_map(|list| fs::read_to_string(list).ok());
        if let Some(pid) = children.find_map(|list| list.split(' ').next()?.parse().ok()) {
            return pid;
        }
        assert!(Instant::now() < deadline, "it starts no process");
    }
}

#[test]
fn root_a_vm_process_that_has_not_said_that_its_vm_runs_makes_no_vm_running() {
    let Some(counter) = Counter::run() else {
        return;
    };
    counter.ok(&["vm", "stop", "--force", "counter"]);
    for step in ["alive lock held", "control socket open"] {
        let step = format!("VM process: {step}");
        let mut start = counter.command(&["vm", "start", "counter"]);
        let mut start = start
            .env("COCOON_VM_FAILPOINT_STOP", &step)
            .spawn()
            .unwrap();
        wait_until_halted(child_of(&start), &step);
        let seen = counter.state();
        start.kill().unwrap();
        start.wait().unwrap();
        counter.wait_for_process();
        assert_eq!(seen, "stopped", "{step}");
        assert_eq!(counter.state(), "stopped", "{step}");
        counter.ok(&["vm", "start", "counter"]);
        counter.goes_on();
        counter.ok(&["vm", "stop", "--force", "counter"]);
    }
}
