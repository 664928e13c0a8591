//! `kill -9` of the program at each step of its verbs, which the program tells itself: see
//! `src/sys/failpoint.rs`. Built with the feature `failpoints` alone, as `tests/tier root` does.
//!
//! ```text
//! undisturbed ──▶ the steps;   for each:  killed there ──▶ gc ──▶ nothing is left ──▶ the verb succeeds
//! ```

#![expect(
    clippy::print_stdout,
    reason = "it says how many steps there were, and why a test did not run"
)]

mod beside_gc;
mod disk_image;
mod doctor;
mod image;
mod restore;
mod vm_process;
mod with_nic;

use std::os::unix::process::ExitStatusExt;

use crate::support::counter::{Counter, SHAPE};
use crate::support::{left, stderr};

/// A verb, and what there is before and after it.
struct Verb<'a> {
    args: &'a [&'a str],
    /// Makes what it needs.
    before: &'a dyn Fn(),
    /// Whether all of it is done, as far as users can see.
    is_done: &'a dyn Fn() -> bool,
    /// From this step on it is, once `gc` has run; before, nothing of it is to be seen.
    done_at: &'a str,
    /// Looks at what it did, and takes that back.
    after: &'a dyn Fn(),
}

/// The steps that a command reaches, in their order.
fn steps(counter: &Counter, args: &[&str]) -> Vec<String> {
    let list = counter.cocoon.root.path().join("steps");
    let _ = std::fs::remove_file(&list);
    let output = counter
        .command(args)
        .env("COCOON_FAILPOINT_LIST", &list)
        .output()
        .unwrap();
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    let steps = std::fs::read_to_string(&list).unwrap();
    std::fs::remove_file(&list).unwrap();
    println!("{}: {} steps", args.join(" "), steps.lines().count());
    steps.lines().map(str::to_owned).collect()
}

/// Runs a command, which is killed at `step`.
fn kill_at(counter: &Counter, args: &[&str], step: &str) {
    let mut command = counter.command(args);
    let output = command.env("COCOON_FAILPOINT", step).output().unwrap();
    let signal = output.status.signal();
    assert_eq!(signal, Some(9), "{args:?} at {step}: {}", stderr(&output));
}

/// Kills `verb` at each of its steps. Whatever the step, the VM `counter` runs, one `gc` leaves nothing,
/// and then the verb succeeds, unless it was killed with all done.
fn kill_at_every_step(counter: &Counter, verb: &Verb<'_>) {
    (verb.before)();
    let steps = steps(counter, verb.args);
    assert!((verb.is_done)());
    (verb.after)();
    let done_at = steps.iter().position(|step| step == verb.done_at);
    let done_at = done_at.unwrap_or_else(|| panic!("no {:?} in {steps:?}", verb.done_at));
    for (index, step) in steps.into_iter().enumerate() {
        let what = format!("{:?} was killed at \"{step}\"", verb.args);
        (verb.before)();
        kill_at(counter, verb.args, &step);
        assert_eq!(counter.state(), "running", "{what}");
        counter.ok(&["gc"]);
        left::nothing(counter, &what);
        let is_done = (verb.is_done)();
        // A VM process may have come so far that it outlives its command.
        if step != "launch: VM process started" {
            assert_eq!(is_done, index >= done_at, "whether it is done when {what}");
        }
        if !is_done {
            counter.ok(verb.args);
        }
        counter.goes_on();
        (verb.after)();
        left::nothing(counter, &format!("{what} and done again"));
    }
}

/// Kills a `vm run` of the VM `other` at each of its steps.
fn kill_a_run(counter: &Counter, run: &[&str]) {
    kill_at_every_step(
        counter,
        &Verb {
            args: run,
            before: &nothing,
            is_done: &|| counter.has("vm", "other"),
            done_at: "create: VM complete",
            // One that was created before the kill is a VM as any.
            after: &|| {
                counter.ok(&["vm", "start", "other"]);
                counter.runs_and_goes("other");
            },
        },
    );
}

/// Kills a `vm clone` of the snapshot `moment` at each of its steps.
fn kill_a_clone(counter: &Counter) {
    kill_at_every_step(
        counter,
        &Verb {
            args: &["vm", "clone", "--name", "other", "moment"],
            before: &nothing,
            is_done: &|| counter.has("vm", "other"),
            done_at: "clone: VM complete",
            after: &|| counter.runs_and_goes("other"),
        },
    );
}

/// Nothing that needs to be done.
fn nothing() {}

impl Counter {
    fn has(&self, kind: &str, name: &str) -> bool {
        self.try_(&[kind, "inspect", name]).status.success()
    }

    /// Sees that the VM `name` runs, and removes it.
    fn runs_and_goes(&self, name: &str) {
        assert_eq!(self.state_of(name), "running", "{name}");
        self.vm_goes_on(name);
        self.ok(&["vm", "rm", "--force", name]);
    }
}

#[test]
fn root_a_save_may_be_killed_at_every_step() {
    let Some(counter) = Counter::run() else {
        return;
    };
    kill_at_every_step(
        &counter,
        &Verb {
            args: &["snapshot", "save", "--name", "moment", "counter"],
            before: &nothing,
            is_done: &|| counter.has("snapshot", "moment"),
            done_at: "snapshot: recorded as ready",
            after: &|| {
                counter.ok(&["snapshot", "inspect", "--full", "moment"]);
                counter.ok(&["snapshot", "rm", "moment"]);
            },
        },
    );
}

