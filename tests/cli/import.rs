//! `image import`, from the command line to a VM that boots what was imported.

use std::io::Write;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::support::counter::{Counter, SHAPE, root_tar};
use crate::support::{Cocoon, is_empty, stderr, stdout};

/// The image that is imported.
fn imported() -> Vec<u8> {
    root_tar("imported\n")
}

impl Cocoon {
    /// Starts an import of what is written into the child's standard input.
    fn importing(&self) -> Child {
        let mut command = self.command(&["image", "import", "vm:1", "-"]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Nothing of an import is left but locks.
    fn assert_nothing_left(&self) {
        for folder in ["blobs", "boot"] {
            assert!(is_empty(&self.root.path().join(folder)), "{folder}");
        }
        let staged = std::fs::read_dir(self.root.path().join("staging")).unwrap();
        let folders = staged.filter(|entry| entry.as_ref().unwrap().path().is_dir());
        assert_eq!(folders.count(), 0);
        assert_eq!(stdout(&self.run(&["image", "list", "-q"])), "");
    }
}

#[test]
fn an_imported_image_is_listed_inspected_and_removed_as_any_other() {
    let cocoon = Cocoon::new();
    let path = cocoon.root.path().join("vm.tar");
    std::fs::write(&path, imported()).unwrap();
    let path = path.to_str().unwrap();
    let image = cocoon.json(&["image", "import", "vm:1", path, "-o", "json"]);
    assert_eq!(image["name"], "docker.io/library/vm:1");
    assert_eq!(image["layers"].as_array().unwrap().len(), 1);
    assert_eq!(image["layers"][0]["digest"], image["kernel_layer"]);
    assert_eq!(cocoon.json(&["image", "inspect", "vm:1"]), image);

    let mut child = cocoon.importing();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&imported()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let digest = image["id"].as_str().unwrap();
    assert_eq!(
        stdout(&output).trim_end(),
        digest,
        "the same tar, the same image"
    );
    let told = stderr(&output);
    assert!(told.contains("importing docker.io/library/vm:1"), "{told}");
    assert!(told.contains("already here"), "{told}");

    let listed = cocoon.json(&["image", "list", "-o", "json"]);
    assert_eq!(listed.as_array().unwrap().len(), 1);
    let removed = cocoon.json(&["image", "rm", "vm:1", "-o", "json"]);
    assert_eq!(removed["removed"][0]["name"], "docker.io/library/vm:1");
    assert!(cocoon.run(&["gc"]).status.success());
    cocoon.assert_nothing_left();
}

#[test]
fn what_cannot_be_imported_is_told_with_a_hint() {
    let cocoon = Cocoon::new();
    let qcow2 = cocoon.file("disk.img", "QFI\u{fb}");
    std::fs::write(&qcow2, b"QFI\xfb\0\0\0\x03").unwrap();
    let text = cocoon.file("notes.tar", "hello");
    let xz = cocoon.file("vm.tar.xz", "");
    std::fs::write(&xz, b"\xfd7zXZ\0\0\0").unwrap();
    let sum = format!("vm@sha256:{}", "0".repeat(64));
    for (name, from, code, sentence, hint) in [
        (
            "vm",
            &qcow2,
            1,
            "its header lies behind the end of the file",
            "it is damaged or not whole",
        ),
        ("vm", &text, 1, "it is no tar", ""),
        ("vm", &xz, 1, "cannot unpack", "it is damaged or not whole"),
        ("vm", &"/nowhere".to_owned(), 1, "cannot read /nowhere", ""),
        (
            "Vm",
            &text,
            2,
            "Vm is not an image reference",
            "[registry/]repository",
        ),
        (&sum, &text, 1, "must be without a digest", ""),
    ] {
        let output = cocoon.run(&["image", "import", name, from]);
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(told.contains(sentence) && told.contains(hint), "{told}");
        assert_eq!(stdout(&output), "");
    }
    cocoon.assert_nothing_left();
}

/// Feeds an import all but the end, which it then waits for.
fn half_fed(cocoon: &Cocoon) -> Child {
    let mut child = cocoon.importing();
    let tar = imported();
    let (most, _) = tar.split_at(tar.len() - 1024);
    child.stdin.as_mut().unwrap().write_all(most).unwrap();
    child
}

#[test]
fn ctrl_c_ends_an_import_that_waits_for_its_input() {
    for signal in ["INT", "TERM"] {
        let cocoon = Cocoon::new();
        let mut child = half_fed(&cocoon);
        wait_until_staged(&cocoon);
        let stdin = child.stdin.take();
        let mut kill = Command::new("kill");
        kill.args(["-s", signal, &child.id().to_string()]);
        assert!(kill.status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        drop(stdin);
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(130), "{told}");
        assert!(
            told.contains("cancelled before docker.io/library/vm:1"),
            "{told}"
        );
        cocoon.assert_nothing_left();
    }
}

#[test]
fn what_a_killed_import_leaves_goes_with_gc() {
    let cocoon = Cocoon::new();
    let mut child = half_fed(&cocoon);
    wait_until_staged(&cocoon);
    let busy = cocoon.run(&["gc"]);
    assert!(
        stderr(&busy).contains("another cocoon command"),
        "{}",
        stderr(&busy)
    );
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(cocoon.run(&["gc"]).status.success());
    cocoon.assert_nothing_left();
}

/// Waits until the converter has begun. A folder gives no sign of its content.
fn wait_until_staged(cocoon: &Cocoon) {
    let staging = cocoon.root.path().join("staging");
    let begun = || {
        let entries = std::fs::read_dir(&staging).into_iter().flatten();
        let mut folders = entries.map(|entry| entry.unwrap().path());
        folders.any(|folder| folder.join("layer.erofs").exists())
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !begun() {
        assert!(
            std::time::Instant::now() < deadline,
            "the import does not begin"
        );
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn root_a_vm_boots_what_was_imported() {
    let Some(counter) = Counter::run() else {
        return;
    };
    let path = counter.cocoon.root.path().join("vm.tar");
    std::fs::write(&path, imported()).unwrap();
    let image = [
        "image",
        "import",
        "imported",
        path.to_str().unwrap(),
        "-o",
        "json",
    ];
    let image = counter.json(&image);
    let mut run = vec!["vm", "run", "--name", "other", "--nics", "0"];
    run.extend(SHAPE.iter().chain(&["imported"]));
    counter.ok(&run);
    counter.vm_goes_on("other");
    let removed = counter.json(&["image", "rm", "imported", "-o", "json"]);
    assert_eq!(removed["removed"][0]["kept_for"], json!(["other"]));
    counter.ok(&["gc"]);
    let blob = image["layers"][0]["digest"].as_str().unwrap();
    let blob = format!("blobs/{}.erofs", &blob["sha256:".len()..]);
    assert!(counter.cocoon.root.path().join(blob).exists());
}
