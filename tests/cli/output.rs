//! What programs read: JSON, ids, exit codes.

use crate::support::{Cocoon, stderr, stdout};

#[test]
fn an_empty_list_is_an_empty_array_and_the_sentence_goes_to_people() {
    let cocoon = Cocoon::new();
    for noun in ["vm", "image", "snapshot"] {
        assert_eq!(stdout(&cocoon.run(&[noun, "list", "-o", "json"])), "[]\n");
        assert_eq!(stdout(&cocoon.run(&[noun, "ls", "-q"])), "");
        let table = cocoon.run(&[noun, "list"]);
        assert_eq!(stdout(&table), "");
        assert!(stderr(&table).starts_with("No "), "{}", stderr(&table));
    }
}

#[test]
fn version_needs_no_root_folder_and_lists_engines() {
    let cocoon = Cocoon::new();
    let output = cocoon
        .command(&["version", "-o", "json"])
        .env("COCOON_ROOT_DIR", "/proc/none")
        .output()
        .unwrap();
    let version: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert!(version["engines"].is_array());
}

#[test]
fn a_closed_pipe_ends_the_program_silently() {
    let cocoon = Cocoon::new();
    let mut child = cocoon
        .command(&["--help"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(stderr(&output).is_empty(), "{}", stderr(&output));
}

#[test]
fn every_command_has_help_and_the_tree_is_the_documented_one() {
    let cocoon = Cocoon::new();
    for path in [
        &["image", "pull"][..],
        &["image", "import"],
        &["image", "list"],
        &["image", "inspect"],
        &["image", "rm"],
        &["vm", "create"],
        &["vm", "run"],
        &["vm", "start"],
        &["vm", "stop"],
        &["vm", "list"],
        &["vm", "status"],
        &["vm", "inspect"],
        &["vm", "console"],
        &["vm", "logs"],
        &["vm", "rm"],
        &["vm", "pause"],
        &["vm", "resume"],
        &["vm", "debug"],
        &["snapshot", "save"],
        &["snapshot", "list"],
        &["snapshot", "inspect"],
        &["snapshot", "rm"],
        &["snapshot", "export"],
        &["snapshot", "import"],
        &["gc"],
        &["doctor"],
        &["completion"],
        &["version"],
    ] {
        let output = cocoon.run(&[path, &["--help"]].concat());
        assert!(output.status.success(), "{path:?}");
        assert!(stdout(&output).contains("Usage: cocoon"), "{path:?}");
    }
}

#[test]
fn two_commands_may_make_the_root_folder_at_once() {
    let cocoon = Cocoon::new();
    let children: Vec<_> = (0..8)
        .map(|_| {
            cocoon
                .command(&["vm", "list", "-o", "json"])
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
}
