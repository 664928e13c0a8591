//! `gc` while another command stands still, at each of its steps; and a command that comes while `gc` does.

use std::io::Read;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::image::{Gated, layers};
use super::vm_process::wait_until_halted;
use super::{Verb, nothing, steps};
use crate::support::counter::{Counter, SHAPE};
use crate::support::image::{Registry, Workshop};
use crate::support::{left, stderr};

/// A command that stands still.
struct Halted {
    child: Child,
    pid: i32,
}

impl Drop for Halted {
    fn drop(&mut self) {
        // It would keep its locks for ever.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Halted {
    fn at(counter: &Counter, args: &[&str], step: &str) -> Self {
        let mut command = counter.command(args);
        command.env("COCOON_FAILPOINT_STOP", step);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped());
        let child = child.spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        wait_until_halted(pid, step);
        Self { child, pid }
    }

    /// Lets it go on; it must succeed.
    fn goes_on(mut self, what: &str) {
        kill_process(Pid::from_raw(self.pid).unwrap(), Signal::CONT).unwrap();
        let mut told = String::new();
        let mut said = self.child.stderr.take().unwrap();
        said.read_to_string(&mut told).unwrap();
        assert!(self.child.wait().unwrap().success(), "{what}: {told}");
    }
}

/// Halts `verb` at each of its steps, while `gc` runs. Then it goes on as if nothing had been.
fn halt_at_every_step(counter: &Counter, verb: &Verb<'_>) {
    (verb.before)();
    let steps = steps(counter, verb.args);
    assert!((verb.is_done)());
    (verb.after)();
    let mut refused = 0;
    for step in &steps {
        let what = format!("gc ran while {:?} stood at \"{step}\"", verb.args);
        (verb.before)();
        let halted = Halted::at(counter, verb.args, step);
        let gc = counter.try_(&["gc", "-o", "json"]);
        if gc.status.success() {
            let done: serde_json::Value = serde_json::from_slice(&gc.stdout).unwrap();
            assert_eq!(done["removed"], serde_json::json!([]), "{what}");
        } else {
            let told = stderr(&gc);
            assert!(told.contains("is making references"), "{what}: {told}");
            refused += 1;
        }
        halted.goes_on(&what);
        assert!((verb.is_done)(), "{what}");
        counter.ok(&["gc"]);
        assert!((verb.is_done)(), "{what}, and once more");
        left::nothing(counter, &what);
        counter.goes_on();
        (verb.after)();
    }
    println!("gc was refused at {refused} of {} steps", steps.len());
    assert!(refused > 0);
}

#[test]
fn root_gc_takes_nothing_from_a_pull_or_an_import_at_any_step() {
    let (Some(registry), Some(counter)) = (Registry::start(), Counter::run()) else {
        return;
    };
    registry.push("vm", &layers(1000));
    let pulled = registry.reference("vm");
    let workshop = Workshop::new();
    let archive = workshop.archive("several", &layers(1000));
    let import = ["image", "import", "vm:1", archive.to_str().unwrap()];
    let verbs = [
        (&["image", "pull", &pulled][..], pulled.as_str()),
        (&import[..], "vm:1"),
    ];
    for (args, name) in verbs {
        counter.ok(args);
        let files = counter.files_of(name);
        halt_at_every_step(
            &counter,
            &Verb {
                args,
                before: &|| {
                    let _ = counter.try_(&["image", "rm", name]);
                    counter.ok(&["gc"]);
                },
                is_done: &|| counter.files_of(name) == files,
                done_at: "",
                after: &nothing,
            },
        );
        counter.rid_of(name);
    }
}

#[test]
fn root_gc_takes_nothing_from_a_vm_or_a_snapshot_that_is_being_made() {
    let Some(counter) = Counter::run() else {
        return;
    };
    let run = [&["vm", "run", "--name", "other", "--nics", "0"], &SHAPE[..]].concat();
    halt_at_every_step(
        &counter,
        &Verb {
            args: &[&run[..], &["counter"]].concat(),
            before: &nothing,
            is_done: &|| counter.state_of("other") == "running",
            done_at: "",
            after: &|| counter.runs_and_goes("other"),
        },
    );
    halt_at_every_step(
        &counter,
        &Verb {
            args: &["snapshot", "save", "--name", "moment", "counter"],
            before: &nothing,
            is_done: &|| counter.has("snapshot", "moment"),
            done_at: "",
            after: &|| {
                counter.ok(&["snapshot", "inspect", "--full", "moment"]);
                counter.ok(&["snapshot", "rm", "moment"]);
            },
        },
    );
}

#[test]
fn root_a_pull_of_what_gc_is_removing_waits_for_it() {
    let Some(gated) = Gated::image(1000) else {
        return;
    };
    let (gate, counter, name) = (&gated.gate, &gated.counter, &gated.name);
    let pull = ["image", "pull", name];
    let unused = || {
        counter.ok(&pull);
        counter.ok(&["image", "rm", name]);
    };
    unused();
    for step in steps(counter, &["gc"]) {
        unused();
        let passed = gate.passed();
        let gc = Halted::at(counter, &["gc"], &step);
        let pulls: Vec<_> = (0..2).map(|_| silently(counter.command(&pull))).collect();
        for pull in &pulls {
            wait_for_lock(pull.id());
        }
        assert_eq!(
            gate.passed(),
            passed,
            "a pull did not wait for gc at {step}"
        );
        gc.goes_on(&step);
        for mut pull in pulls {
            assert!(pull.wait().unwrap().success(), "{step}");
        }
        counter.ok(&["gc"]);
        assert_eq!(counter.files_of(name), gated.files, "{step}");
        left::nothing(counter, &format!("two pulls came while gc stood at {step}"));
        counter.rid_of(name);
    }
}

fn silently(mut command: Command) -> Child {
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Waits until a process waits for a lock that another one has, by the kernel's own list (proc_locks(5)).
fn wait_for_lock(pid: u32) {
    let waits = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        words.get(1) == Some(&"->") && words.get(5) == Some(&pid.to_string().as_str())
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    // Nobody tells of another's wait.
    while !std::fs::read_to_string("/proc/locks")
        .unwrap()
        .lines()
        .any(waits)
    {
        assert!(std::time::Instant::now() < deadline, "it waits for no lock");
    }
}
