//! Pulls that end early: cancelled, killed, or on a full disk; and helpers that are processes.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::fault_server::{Fault, FaultServer};
use super::tests::*;
use super::*;
use crate::image::cancel::Cancel;
use crate::image::fixture::SmallDisk;
use crate::image::progress::{PullEvent, Silent};
use crate::sys::fixture::write_script;

#[test]
fn a_cancelled_pull_ends_at_once_and_leaves_nothing() {
    let server = FaultServer::start();
    let boot = boot_layer();
    server.put_image("a", &[&boot, &data_layer(3)]);
    server.fail(&boot.digest().hex(), [Fault::Stall(5000)]);
    let host = Host::new();
    let options = options();
    let cancel = options.assembly.cancel.clone();
    let (error, took) = thread::scope(|scope| {
        let pulling =
            scope.spawn(|| pull(&reference(&server, "a"), &options, &host.store, &Silent));
        server.wait_for_request(&boot.digest().hex());
        let begun = Instant::now();
        cancel.cancel();
        (pulling.join().unwrap().unwrap_err(), begun.elapsed())
    });
    assert!(
        matches!(error, PullError::Assembly(AssemblyError::Cancelled { .. })),
        "{}",
        chain(&error)
    );
    assert!(took < Duration::from_secs(2), "{took:?}");
    host.assert_nothing_staged();
    assert!(host.store.find(&boot.digest()).unwrap().is_none());
    // The lock is free again.
    pull_from(&server, &host, "a").unwrap();
}

#[test]
fn a_pull_that_waits_for_another_can_be_cancelled() {
    let server = FaultServer::start();
    let boot = boot_layer();
    server.put_image("a", &[&boot]);
    let host = Host::new();
    let held = host.store.try_lock(&boot.digest()).unwrap().unwrap();
    struct CancelWhenWaiting(Cancel);
    impl Progress for CancelWhenWaiting {
        fn event(&self, event: PullEvent<'_>) {
            if matches!(event, PullEvent::LayerWaiting { .. }) {
                self.0.cancel();
            }
        }
    }
    let options = options();
    let progress = CancelWhenWaiting(options.assembly.cancel.clone());
    let error = pull(&reference(&server, "a"), &options, &host.store, &progress).unwrap_err();
    assert!(
        matches!(error, PullError::Assembly(AssemblyError::Cancelled { .. })),
        "{}",
        chain(&error)
    );
    drop(held);
    pull_from(&server, &host, "a").unwrap();
}

#[test]
fn root_a_full_disk_is_told_with_the_file_that_did_not_fit() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let sub = |name| disk.path().join(name);
    let store = BlobStore::open(sub("blobs"), sub("boot"), sub("staging")).unwrap();
    let server = FaultServer::start();
    server.put_image("a", &[&boot_layer()]);
    let error = pull(&reference(&server, "a"), &options(), &store, &Silent).unwrap_err();
    let text = chain(&error);
    assert!(
        text.contains("No space left") && text.contains("staging/pull-"),
        "{text}"
    );
    assert_eq!(fs::read_dir(sub("blobs")).unwrap().count(), 0);
    assert!(store.sweep_staging(true).unwrap().is_empty());
}

/// Where a child process finds what to pull: reference, root folder and Docker configuration.
const CHILD: &str = "COCOON_TEST_CHILD_PULLS";

/// This test binary again, as a process that pulls.
fn child(reference: &Reference, host: &Host, docker_config: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let root = host.dir.path();
    let order = json!([reference, root, docker_config]).to_string();
    command
        .args([
            "--exact",
            "--ignored",
            "--nocapture",
            "image::pull::tests_of_processes::child_process_pulls",
        ])
        .env(CHILD, order)
        .stdout(Stdio::null())
        // What it says is for who wants to know why the test failed.
        .stderr(Stdio::inherit());
    command
}

#[test]
#[ignore = "the body of a child process of other tests"]
fn child_process_pulls() {
    let Ok(order) = std::env::var(CHILD) else {
        println!("SKIPPED: no other test has started this one");
        return;
    };
    let (reference, root, config): (Reference, PathBuf, PathBuf) =
        serde_json::from_str(&order).unwrap();
    let sub = |name| root.join(name);
    let store = BlobStore::open(sub("blobs"), sub("boot"), sub("staging")).unwrap();
    let options = PullOptions {
        docker_config: Some(config),
        ..options()
    };
    pull(&reference, &options, &store, &Silent).unwrap();
}

#[test]
fn the_layer_of_a_killed_process_is_taken_over_and_its_work_files_swept() {
    struct KillWhenWaiting(Mutex<Child>);
    impl Progress for KillWhenWaiting {
        fn event(&self, event: PullEvent<'_>) {
            if matches!(event, PullEvent::LayerWaiting { .. }) {
                self.0.lock().unwrap().kill().unwrap();
            }
        }
    }
    let server = FaultServer::start();
    let boot = boot_layer();
    server.put_image("a", &[&boot]);
    server.fail(&boot.digest().hex(), [Fault::Stall(5000)]);
    let host = Host::new();
    let name = reference(&server, "a");
    let process = child(&name, &host, Path::new("/nonexistent"))
        .spawn()
        .unwrap();
    let killer = KillWhenWaiting(Mutex::new(process));
    server.wait_for_request(&boot.digest().hex());
    let alive = host.store.sweep_staging(false).unwrap();
    assert!(
        alive.is_empty(),
        "the work files of a living process were swept"
    );
    let image = pull(&name, &options(), &host.store, &killer).unwrap();
    assert!(!image.was_up_to_date());
    assert!(!killer.0.lock().unwrap().wait().unwrap().success());
    assert_eq!(host.store.sweep_staging(false).unwrap().len(), 1);
    host.assert_nothing_staged();
}

#[test]
fn a_credential_helper_opens_the_registry() {
    let server = FaultServer::start();
    server.put_image("a", &[&boot_layer()]);
    server.require_token("secret", Some("Basic dTpwOnc="));
    let host = Host::new();
    let helper = host.dir.path().join("docker-credential-cocoon-test");
    // As every helper it reads for whom it is asked; who ends before that breaks the pipe.
    let answer = "#!/bin/sh\nread -r server; [ \"$1\" = get ] && echo '{\"Username\":\"u\",\"Secret\":\"p:w\"}'\n";
    write_script(&helper, answer);
    let config = host.dir.path().join("config.json");
    fs::write(&config, r#"{"credsStore": "cocoon-test"}"#).unwrap();
    let path = format!("{}:/usr/bin:/bin", host.dir.path().display());
    let name = reference(&server, "a");
    let done = child(&name, &host, &config)
        .env("PATH", path)
        .status()
        .unwrap();
    assert!(done.success());
}
