//! `vm status`: what becomes of VMs, told when it happens.

use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::counter::{Counter, SHAPE, install};
use crate::support::hear::Heard;
use crate::support::{Cocoon, stderr, stdout};

/// A `vm status` that goes on until it is ended.
struct Status {
    child: Child,
    said: Heard,
}

impl Status {
    /// One that watches already.
    fn watching(mut command: std::process::Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Heard::of(child.stdout.take().unwrap());
        Heard::of(child.stderr.take().unwrap()).until("Watching; Ctrl-C ends it.\n");
        Self { child, said }
    }

    /// The next event: what happened to which VM, its state, and why.
    fn event(&mut self) -> [String; 4] {
        let line: serde_json::Value = serde_json::from_str(&self.said.until("\n")).unwrap();
        line["time"].as_str().unwrap();
        ["event", "name", "state", "reason"]
            .map(|key| line[key].as_str().unwrap_or_default().to_owned())
    }

    fn ends_by(mut self, signal: Signal) -> String {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
        assert!(self.child.wait().unwrap().success());
        self.said.rest()
    }
}

#[test]
fn once_it_shows_all_vms_or_those_that_were_named() {
    let cocoon = Cocoon::new();
    let none = cocoon.run(&["vm", "status"]);
    assert_eq!(stdout(&none), "");
    assert_eq!(stderr(&none), "No VMs found.\n");
    assert_eq!(stdout(&cocoon.run(&["vm", "status", "-o", "json"])), "[]\n");
    let unknown = cocoon.run(&["vm", "status", "--events", "web"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("no VM is called \"web\""));
    let both = cocoon.run(&["vm", "status", "--events", "--watch"]);
    assert_eq!(both.status.code(), Some(2));
}

#[test]
fn root_everything_that_becomes_of_a_vm_is_told_in_order() {
    let Some(counter) = Counter::run() else {
        return;
    };
    let mut all = Status::watching(counter.command(&["vm", "status", "--events"]));
    let mut one = Status::watching(counter.command(&["vm", "status", "--events", "counter"]));
    let create = [
        &["vm", "create", "--name", "other", "--nics", "0"],
        &SHAPE[..],
        &["counter"],
    ];
    counter.ok(&create.concat());
    let told = |happened: &str, state: &str, reason: &str| {
        [happened, "other", state, reason].map(str::to_owned)
    };
    assert_eq!(all.event(), told("created", "created", ""));
    counter.ok(&["vm", "start", "other"]);
    assert_eq!(all.event(), told("started", "running", ""));
    counter.ok(&["vm", "pause", "other"]);
    assert_eq!(all.event(), told("paused", "paused", ""));
    counter.ok(&["vm", "resume", "other"]);
    assert_eq!(all.event(), told("resumed", "running", ""));
    counter.ok(&["vm", "stop", "--force", "other"]);
    assert_eq!(all.event(), told("stopped", "stopped", "stopped by cocoon"));
    counter.ok(&["vm", "start", "other"]);
    assert_eq!(all.event(), told("started", "running", ""));
    // Whoever is killed tells nobody.
    let pid = counter.json(&["vm", "inspect", "other"])["pid"].as_i64();
    let pid = Pid::from_raw(i32::try_from(pid.unwrap()).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let died = told("stopped", "stopped", "the VM process died");
    assert_eq!(all.event(), died);
    counter.ok(&["vm", "rm", "other"]);
    assert_eq!(all.event()[..3], told("removed", "removing", "")[..3]);
    // The other one heard nothing of all that.
    counter.ok(&["vm", "rm", "--force", "counter"]);
    for status in [&mut all, &mut one] {
        assert_eq!(status.event()[..2], ["stopped", "counter"]);
        assert_eq!(status.event()[..2], ["removed", "counter"]);
    }
    assert_eq!(all.ends_by(Signal::INT), "");
    assert_eq!(one.ends_by(Signal::TERM), "");
}

#[test]
fn root_a_table_is_shown_anew_when_it_is_another_one() {
    let Some(counter) = Counter::run() else {
        return;
    };
    let mut watch = Status::watching(counter.command(&["vm", "status", "-w"]));
    let mut json = Status::watching(counter.command(&["vm", "status", "-w", "-o", "json"]));
    let header = watch.said.until("\n");
    assert_eq!(
        header.split_whitespace().collect::<Vec<_>>().join(" "),
        "ID NAME STATE SINCE CPU MEMORY IP REASON"
    );
    assert!(watch.said.until("\n").contains("  counter  running  "));
    json.said.until("\n");
    // Nothing that it shows changes by this.
    counter.ok(&["image", "list"]);
    counter.ok(&["vm", "stop", "--force", "counter"]);
    assert_eq!(watch.said.until("\n").split_whitespace().next(), Some("ID"));
    let row = watch.said.until("\n");
    assert!(row.ends_with("  stopped by cocoon"), "{row:?}");
    let vms: serde_json::Value = serde_json::from_str(&json.said.until("\n")).unwrap();
    assert_eq!(vms[0]["state"], "stopped");
    watch.ends_by(Signal::INT);
    json.ends_by(Signal::INT);
}

#[test]
fn who_reads_no_more_is_noticed_though_nothing_happens() {
    let cocoon = Cocoon::new();
    install(&cocoon);
    let mut command = cocoon.command(&["vm", "status", "--events"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    Heard::of(child.stderr.take().unwrap()).until("Watching; Ctrl-C ends it.\n");
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}
