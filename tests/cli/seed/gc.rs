//! `gc`, and what "Garbage Collection" says of it.

use std::net::TcpListener;
use std::process::Stdio;

use crate::support::Cocoon;
use crate::support::counter::{Counter, IMAGE, SHAPE, install, runs_here};
use crate::support::{is_empty, stderr, stdout};

/// Whether the layer of the counting image, and the boot files in it, are there: both or none.
fn has_blobs(cocoon: &Cocoon) -> bool {
    let has = |folder: &str| !is_empty(&cocoon.root.path().join(folder));
    assert_eq!(has("blobs"), has("boot"));
    has("blobs")
}

#[test]
fn root_gc_removes_unreferenced_blobs_and_vm_dirs() {
    let Some(counter) = Counter::idle(Vec::new()) else {
        return;
    };
    let root = counter.cocoon.root.path();
    let [vm, log] = ["run", "log"].map(|folder| root.join(folder).join("vms/0123456789abcdef"));
    for folder in [&vm, &log] {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("cow.raw"), "of nobody").unwrap();
    }
    counter.ok(&["gc"]);
    assert!(!vm.exists() && !log.exists());
    assert!(has_blobs(&counter.cocoon), "the image is there");
    counter.ok(&["image", "rm", IMAGE]);
    assert!(has_blobs(&counter.cocoon), "they go with gc");
    counter.ok(&["gc"]);
    assert!(!has_blobs(&counter.cocoon));
}

#[test]
fn root_gc_is_skipped_whole_while_a_module_is_busy() {
    if !runs_here() {
        return;
    }
    let cocoon = Cocoon::new();
    install(&cocoon);
    cocoon.ok(&["image", "rm", IMAGE]);
    // A registry that never answers.
    let registry = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("{}/image:1", registry.local_addr().unwrap());
    let mut pull = cocoon.command(&["image", "pull", &name]);
    pull.stdout(Stdio::null()).stderr(Stdio::null());
    let mut pull = pull.spawn().unwrap();
    let asked = registry.accept().unwrap();
    let gc = cocoon.run(&["gc"]);
    assert_eq!(gc.status.code(), Some(1));
    assert_eq!(stdout(&gc), "");
    let told = stderr(&gc);
    assert!(told.contains("another cocoon command"), "{told}");
    assert!(told.contains("hint: try again when it is done"), "{told}");
    assert!(has_blobs(&cocoon));
    pull.kill().unwrap();
    pull.wait().unwrap();
    drop(asked);
    cocoon.ok(&["gc"]);
    assert!(!has_blobs(&cocoon));
}

#[test]
fn root_gc_never_removes_the_blobs_of_running_vms_and_of_snapshots() {
    let Some(counter) = Counter::run() else {
        return;
    };
    counter.ok(&["image", "rm", IMAGE]);
    counter.ok(&["gc"]);
    assert!(has_blobs(&counter.cocoon), "of a running VM");
    counter.goes_on();
    counter.ok(&["snapshot", "save", "--name", "moment", "counter"]);
    counter.ok(&["vm", "rm", "--force", "counter"]);
    counter.ok(&["gc"]);
    assert!(has_blobs(&counter.cocoon), "of a snapshot");
    counter.ok(&["vm", "clone", "--name", "counter", "moment"]);
    counter.goes_on();
    counter.ok(&["vm", "rm", "--force", "counter"]);
    counter.ok(&["snapshot", "rm", "moment"]);
    counter.ok(&["gc"]);
    assert!(!has_blobs(&counter.cocoon), "of nobody");
    let run = [&["vm", "run", "--nics", "0"], &SHAPE[..], &["counter"]].concat();
    counter.refused(&run);
}