#[test]
fn root_a_clone_may_be_killed_at_every_step() {
    let Some(counter) = Counter::run() else {
        return;
    };
    counter.ok(&["snapshot", "save", "--name", "moment", "counter"]);
    kill_a_clone(&counter);
}

#[test]
fn root_an_import_and_an_export_may_be_killed_at_every_step() {
    let Some(counter) = Counter::run() else {
        return;
    };
    counter.ok(&["snapshot", "save", "--name", "moment", "counter"]);
    // A folder of the user's, where no `gc` looks.
    let exports = tempfile::tempdir().unwrap();
    let path = |name| exports.path().join(name);
    let (folder, file) = (path("exported/"), path("exported.tar"));
    let is_there = || {
        let others = std::fs::read_dir(exports.path()).unwrap().flatten();
        let mut others = others.filter(|entry| entry.path() != file);
        assert!(others.next().is_none(), "a killed export leaves something");
        file.exists()
    };
    kill_at_every_step(
        &counter,
        &Verb {
            args: &["snapshot", "export", "moment", file.to_str().unwrap()],
            before: &nothing,
            is_done: &is_there,
            done_at: "export: archive in place",
            // An archive under its name is whole.
            after: &|| {
                let import = ["snapshot", "import", "--name", "again"];
                counter.ok(&[&import[..], &[file.to_str().unwrap()]].concat());
                counter.ok(&["snapshot", "rm", "again"]);
                std::fs::remove_file(&file).unwrap();
            },
        },
    );
    for target in [&folder, &file] {
        let target = target.to_str().unwrap();
        counter.ok(&["snapshot", "export", "moment", target]);
        kill_at_every_step(
            &counter,
            &Verb {
                args: &["snapshot", "import", "--name", "again", target],
                before: &nothing,
                is_done: &|| counter.has("snapshot", "again"),
                done_at: "snapshot: recorded as ready",
                after: &|| {
                    counter.ok(&["snapshot", "inspect", "--full", "again"]);
                    counter.ok(&["snapshot", "rm", "again"]);
                },
            },
        );
    }
}

#[test]
fn root_a_removal_of_a_snapshot_may_be_killed_at_every_step() {
    let Some(counter) = Counter::run() else {
        return;
    };
    kill_at_every_step(
        &counter,
        &Verb {
            args: &["snapshot", "rm", "moment"],
            before: &|| {
                counter.ok(&["snapshot", "save", "--name", "moment", "counter"]);
            },
            is_done: &|| !counter.has("snapshot", "moment"),
            done_at: "snapshot rm: recorded as being removed",
            after: &nothing,
        },
    );
}

#[test]
fn root_the_life_of_a_vm_may_be_killed_at_every_step() {
    let Some(counter) = Counter::run() else {
        return;
    };
    let run = [&["vm", "run", "--name", "other", "--nics", "0"], &SHAPE[..]].concat();
    let run = [&run[..], &["counter"]].concat();
    kill_a_run(&counter, &run);
    counter.ok(&run);
    kill_at_every_step(
        &counter,
        &Verb {
            args: &["vm", "stop", "--force", "other"],
            before: &|| {
                counter.ok(&["vm", "start", "other"]);
            },
            is_done: &|| counter.state_of("other") == "stopped",
            done_at: "stop: VM process ended",
            after: &nothing,
        },
    );
    kill_at_every_step(
        &counter,
        &Verb {
            args: &["vm", "start", "other"],
            before: &nothing,
            is_done: &|| counter.state_of("other") == "running",
            done_at: "launch: VM process heard",
            after: &|| {
                counter.vm_goes_on("other");
                counter.ok(&["vm", "stop", "--force", "other"]);
            },
        },
    );
    counter.ok(&["vm", "rm", "other"]);
    kill_at_every_step(
        &counter,
        &Verb {
            args: &["vm", "rm", "--force", "other"],
            before: &|| {
                counter.ok(&run);
            },
            is_done: &|| !counter.has("vm", "other"),
            done_at: "rm: recorded as being removed",
            after: &nothing,
        },
    );
}

#[test]
fn root_what_was_cut_off_is_finished_by_the_same_verb_without_gc_and_gc_may_be_killed_too() {
    let Some(counter) = Counter::run() else {
        return;
    };
    counter.ok(&["snapshot", "save", "--name", "moment", "counter"]);
    let rest = "clone: identity told";
    let clone = ["vm", "clone", "--name", "other", "moment"];
    let other_is_gone = || !counter.has("vm", "other");
    kill_at_every_step(
        &counter,
        &Verb {
            args: &["gc"],
            before: &|| kill_at(&counter, &clone, rest),
            is_done: &other_is_gone,
            done_at: "stop: VM process ended",
            after: &nothing,
        },
    );
    kill_at(&counter, &clone, rest);
    counter.ok(&["vm", "rm", "--force", "other"]);
    for step in ["recorded as being removed", "folders gone"] {
        kill_at(&counter, &clone, rest);
        let removal = ["vm", "rm", "--force", "other"];
        kill_at(&counter, &removal, &format!("rm: {step}"));
        counter.ok(&removal);
        left::nothing(&counter, step);
    }
}
