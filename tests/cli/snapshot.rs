//! Saving, pausing and resuming a guest of our own, which runs wherever KVM opens. What needs Linux in
//! the guest is in `tests/lab/tests/65-snapshot.sh`.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::counter::{Counter, IMAGE};
use crate::support::{stderr, stdout};

#[test]
fn root_a_running_guest_is_saved_and_goes_on() {
    let Some(counter) = Counter::run() else {
        return;
    };
    let save = ["snapshot", "save", "--name", "nightly", "counter"];
    let saved = counter.command(&save).output().unwrap();
    assert!(saved.status.success(), "{}", stderr(&saved));
    println!("{}", stderr(&saved));
    assert!(stderr(&saved).contains("the guest stood still for"));
    counter.goes_on();
    let id = stdout(&saved).trim_end().to_owned();
    let listed = counter.json(&["snapshot", "list", "-o", "json"]);
    assert_eq!(listed[0]["id"], json!(id));
    assert_eq!(listed[0]["vm_name"], "counter");
    assert_eq!(listed[0]["state"], "ready");
    let inspected = counter.json(&["snapshot", "inspect", "--full", &id[..6]]);
    assert_eq!(inspected["damage"], json!(null));
    assert_eq!(inspected["disks"][0]["file"], "disks/cow.raw");
    let taken = counter.refused(&save);
    assert!(taken.contains("the name nightly is taken"), "{taken}");
    assert_eq!(counter.state(), "running");
    counter.ok(&["vm", "rm", "--force", "counter"]);
    let left = counter.json(&["snapshot", "list", "--vm", "counter", "-o", "json"]);
    assert_eq!(left.as_array().unwrap().len(), 1, "it belongs to no VM");
    let removed = counter.json(&["image", "rm", "-o", "json", IMAGE]);
    assert_eq!(
        removed["removed"][0]["kept_for_snapshots"],
        json!(["nightly"])
    );
    assert_eq!(counter.ok(&["gc"]), "", "a snapshot keeps its layers");
    assert_eq!(counter.ok(&["snapshot", "rm", "nightly"]), "nightly");
    assert!(counter.ok(&["gc"]).contains("blob"));
}

#[test]
fn root_a_paused_guest_is_saved_and_stays_paused_until_it_is_resumed_or_stopped() {
    let Some(counter) = Counter::run() else {
        return;
    };
    for _ in 0..2 {
        counter.ok(&["vm", "pause", "counter"]);
        assert_eq!(counter.state(), "paused");
    }
    counter.stands_still();
    counter.ok(&["snapshot", "save", "counter"]);
    assert_eq!(counter.state(), "paused");
    counter.stands_still();
    let refused = counter.refused(&["vm", "start", "counter"]);
    assert!(refused.contains("cocoon vm resume counter"), "{refused}");
    for _ in 0..2 {
        counter.ok(&["vm", "resume", "counter"]);
        assert_eq!(counter.state(), "running");
    }
    counter.goes_on();
    counter.ok(&["vm", "pause", "counter"]);
    counter.ok(&["vm", "stop", "--force", "counter"]);
    assert_eq!(counter.state(), "stopped");
    for verb in [["vm", "pause"], ["vm", "resume"], ["snapshot", "save"]] {
        let refused = counter.refused(&[&verb[..], &["counter"]].concat());
        assert!(refused.contains("is not running"), "{refused}");
    }
}

#[test]
fn root_a_save_that_is_killed_leaves_a_running_guest_and_what_gc_removes() {
    let Some(counter) = Counter::run() else {
        return;
    };
    let mut save = counter
        .command(&["snapshot", "save", "--name", "killed", "counter"])
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let entries = || std::fs::read_dir(counter.snapshots()).unwrap().count();
    while entries() == 0 {
        assert!(Instant::now() < deadline, "the save does not begin");
    }
    save.kill().unwrap();
    save.wait().unwrap();
    counter.goes_on();
    assert_eq!(counter.state(), "running");
    // The VM process lets go of the folder as soon as it notices.
    while entries() > 0 {
        assert!(Instant::now() < deadline, "gc leaves something");
        counter.ok(&["gc"]);
    }
    assert_eq!(counter.ok(&["snapshot", "list", "-q"]), "");
    counter.ok(&["snapshot", "save", "--name", "killed", "counter"]);
    counter.goes_on();
}
