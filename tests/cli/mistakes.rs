//! Mistakes: each ends in a sentence that names the thing, a hint, the right exit code, and
//! nothing left behind.

use crate::support::{Cocoon, is_empty, stderr};

/// What was typed, the exit code, what the error names, and what the hint says.
type Row = (&'static [&'static str], i32, &'static str, &'static str);

fn check(cocoon: &Cocoon, rows: &[Row]) {
    for (args, code, sentence, hint) in rows {
        let output = cocoon.run(args);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(*code), "{args:?}: {text}");
        assert!(text.starts_with("error: "), "{args:?}: {text}");
        assert!(
            text.contains(sentence),
            "{args:?} does not say {sentence:?}: {text}"
        );
        assert!(
            text.contains(hint),
            "{args:?} does not hint {hint:?}: {text}"
        );
        assert!(
            output.stdout.is_empty(),
            "{args:?} wrote to standard output"
        );
        assert!(!text.contains("panicked"), "{args:?}: {text}");
    }
}

#[test]
fn wrong_words_are_usage_errors_that_name_the_word() {
    check(
        &Cocoon::new(),
        &[
            (
                &["vm", "run", "--memory", "lots", "tiny"],
                2,
                "\"lots\" is not a size",
                "--help",
            ),
            (
                &["vm", "run", "--memory", "512Q", "tiny"],
                2,
                "use a unit like K, M, G or T",
                "--help",
            ),
            (
                &["vm", "run", "--name", "a b", "tiny"],
                2,
                "\"a b\" is not a name",
                "--help",
            ),
            (
                &["vm", "run", "--engine", "qemu", "tiny"],
                2,
                "the engines are cloud-hypervisor and micro",
                "--help",
            ),
            (&["vm", "list", "-o", "yaml"], 2, "yaml", "table"),
            (&["vm", "strat", "x"], 2, "strat", "start"),
            (&["vm", "start"], 2, "<VM>", "Usage"),
            (&["vm", "exec", "web"], 2, "<COMMAND>", "Usage"),
            (
                &["vm", "cp", "here", "there"],
                2,
                "one of SRC and DST",
                "VM:PATH",
            ),
            (
                &["vm", "cp", "a:/here", "b:/there"],
                2,
                "one of SRC and DST",
                "VM:PATH",
            ),
            (
                &["doctor", "--subnet", "10.0.0.0/31"],
                2,
                "the prefix must be /1 to /30",
                "--help",
            ),
            (
                &["doctor", "--subnet", "guests"],
                2,
                "such as 10.88.0.0/16",
                "--help",
            ),
            (&["doctor", "--manifest", "m"], 2, "--upgrade", "Usage"),
            (
                &["--dns", "dns.google", "vm", "list"],
                2,
                "\"dns.google\" is not an IPv4 address",
                "",
            ),
            (
                &["image", "pull", "Ubuntu"],
                2,
                "Ubuntu is not an image reference",
                "[registry/]repository",
            ),
        ],
    );
}

