//! A restore that is killed: whichever disk the VM has then, it is one that it may go on with.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::{kill_at, steps};
use crate::support::counter::Counter;
use crate::support::left;

/// Where the guest's disk tells whose it is; the guest itself writes nothing to it.
const MARK: u64 = 40 << 20;

const RESTORE: [&str; 4] = ["vm", "restore", "counter", "moment"];

/// What the VM is after the kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// It has not noticed.
    AsItWas,
    /// It had to end, and has its own disk.
    Stopped,
    /// The VM process may have come to its end with the command, or not.
    StoppedOrRestored,
    /// It runs as the snapshot has it.
    Restored,
}

struct Fixture {
    counter: Counter,
    runs_before: bool,
}

impl Fixture {
    fn disk(&self) -> File {
        let vm = self.counter.json(&["vm", "inspect", "counter"]);
        let path = std::path::Path::new(vm["run_dir"].as_str().unwrap()).join("cow.raw");
        File::options().read(true).write(true).open(path).unwrap()
    }

    fn mark(&self, whose: &[u8; 5]) {
        self.disk().write_all_at(whose, MARK).unwrap();
    }

    fn read_mark(&self) -> String {
        let mut mark = [0; 5];
        self.disk().read_exact_at(&mut mark, MARK).unwrap();
        String::from_utf8(mark.into()).unwrap()
    }

    /// A VM that has a snapshot, and has gone on since.
    fn before(&self) {
        match (self.runs_before, self.counter.state().as_str()) {
            (true, "running") | (false, "stopped") => {}
            (true, _) => drop(self.counter.ok(&["vm", "start", "counter"])),
            (false, _) => drop(self.counter.ok(&["vm", "stop", "--force", "counter"])),
        }
        self.mark(b"since");
    }

    fn after(&self, step: &str) {
        assert_eq!(self.counter.state(), "running", "{step}");
        assert_eq!(self.read_mark(), "saved", "{step}");
        self.counter.goes_on();
        left::nothing(&self.counter, step);
    }

    /// Says what is right after a kill at each step.
    fn steps(&self) -> Vec<(String, Left)> {
        self.before();
        let mut left = if self.runs_before {
            Left::AsItWas
        } else {
            Left::Stopped
        };
        let becomes = |step: &str, left| match step {
            "stop: VM process ended" => Left::Stopped,
            "launch: VM process started" => Left::StoppedOrRestored,
            "launch: VM process heard" => Left::Restored,
            _ => left,
        };
        let steps = steps(&self.counter, &RESTORE).into_iter();
        let steps = steps.map(|step| {
            left = becomes(&step, left);
            (step, left)
        });
        let steps = steps.collect();
        self.after("all steps");
        steps
    }

    /// Looks at what the VM is, once it is known whether its process lives on.
    fn check(&self, step: &str, left: Left) {
        let found = (self.counter.state(), self.read_mark());
        let found = (found.0.as_str(), found.1.as_str());
        let right: &[(&str, &str)] = match left {
            Left::AsItWas => &[("running", "since")],
            Left::Stopped => &[("stopped", "since")],
            Left::StoppedOrRestored => &[("stopped", "since"), ("running", "saved")],
            Left::Restored => &[("running", "saved")],
        };
        assert!(right.contains(&found), "{found:?} at \"{step}\": {left:?}");
    }
}

/// Kills a restore at each of its steps.
fn kill_at_every_step(runs_before: bool) {
    let Some(counter) = Counter::run() else {
        return;
    };
    let fixture = Fixture {
        counter,
        runs_before,
    };
    let counter = &fixture.counter;
    fixture.mark(b"saved");
    counter.ok(&["snapshot", "save", "--name", "moment", "counter"]);
    for (step, left) in fixture.steps() {
        // The host is brought in order by gc ...
        fixture.before();
        kill_at(counter, &RESTORE, &step);
        counter.ok(&["gc"]);
        fixture.check(&step, left);
        left::nothing(counter, &step);
        counter.ok(&RESTORE);
        fixture.after(&step);
        // ... or by whoever needs the VM next.
        fixture.before();
        kill_at(counter, &RESTORE, &step);
        counter.ok(&RESTORE);
        fixture.after(&step);
        fixture.before();
        kill_at(counter, &RESTORE, &step);
        if counter.state() == "running" {
            counter.ok(&["snapshot", "save", "--name", "then", "counter"]);
            counter.ok(&["snapshot", "rm", "then"]);
        }
        counter.ok(&["vm", "start", "counter"]);
        counter.goes_on();
        let saved = left == Left::Restored || fixture.read_mark() == "saved";
        assert!(
            !saved || matches!(left, Left::Restored | Left::StoppedOrRestored),
            "{step}: the VM lost its disk"
        );
    }
}

#[test]
fn root_a_restore_of_a_running_vm_may_be_killed_at_every_step() {
    kill_at_every_step(true);
}

#[test]
fn root_a_restore_of_a_stopped_vm_may_be_killed_at_every_step() {
    kill_at_every_step(false);
}
