//! VMs of disk images: from a server or a file to guests that reset themselves, are saved and cloned. The guest
//! is the counter, installed on a real disk as a distribution installs a kernel.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::counter::Counter;
use crate::support::disk_image::{RUN, disk_image, served};
use crate::support::hear::Heard;
use crate::support::{stderr, stdout};

/// Ticks after which a guest resets itself: about a second.
const TICKS: u32 = 160;

/// Wait for what takes a guest a second.
const SOON: Duration = Duration::from_secs(60);

fn inspect(counter: &Counter, vm: &str) -> Value {
    counter.json(&["vm", "inspect", vm])
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How often the guest of an inspected VM has begun to count.
fn first_ticks(vm: &serde_json::Value) -> usize {
    let log = vm["console_log"].as_str().unwrap();
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.matches("T00000001\n").count()
}

#[test]
fn root_a_guest_that_resets_itself_boots_what_is_on_its_disk_now() {
    let Some(counter) = Counter::idle(Vec::new()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = disk_image(folder.path(), TICKS) else {
        return;
    };
    let path = disk.to_str().unwrap();
    let image = counter.json(&["image", "import", "disk", path, "-o", "json"]);
    assert_eq!(image["type"], "cloudimg");
    assert_eq!(image["virtual_size"], 32 << 20);
    let mut run = RUN.to_vec();
    run.extend(["--name", "disk", "disk"]);
    counter.ok(&run);
    let before = inspect(&counter, "disk");
    assert_eq!(before["first_booted"], false);
    assert_eq!(before["storage_configs"].as_array().unwrap().len(), 2);
    let installed = &before["boot_config"]["installed"];
    assert_eq!(installed["kernel"], "/boot/vmlinuz-1");
    assert!(
        installed["title"].as_str().unwrap().contains("Counter 1"),
        "{installed}"
    );
    let cow = before["storage_configs"][0]["path"].as_str().unwrap();
    assert_eq!(std::fs::metadata(cow).unwrap().len(), 64 << 20);

    let mut console = counter.command(&["vm", "console", "--no-history", "disk"]);
    console.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut console = console.spawn().unwrap();
    let mut heard = Heard::of(console.stdout.take().unwrap());
    for _ in 0..2 {
        heard.until("T00000001\n");
        heard.until("T00000009\n");
    }
    console.kill().unwrap();
    console.wait().unwrap();
    wait_until("three boots", || first_ticks(&before) >= 3);
    let after = inspect(&counter, "disk");
    assert_eq!(after["first_booted"], true);
    assert_eq!(after["storage_configs"].as_array().unwrap().len(), 1);
    assert_eq!(after["pid"], before["pid"], "it is the same process");
    assert_eq!(after["state"], "running");
    counter.ok(&["vm", "stop", "--force", "disk"]);
    assert_eq!(counter.state_of("disk"), "stopped");
    counter.ok(&["vm", "rm", "disk"]);
}

#[test]
fn root_a_clone_that_nobody_could_tell_who_it_is_learns_it_at_its_next_boot() {
    let Some(counter) = Counter::idle(Vec::new()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = disk_image(folder.path(), TICKS) else {
        return;
    };
    counter.ok(&["image", "import", "disk", disk.to_str().unwrap()]);
    let mut run = RUN.to_vec();
    run.extend(["--name", "source", "disk"]);
    counter.ok(&run);
    let has_booted = |vm| inspect(&counter, vm)["first_booted"] == true;
    wait_until("the source's first boot", || has_booted("source"));
    // That is recorded while it resets itself, and there is nothing to save in that moment.
    let source = inspect(&counter, "source");
    wait_until("the source's second boot", || first_ticks(&source) >= 2);
    counter.ok(&["snapshot", "save", "--name", "saved", "source"]);
    counter.ok(&["vm", "clone", "--name", "clone", "saved"]);
    // It resets itself as the source that it was; then it boots as itself; and that is complete with its next reset.
    wait_until("the clone's first boot", || has_booted("clone"));
    let clone = inspect(&counter, "clone");
    assert_eq!(clone["storage_configs"].as_array().unwrap().len(), 1);
    let log = clone["vmm_log"].as_str().unwrap();
    let boots = || -> Vec<bool> {
        let log = std::fs::read_to_string(log).unwrap();
        let boots = log.lines().filter(|line| line.contains("it boots anew"));
        boots.map(|line| line.contains("true")).collect()
    };
    // A boot is recorded before it is told.
    wait_until("two boots", || boots().len() >= 2);
    let said = std::fs::read_to_string(log).unwrap();
    assert_eq!(boots()[..2], [true, false], "{said}");
    // Who goes back to what was saved of it has booted: it was saved after that.
    counter.ok(&["vm", "restore", "source", "saved"]);
    assert!(has_booted("source"));
    for vm in ["source", "clone"] {
        counter.ok(&["vm", "rm", "--force", vm]);
    }
}

#[test]
fn root_image_pull_of_a_url_stays_below_its_vms_their_snapshots_and_their_clones() {
    let Some(counter) = Counter::idle(Vec::new()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = disk_image(folder.path(), u32::MAX) else {
        return;
    };
    let (server, log) = served(folder.path());
    let url = format!("http://{}/disk.qcow2", server.address);
    let pulled = counter.json(&["image", "pull", &url, "-o", "json"]);
    let digest = pulled[0]["id"].as_str().unwrap();
    let sum = String::from_utf8(
        Command::new("sha256sum")
            .arg(&disk)
            .output()
            .unwrap()
            .stdout,
    );
    assert!(sum.unwrap().starts_with(&digest["sha256:".len()..]));
    // It is here: its server is not asked, and what it said of it is not forgotten.
    counter.ok(&[
        "image",
        "pull",
        "--sha256",
        &digest["sha256:".len()..],
        &url,
    ]);
    // The server has no other one: it is not fetched again.
    counter.ok(&["image", "pull", &url]);
    let asked = std::fs::read_to_string(&log).unwrap();
    assert_eq!(asked.matches("\" 304 ").count(), 1, "{asked}");

    let mut run = RUN.to_vec();
    run.extend(["--name", "counter", &url]);
    counter.ok(&run);
    counter.goes_on();
    counter.ok(&["snapshot", "save", "--name", "saved", "counter"]);
    counter.ok(&["vm", "clone", "--name", "clone", "saved"]);
    counter.vm_goes_on("clone");
    let clone = inspect(&counter, "clone");
    assert_eq!(clone["image_digest"], json!(digest));
    assert_eq!(clone["first_booted"], false, "nor was the saved one");
    counter.ok(&["vm", "restore", "counter", "saved"]);
    counter.goes_on();

    let blob = format!("blobs/{}.qcow2", &digest["sha256:".len()..]);
    let blob = counter.cocoon.root.path().join(blob);
    let removed = counter.json(&["image", "rm", &url, "-o", "json"]);
    assert_eq!(
        removed["removed"][0]["kept_for"],
        json!(["clone", "counter"])
    );
    for user in [
        &["vm", "rm", "--force", "counter"][..],
        &["snapshot", "rm", "saved"],
        &["vm", "rm", "--force", "clone"],
    ] {
        counter.ok(&["gc"]);
        assert!(blob.exists(), "before {user:?}");
        counter.ok(user);
    }
    counter.ok(&["gc"]);
    assert!(!blob.exists(), "nobody needs it");
}

/// A file on the volume that cloud-init is to read.
fn told_to_cloud_init(volume: &Path, file: &str) -> String {
    let mut mtools = Command::new("mtype");
    let output = mtools.arg("-i").arg(volume).arg(format!("::{file}"));
    let output = output.output().unwrap();
    assert!(output.status.success(), "{file}: {}", stderr(&output));
    stdout(&output)
}

#[test]
fn root_global_flag_root_password_and_its_variable_reach_cloud_init_and_are_nowhere_in_plain_text()
{
    let Some(counter) = Counter::idle(Vec::new()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = disk_image(folder.path(), u32::MAX) else {
        return;
    };
    counter.ok(&["image", "import", "disk", disk.to_str().unwrap()]);
    let create = |flags: &[&str], name| {
        let vm = ["vm", "create", "--nics", "0", "--boot", "direct", "--name"];
        counter.ok(&[flags, &vm[..], &[name, "disk"]].concat());
        let folder = inspect(&counter, name)["run_dir"].clone();
        Path::new(folder.as_str().unwrap()).join("cidata.img")
    };
    let volume = create(&["--root-password", "mellon-7"], "moria");
    let meta = told_to_cloud_init(&volume, "meta-data");
    assert!(meta.contains("moria"), "{meta}");
    let user = told_to_cloud_init(&volume, "user-data");
    assert!(user.starts_with("#cloud-config\n"), "{user}");
    assert!(user.contains("$6$"), "{user}");
    let secret = b"mellon-7";
    let files = [volume, counter.cocoon.root.path().join("cocoon.db-wal")];
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        assert!(
            !bytes.windows(secret.len()).any(|part| part == secret),
            "{file:?}"
        );
    }
    let vm = ["vm", "create", "--nics", "0", "--name", "variable", "disk"];
    let mut command = counter.command(&vm);
    command.env("COCOON_DEFAULT_ROOT_PASSWORD", "mellon-8");
    assert!(command.output().unwrap().status.success());
    let folder = inspect(&counter, "variable")["run_dir"].clone();
    let volume = Path::new(folder.as_str().unwrap()).join("cidata.img");
    assert!(told_to_cloud_init(&volume, "user-data").contains("$6$"));
    let volume = create(&[], "shut");
    let user = told_to_cloud_init(&volume, "user-data");
    assert!(!user.contains("chpasswd"), "{user}");
    let vm = ["vm", "create", "--nics", "0", "disk"];
    let told = counter.refused(&[&["--root-password", "two\nlines"], &vm[..]].concat());
    assert!(told.contains("this root password cannot be used"), "{told}");
}

#[test]
fn root_a_disk_that_cannot_boot_is_refused_before_anything_is_made() {
    let Some(counter) = Counter::idle(Vec::new()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = disk_image(folder.path(), 1) else {
        return;
    };
    // A partition table with an empty partition.
    let raw = folder.path().join("disk.raw");
    let zeros = vec![0; 31 << 20];
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::File::options().write(true).open(&raw).unwrap(),
        &zeros,
        1 << 20,
    )
    .unwrap();
    counter.ok(&["image", "import", "empty", raw.to_str().unwrap()]);
    counter.ok(&["image", "import", "disk", disk.to_str().unwrap()]);
    let refused = |args: &[&str]| {
        let mut run = RUN[..10].to_vec();
        run.extend(args);
        counter.refused(&run)
    };
    let told = refused(&["--boot", "direct", "empty"]);
    assert!(told.contains("cannot be booted without firmware"), "{told}");
    assert!(told.contains("hint: boot it by firmware"), "{told}");
    let told = refused(&["--boot", "firmware", "disk"]);
    assert!(told.contains("there is no firmware at"), "{told}");
    let vms = counter.json(&["vm", "list", "-o", "json"]);
    assert_eq!(vms, json!([]));
    counter.ok(&["gc"]);
}