#[test]
fn a_config_file_is_checked_to_the_line() {
    let cocoon = Cocoon::new();
    let unknown = cocoon.file("unknown.toml", "pool_size = 2\nroot-dir = '/x'\n");
    let output = cocoon.run(&["--config", &unknown, "vm", "list"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("line 2") && stderr(&output).contains("root-dir"),
        "{}",
        stderr(&output)
    );
    let output = cocoon.run(&["--config", "/nowhere.toml", "vm", "list"]);
    assert!(
        stderr(&output).contains("/nowhere.toml"),
        "{}",
        stderr(&output)
    );
    let output = cocoon
        .command(&["vm", "list"])
        .env("COCOON_LOG_LEVEL", "loud")
        .output()
        .unwrap();
    assert!(
        stderr(&output).contains("COCOON_LOG_LEVEL=loud"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn what_is_not_there_is_named() {
    check(
        &Cocoon::new(),
        &[
            (
                &["vm", "inspect", "web"],
                1,
                "no VM is called \"web\"",
                "hint: cocoon vm list",
            ),
            (
                &["vm", "console", "web"],
                1,
                "no VM is called \"web\"",
                "hint: cocoon vm list",
            ),
            (
                &["vm", "exec", "web", "--", "true"],
                125,
                "no VM is called \"web\"",
                "hint: cocoon vm list",
            ),
            (
                &["vm", "cp", "web:/etc/hosts", "hosts"],
                1,
                "no VM is called \"web\"",
                "hint: cocoon vm list",
            ),
            (
                &["vm", "logs", "web"],
                1,
                "no VM is called \"web\"",
                "hint: cocoon vm list",
            ),
            (
                &["snapshot", "save", "web"],
                1,
                "no VM is called \"web\"",
                "hint: cocoon vm list",
            ),
            (
                &["snapshot", "list", "--vm", "web"],
                1,
                "no VM is called \"web\"",
                "hint: cocoon vm list",
            ),
            (
                &["snapshot", "inspect", "nightly"],
                1,
                "no snapshot is called \"nightly\"",
                "hint: cocoon snapshot list",
            ),
            (
                &["snapshot", "rm", "nightly"],
                1,
                "no snapshot is called \"nightly\"",
                "hint: cocoon snapshot list",
            ),
            (
                &["image", "inspect", "tiny"],
                1,
                "there is no image \"tiny\"",
                "cocoon image pull",
            ),
            (
                &["image", "rm", "tiny"],
                1,
                "there is no image \"tiny\"",
                "cocoon image list",
            ),
        ],
    );
}

#[test]
fn a_registry_that_is_down_is_named_and_nothing_is_left() {
    let cocoon = Cocoon::new();
    // Port 1 of the loopback is reserved (tcpmux) and nobody listens.
    let output = cocoon.run(&["image", "pull", "127.0.0.1:1/tiny"]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("127.0.0.1:1"), "{text}");
    assert!(
        is_empty(&cocoon.root.path().join("staging")),
        "a failed pull left something staged"
    );
    assert!(is_empty(&cocoon.root.path().join("blobs")));
}

#[test]
fn what_is_configured_of_a_registry_and_cannot_be_used_is_named() {
    let cocoon = Cocoon::new();
    let folder = cocoon.root.path().join("certs.d/127.0.0.1_1_");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("hosts.toml"), "proxy = \"http://proxy\"\n").unwrap();
    let output = cocoon
        .command(&["image", "pull", "127.0.0.1:1/tiny"])
        .env(
            "COCOON_REGISTRY_CONFIG_DIR",
            cocoon.root.path().join("certs.d"),
        )
        .output()
        .unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("127.0.0.1_1_/hosts.toml") && text.contains("`proxy`"),
        "{text}"
    );
    assert!(text.contains("hint: README.md"), "{text}");
}

#[test]
fn a_root_folder_that_cannot_be_used_is_named() {
    let cocoon = Cocoon::new();
    let file = cocoon.file("file", "");
    let output = cocoon.run(&["--root-dir", &file, "vm", "list"]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&file), "{text}");
    let deep = format!("/{}", "deep/".repeat(30));
    let output = cocoon.run(&["--root-dir", &deep, "vm", "list"]);
    assert!(stderr(&output).contains("too long"), "{}", stderr(&output));
}

#[test]
fn an_engine_that_is_not_linked_is_refused_before_anything_is_made() {
    let cocoon = Cocoon::new();
    let create = ["vm", "create", "--engine", "cloud-hypervisor", "tiny"];
    let output = cocoon.command(&create).output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    let expected = [
        "does not link the cloud-hypervisor engine",
        "this needs root",
    ];
    assert!(
        expected.iter().any(|sentence| text.contains(sentence)),
        "{text}"
    );
    assert_eq!(
        crate::support::stdout(&cocoon.run(&["vm", "list", "-q"])),
        ""
    );
}

#[test]
fn root_a_kvm_that_cannot_run_kernels_is_refused_before_anything_is_made() {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let virtualizes = cpuinfo
        .split_ascii_whitespace()
        .any(|flag| matches!(flag, "svm" | "vmx"));
    if !rustix::process::geteuid().is_root() || virtualizes {
        println!("SKIPPED: it needs root, and a host whose processor shows neither svm nor vmx");
        return;
    }
    let cocoon = Cocoon::new();
    let output = cocoon.run(&["vm", "run", "tiny"]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let known = ["neither svm nor vmx", "this host has no /dev/kvm"];
    assert!(
        known.iter().any(|sentence| text.contains(sentence)),
        "{text}"
    );
    assert!(text.contains("hint: "), "{text}");
    assert!(is_empty(&cocoon.root.path().join("run/vms")));
}
