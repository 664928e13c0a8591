//! What there is on the host that no record explains.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cocoon::image::records as images;
use cocoon::snapshot::records as snapshots;
use cocoon::store::{Database, DatabaseError};
use cocoon::vm::records as vms;

use super::counter::Counter;

/// Everything that a VM's folder may hold while no command is at work on it. Cloud Hypervisor locks its socket.
const OF_A_VM: [&str; 10] = [
    "alive.lock",
    "api.sock",
    "api.sock.lock",
    "boot",
    "cidata.img",
    "console.sock",
    "control.sock",
    "cow.raw",
    "spec.json",
    "vsock.sock",
];

/// Asserts that there is nothing which the records do not explain: no folder, lock, file or process, and
/// nothing that `gc` would remove. `after` says after what.
pub(crate) fn nothing(counter: &Counter, after: &str) {
    let dry = counter.json(&["gc", "--dry-run", "-o", "json"]);
    assert_eq!(dry["removed"], serde_json::json!([]), "gc, after {after}");
    let root = counter.cocoon.root.path();
    let vms = ids(counter, "vm");
    let snapshots = ids(counter, "snapshot");
    let locks = |kind, ids: &BTreeSet<String>| -> BTreeSet<String> {
        ids.iter().map(|id| format!("{kind}-{id}.lock")).collect()
    };
    let mut all_locks: BTreeSet<_> = ["database.lock", "references.lock"]
        .map(str::to_owned)
        .into();
    all_locks.extend(locks("vm", &vms));
    all_locks.extend(locks("snapshot", &snapshots));
    for (folder, known) in [
        ("run/vms", &vms),
        ("log/vms", &vms),
        ("snapshots", &snapshots),
        ("locks", &all_locks),
        ("staging", &BTreeSet::new()),
    ] {
        assert_eq!(&names(&root.join(folder)), known, "{folder}, after {after}");
    }
    layers(root, after);
    let of_a_vm = OF_A_VM.map(str::to_owned).into();
    for vm in &vms {
        let files = names(&root.join("run/vms").join(vm));
        let strange: Vec<_> = files.difference(&of_a_vm).collect();
        assert!(strange.is_empty(), "{strange:?} of {vm}, after {after}");
    }
    assert_eq!(
        processes(root),
        alive(counter),
        "VM processes, after {after}"
    );
}

/// Asserts that each layer or disk which an image, a VM or a snapshot needs is there, and no other one.
fn layers(root: &Path, after: &str) {
    let mut db = Database::open(root).unwrap();
    let needed = db.read::<_, DatabaseError>(|tx| {
        let needed = images::needed_blobs(tx)?.into_iter();
        Ok(needed
            .chain(vms::pinned_blobs(tx)?)
            .chain(snapshots::pinned_blobs(tx)?)
            .map(|layer| layer.hex())
            .collect::<BTreeSet<_>>())
    });
    let needed = needed.unwrap();
    let kinds = [".erofs", ".qcow2"];
    let hex = |name: String| {
        let hex = kinds.iter().find_map(|kind| name.strip_suffix(kind));
        hex.unwrap_or(&name).to_owned()
    };
    let blobs: BTreeSet<_> = names(&root.join("blobs")).into_iter().map(hex).collect();
    assert_eq!(blobs, needed, "blobs, after {after}");
    let boot = names(&root.join("boot"));
    let strange: Vec<_> = boot.difference(&needed).collect();
    assert!(strange.is_empty(), "boot files {strange:?}, after {after}");
}

fn ids(counter: &Counter, kind: &str) -> BTreeSet<String> {
    let listed = counter.ok(&[kind, "list", "-q"]);
    listed.lines().map(str::to_owned).collect()
}

fn alive(counter: &Counter) -> BTreeSet<String> {
    let vms = counter.json(&["vm", "list", "-o", "json"]);
    let alive = vms.as_array().unwrap().iter().filter(|vm| {
        let state = vm["state"].as_str().unwrap();
        ["running", "paused"].contains(&state)
    });
    alive
        .map(|vm| vm["id"].as_str().unwrap().to_owned())
        .collect()
}

pub(crate) fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// The VMs below `root` that have a process, by what it was started with. A process may have children of the
/// same words: Cloud Hypervisor's looks after the size of a terminal.
fn processes(root: &Path) -> BTreeSet<String> {
    let vms = root.join("run/vms");
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let process = entry.path();
        if let Some(vm) = vm_of(&process, &vms)
            && parent_of(&process)
                .and_then(|parent| vm_of(&parent, &vms))
                .as_ref()
                != Some(&vm)
        {
            assert!(found.insert(vm.clone()), "two processes of VM {vm}");
        }
    }
    found
}

/// The VM below `vms` of which a process is.
fn vm_of(process: &Path, vms: &Path) -> Option<String> {
    // Empty of a process that has ended, and of one that is none's.
    let line = fs::read_to_string(process.join("cmdline")).unwrap_or_default();
    let words: Vec<_> = line.split('\0').collect();
    let [_, "__vmm", spec, ..] = words[..] else {
        return None;
    };
    let spec = Path::new(spec).strip_prefix(vms).ok()?;
    Some(spec.parent()?.to_str()?.to_owned())
}

fn parent_of(process: &Path) -> Option<PathBuf> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Some(Path::new("/proc").join(line.trim()))
}
