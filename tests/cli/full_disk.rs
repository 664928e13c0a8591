//! A disk with a little more room each time, until a verb has all it needs: so it is full at each write of
//! it once. Whatever does not fit, the verb says so, nothing that was there before is lost, and after one `gc`,
//! which needs no room, as much is used as before.

#![expect(clippy::print_stdout, reason = "it says how often the disk was full")]

use std::time::{Duration, Instant};

use crate::support::counter::{Counter, SHAPE, runs_here};
use crate::support::disk::{Limit, PAGE, SmallDisk};
use crate::support::image::{Files, Registry, Workshop, data_tar, root_tar};
use crate::support::{Cocoon, left, stderr};

/// What the system and SQLite say of a full disk.
const FULL: [&str; 2] = ["No space left on device", "database or disk is full"];

/// An image and a VM, which stay, on a disk that is small at times.
struct Host {
    counter: Counter,
    files: Files,
    workshop: Workshop,
    /// The last one, as others use it.
    disk: SmallDisk,
}

/// A verb that makes something.
struct Verb<'a> {
    args: &'a [&'a str],
    /// Takes back what it has made of it, if anything.
    undo: &'a dyn Fn(),
}

fn layers() -> Vec<Vec<u8>> {
    vec![root_tar(), data_tar("small", 10_000)]
}

impl Host {
    /// The root folder is on the disk, or nothing but the run folder.
    fn new(is_root: bool) -> Option<Self> {
        if !runs_here() {
            return None;
        }
        let disk = SmallDisk::mount()?;
        let counter = if is_root {
            Counter::run_in(Cocoon::within(disk.path()), 0, Vec::new())
        } else {
            let run = ("COCOON_RUN_DIR", disk.path().join("run"));
            Counter::run_in(Cocoon::new(), 0, vec![run])
        };
        counter.ok(&["vm", "stop", "--force", "counter"]);
        let workshop = Workshop::new();
        let archive = workshop.archive("here", &[root_tar(), data_tar("here", 1000)]);
        counter.ok(&["image", "import", "here", archive.to_str().unwrap()]);
        Some(Self {
            files: counter.files_of("here"),
            counter,
            workshop,
            disk,
        })
    }

    /// What is used of the disk, without the log of the database, which grows with each thing that is written down.
    fn used(&self) -> (u64, u64) {
        let (Limit::Bytes(bytes), Limit::Inodes(inodes)) = self.disk.used() else {
            unreachable!("in this order")
        };
        let log = self.counter.cocoon.root.path().join("cocoon.db-wal");
        let is_here = log.starts_with(self.disk.path());
        let log = std::fs::metadata(log).unwrap().len().next_multiple_of(PAGE);
        (bytes - if is_here { log } else { 0 }, inodes)
    }

    /// Waits until as much is used as before: a process that is ending holds its files, removed or not, for some
    /// moments longer than the lock by which others know that it lives. Nobody tells when it has let go of them.
    fn wait_for_used(&self, before: (u64, u64)) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.used() != before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs a verb with so much room; whether it was enough.
    fn succeeds(&self, verb: &Verb<'_>, room: Limit) -> bool {
        let what = format!("{:?} with room for {room:?}", verb.args);
        self.counter.ok(&["gc"]);
        let before = self.used();
        self.disk.limit(match (room, self.disk.used()) {
            (Limit::Bytes(room), (used, _)) => used.and(room),
            (Limit::Inodes(room), (_, used)) => used.and(room),
        });
        let output = self.counter.try_(verb.args);
        let told = stderr(&output);
        if !output.status.success() {
            assert_eq!(output.status.code(), Some(1), "{what}: {told}");
            assert!(
                FULL.iter().any(|full| told.contains(full)),
                "{what}: {told}"
            );
            assert!(told.contains("hint: the disk is full"), "{what}: {told}");
        }
        // The disk is as full as the verb has left it.
        assert_eq!(self.counter.files_of("here"), self.files, "{what}");
        assert_eq!(self.counter.state(), "stopped", "{what}");
        if output.status.success() {
            self.room_for_all();
        }
        (verb.undo)();
        self.counter.ok(&["gc"]);
        self.wait_for_used(before);
        assert_eq!(self.used(), before, "what is used after {what}: {told}");
        self.room_for_all();
        output.status.success()
    }

    fn room_for_all(&self) {
        self.disk.limit(Limit::Bytes(1 << 30));
        self.disk.limit(Limit::Inodes(1 << 20));
    }

    /// Runs a verb with more and more bytes of room, and then of inodes, until it succeeds.
    fn fill_at_every_write(&self, verb: &Verb<'_>) {
        let mut room = 0;
        while !self.succeeds(verb, Limit::Bytes(room)) {
            room += PAGE;
        }
        let mut inodes = 0;
        while !self.succeeds(verb, Limit::Inodes(inodes)) {
            inodes += 1;
        }
        println!(
            "{:?} succeeds with room for {room} bytes, and {inodes} inodes",
            verb.args
        );
        self.counter.ok(&["vm", "start", "counter"]);
        self.counter.goes_on();
        self.counter.ok(&["vm", "stop", "--force", "counter"]);
    }
}

#[test]
fn root_a_pull_says_that_the_disk_is_full_and_loses_nothing() {
    let (Some(registry), Some(host)) = (Registry::start(), Host::new(true)) else {
        return;
    };
    registry.push("vm", &layers());
    let name = registry.reference("vm");
    let undo = || drop(host.counter.try_(&["image", "rm", &name]));
    let args = &["image", "pull", &name][..];
    host.fill_at_every_write(&Verb { args, undo: &undo });
    left::nothing(&host.counter, "a pull on a full disk");
}

#[test]
fn root_an_import_of_an_image_says_that_the_disk_is_full_and_loses_nothing() {
    let Some(mut host) = Host::new(true) else {
        return;
    };
    // It is kept on the disk until it is known what it is.
    host.counter.stdin = Some(host.workshop.archive("vm", &layers()));
    let undo = || drop(host.counter.try_(&["image", "rm", "vm:1"]));
    let args = &["image", "import", "vm:1", "-"][..];
    host.fill_at_every_write(&Verb { args, undo: &undo });
    left::nothing(&host.counter, "an import on a full disk");
}

#[test]
fn root_a_creation_says_that_the_disk_is_full_and_loses_nothing() {
    let Some(host) = Host::new(true) else {
        return;
    };
    let undo = || drop(host.counter.try_(&["vm", "rm", "other"]));
    let args = [
        &["vm", "create", "--name", "other", "--nics", "0"],
        &SHAPE[..],
    ]
    .concat();
    let args = &[&args[..], &["here"]].concat()[..];
    host.fill_at_every_write(&Verb { args, undo: &undo });
    left::nothing(&host.counter, "a creation on a full disk");
}

#[test]
fn root_a_run_says_that_the_disk_of_the_run_folder_is_full_and_loses_nothing() {
    let Some(host) = Host::new(false) else {
        return;
    };
    let undo = || drop(host.counter.try_(&["vm", "rm", "--force", "other"]));
    let args = [&["vm", "run", "--name", "other", "--nics", "0"], &SHAPE[..]].concat();
    let args = &[&args[..], &["here"]].concat()[..];
    host.fill_at_every_write(&Verb { args, undo: &undo });
}
