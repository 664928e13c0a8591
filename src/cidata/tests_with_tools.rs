//! What others make of it: the tools that cloud-init finds a volume by, YAML, and crypt(3).

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::tests::*;
use super::*;

/// What the tool says, if it is there.
fn ask(command: &mut Command, input: &str) -> Option<Output> {
    let pipes = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = match pipes.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            println!("SKIPPED: {:?} is not installed", command.get_program());
            return None;
        }
        Err(error) => panic!("{command:?}: {error}"),
    };
    let mut stdin = child.stdin.take().unwrap();
    // A tool that wants no input may have closed it.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    Some(child.wait_with_output().unwrap())
}

/// What the tool prints, without the last line end; it must succeed.
fn told(command: &mut Command, input: &str) -> Option<String> {
    let output = ask(command, input)?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    let text = String::from_utf8(output.stdout).unwrap();
    Some(text.strip_suffix('\n').unwrap_or(&text).to_owned())
}

/// The files of a VM with all kinds of NICs, and its volume as a file.
fn volume() -> (TempDir, PathBuf, Vec<(&'static str, String)>) {
    let cidata = Cidata {
        instance_id: ID,
        hostname: &name("web-1"),
        is_copy: false,
        root_password: Some(&password()),
        dns: &servers(),
        nics: &all_kinds(),
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cidata.img");
    fs::write(&path, cidata.volume().unwrap()).unwrap();
    (dir, path, cidata.files().unwrap())
}

#[test]
fn fsck_finds_nothing_to_repair() {
    let (_dir, path, files) = volume();
    let Some(said) = told(Command::new("fsck.vfat").args(["-n", "-v"]).arg(&path), "") else {
        return;
    };
    assert!(said.contains("Checking for unused clusters."), "{said}");
    assert!(said.contains("2 FATs, 12 bit entries"), "{said}");
    // The label counts as a file.
    let last = said.lines().last().unwrap_or_default();
    assert!(
        last.contains(&format!(": {} files", files.len() + 1)),
        "{said}"
    );
}

#[test]
fn blkid_sees_the_label_by_which_cloud_init_looks_for_it() {
    let (_dir, path, _) = volume();
    let mut blkid = Command::new("blkid");
    let Some(said) = told(blkid.args(["-p", "-o", "export"]).arg(&path), "") else {
        return;
    };
    for line in [
        "LABEL_FATBOOT=CIDATA",
        "LABEL=CIDATA",
        "TYPE=vfat",
        "VERSION=FAT12",
        "USAGE=filesystem",
    ] {
        assert!(said.lines().any(|told| told == line), "no {line} in {said}");
    }
}

#[test]
fn mtools_read_each_file_back_as_it_was_written() {
    let (_dir, path, files) = volume();
    for (file, text) in &files {
        let mut mcopy = Command::new("mcopy");
        mcopy.arg("-i").arg(&path).args([&format!("::{file}"), "-"]);
        let Some(output) = ask(&mut mcopy, "") else {
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{file}: {said}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), *text, "{file}");
    }
}

/// `text` as YAML 1.1 has it, which is cloud-init's; none if nobody can tell.
fn yaml(text: &str) -> Option<Value> {
    let read = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))";
    let output = ask(Command::new("python3").args(["-c", read]), text)?;
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("No module named 'yaml'") {
        println!("SKIPPED: python3-yaml is not installed");
        return None;
    }
    assert!(output.status.success(), "{said}");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn every_file_means_the_same_in_yaml_as_in_json() {
    let (_dir, _, files) = volume();
    for (file, text) in &files {
        let json = text.strip_prefix("#cloud-config\n").unwrap_or(text);
        let json: Value = serde_json::from_str(json).unwrap();
        let Some(yaml) = yaml(text) else { return };
        assert_eq!(yaml, json, "{file}");
    }
}

#[test]
fn names_that_yaml_takes_for_something_else_stay_names() {
    for text in [
        "on",
        "no",
        "null",
        "0123",
        "1.5",
        "1e3",
        "0x10",
        "1_000",
        "2026-01-01",
    ] {
        let cidata = Cidata {
            // In YAML 1.1, unquoted, a number in octal.
            instance_id: "0000000000000123",
            hostname: &name(text),
            is_copy: false,
            root_password: None,
            dns: &[],
            nics: &[],
        };
        let Some(yaml) = yaml(&cidata.files().unwrap()[0].1) else {
            return;
        };
        assert_eq!(yaml["local-hostname"], text);
        assert_eq!(yaml["instance-id"], "0000000000000123");
    }
}

#[test]
fn openssl_makes_the_same_hash_of_a_password() {
    let longest = "p".repeat(MAX_PASSWORD);
    for password in [
        "x",
        "it's \"secret\": #1",
        "pässwörd",
        "$6$a$b",
        longest.as_str(),
    ] {
        for salt in [[0; SALT_BYTES], [0xff; SALT_BYTES], *b"twelve bytes"] {
            let hash = PasswordHash::new(password, salt).unwrap();
            // $6$rounds=5000$<salt>$<hash>
            let (settings, _) = hash.as_str().rsplit_once('$').unwrap();
            let salt = settings.strip_prefix("$6$").unwrap();
            let mut openssl = Command::new("openssl");
            openssl.args(["passwd", "-6", "-salt", salt, "-stdin"]);
            let Some(said) = told(&mut openssl, password) else {
                return;
            };
            assert_eq!(said, hash.as_str(), "{password}");
        }
    }
}

#[test]
fn crypt_of_this_system_takes_the_password_that_was_hashed_and_no_other() {
    let hash = password();
    let crypt = |password: &str| {
        let mut perl = Command::new("perl");
        perl.args([
            "-e",
            "print crypt($ARGV[0], $ARGV[1])",
            password,
            hash.as_str(),
        ]);
        told(&mut perl, "")
    };
    let Some(said) = crypt("it's \"secret\": #1") else {
        return;
    };
    assert_eq!(said, hash.as_str());
    assert_ne!(crypt("it's \"secret\": #2").unwrap(), hash.as_str());
}
