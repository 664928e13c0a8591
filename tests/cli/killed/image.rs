//! A pull, an import, a removal of an image, and `gc` of its layers.

use std::process::Stdio;

use super::{Verb, kill_at_every_step, nothing};
use crate::support::Cocoon;
use crate::support::counter::{Counter, SHAPE};
use crate::support::gate::Gate;
use crate::support::image::{Files, Registry, Workshop, data_tar, root_tar};
use crate::support::left;

/// The image of these tests: what boots, and two layers besides.
pub(super) fn layers(length: usize) -> Vec<Vec<u8>> {
    vec![
        root_tar(),
        data_tar("middle", length),
        data_tar("top", length),
    ]
}

impl Counter {
    /// Removes an image, and what is left of it.
    pub(super) fn rid_of(&self, image: &str) {
        self.ok(&["image", "rm", image]);
        self.ok(&["gc"]);
        left::nothing(self, "the image was removed");
    }

    /// Makes a VM of an image, which then runs, and removes it.
    fn runs_as_vm(&self, image: &str) {
        let run = [&["vm", "run", "--name", "other", "--nics", "0"], &SHAPE[..]].concat();
        self.ok(&[&run[..], &[image]].concat());
        self.runs_and_goes("other");
    }
}

/// An image that has been pulled through a gate, which stays open, and is here no more.
pub(super) struct Gated {
    pub(super) counter: Counter,
    pub(super) gate: Gate,
    /// As it is called by who pulls it.
    pub(super) name: String,
    /// What a pull makes of it.
    pub(super) files: Files,
    /// What passes the gate for that.
    bytes: u64,
    _registry: Registry,
}

impl Gated {
    /// One of [`layers`].
    pub(super) fn image(length: usize) -> Option<Self> {
        let (registry, counter) = (Registry::start()?, Counter::run()?);
        registry.push("vm", &layers(length));
        let gate = Gate::before(registry.address);
        let name = gate.reference("vm");
        gate.let_through(u64::MAX);
        counter.ok(&["image", "pull", &name]);
        let (files, bytes) = (counter.files_of(&name), gate.passed());
        counter.rid_of(&name);
        Some(Self {
            counter,
            gate,
            name,
            files,
            bytes,
            _registry: registry,
        })
    }
}

/// Kills a verb that makes the image `name` at each of its steps. What it makes is the same as undisturbed.
fn kill_what_makes(counter: &Counter, args: &[&str], name: &str) {
    counter.ok(args);
    let files = counter.files_of(name);
    counter.runs_as_vm(name);
    counter.rid_of(name);
    kill_at_every_step(
        counter,
        &Verb {
            args,
            before: &nothing,
            is_done: &|| counter.has("image", name),
            done_at: "image: recorded",
            after: &|| {
                assert_eq!(counter.files_of(name), files);
                counter.rid_of(name);
            },
        },
    );
}

#[test]
fn root_a_pull_may_be_killed_at_every_step() {
    let (Some(registry), Some(counter)) = (Registry::start(), Counter::run()) else {
        return;
    };
    registry.push("vm", &layers(100_000));
    let name = registry.reference("vm");
    kill_what_makes(&counter, &["image", "pull", &name], &name);
}

#[test]
fn root_an_import_of_an_image_may_be_killed_at_every_step() {
    let Some(counter) = Counter::run() else {
        return;
    };
    let workshop = Workshop::new();
    let one = workshop.file("root.tar", &root_tar());
    let several = workshop.archive("several", &layers(100_000));
    for input in [one, several] {
        let input = input.to_str().unwrap();
        kill_what_makes(&counter, &["image", "import", "vm:1", input], "vm:1");
    }
}

#[test]
fn root_an_import_from_a_stream_may_be_killed_at_every_step() {
    // What every command reads is there for longer than those that end the test.
    let workshop = Workshop::new();
    let Some(mut counter) = Counter::run() else {
        return;
    };
    for input in [
        workshop.file("root.tar", &root_tar()),
        workshop.archive("several", &layers(100_000)),
    ] {
        counter.stdin = Some(input);
        kill_what_makes(&counter, &["image", "import", "vm:1", "-"], "vm:1");
    }
}

#[test]
fn root_a_removal_of_an_image_and_gc_of_it_may_be_killed_at_every_step() {
    let Some(counter) = Counter::run() else {
        return;
    };
    let workshop = Workshop::new();
    let archive = workshop.archive("several", &layers(1000));
    let import = ["image", "import", "vm:1", archive.to_str().unwrap()];
    kill_at_every_step(
        &counter,
        &Verb {
            args: &["image", "rm", "vm:1"],
            before: &|| {
                counter.ok(&import);
            },
            is_done: &|| !counter.has("image", "vm:1"),
            done_at: "image rm: names gone",
            after: &|| {
                counter.ok(&["gc"]);
            },
        },
    );
    kill_at_every_step(
        &counter,
        &Verb {
            args: &["gc"],
            before: &|| {
                counter.ok(&import);
                counter.ok(&["image", "rm", "vm:1"]);
            },
            is_done: &|| !counter.has("image", "vm:1"),
            done_at: "gc: file or folder removed",
            after: &nothing,
        },
    );
}

#[test]
fn root_a_download_that_was_cut_and_killed_anywhere_begins_anew_and_ends_right() {
    let Some(gated) = Gated::image(200_000) else {
        return;
    };
    let (gate, counter, name, all) = (&gated.gate, &gated.counter, &gated.name, gated.bytes);
    let pull = ["image", "pull", name];
    println!("a pull of {all} bytes, cut and killed in each eighth of it but the first");
    // In the first one are the documents, which a pull does not ask for again.
    for eighth in 1..8 {
        for gc in [true, false] {
            gate.close();
            gate.let_through(all * eighth / 8);
            let mut cut = counter.command(&pull);
            let cut = cut.stdout(Stdio::null()).stderr(Stdio::null());
            let mut cut = cut.spawn().unwrap();
            gate.wait_until_held();
            // It goes on from there by itself ...
            gate.cut();
            gate.let_through(all / 16);
            gate.wait_until_held();
            // ... and is killed somewhere else.
            cut.kill().unwrap();
            cut.wait().unwrap();
            gate.cut();
            if gc {
                counter.ok(&["gc"]);
                left::nothing(counter, &format!("a pull was killed in eighth {eighth}"));
            }
            gate.let_through(u64::MAX);
            counter.ok(&pull);
            let files = counter.files_of(name);
            assert_eq!(files, gated.files, "eighth {eighth}, gc: {gc}");
            counter.rid_of(name);
        }
    }
}

#[test]
fn root_the_first_command_of_a_host_may_be_killed_at_every_step() {
    if !crate::support::counter::runs_here() {
        return;
    }
    let steps = ["database: made under another name", "database: in place"];
    for step in steps {
        let cocoon = Cocoon::new();
        let killed = cocoon
            .command(&["image", "list"])
            .env("COCOON_FAILPOINT", step)
            .output();
        let signal = std::os::unix::process::ExitStatusExt::signal(&killed.unwrap().status);
        assert_eq!(signal, Some(9), "{step}");
        assert!(cocoon.run(&["gc"]).status.success(), "{step}");
        let staged = left::names(&cocoon.root.path().join("staging"));
        assert!(staged.is_empty(), "{staged:?} after {step}");
        assert!(cocoon.run(&["image", "list"]).status.success(), "{step}");
    }
}
