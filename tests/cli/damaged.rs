//! What is no whole snapshot of this VM, on this processor, by this engine, is not restored, and the VM
//! has not noticed that somebody tried.

use std::os::unix::fs::FileExt;
use std::path::Path;

use cocoon::snapshot::Manifest;
use cocoon::store::layout::SnapshotFolder;
use cocoon::units::EngineName;

use crate::support::counter::Counter;

/// A running guest and a snapshot of it.
struct Saved {
    counter: Counter,
    folder: SnapshotFolder,
    pid: serde_json::Value,
}

impl Saved {
    fn make() -> Option<Self> {
        let counter = Counter::run()?;
        let id = counter.ok(&["snapshot", "save", "--name", "nightly", "counter"]);
        let folder = SnapshotFolder::new(&counter.snapshots().join(id));
        let pid = counter.json(&["vm", "inspect", "counter"])["pid"].clone();
        Some(Self {
            counter,
            folder,
            pid,
        })
    }

    fn manifest(&self) -> Manifest {
        Manifest::read(&self.folder).unwrap()
    }

    /// Restoring is refused with `word`, and the guest counts on in the same process.
    fn is_refused(&self, case: &str, word: &str) {
        let said = self
            .counter
            .refused(&["vm", "restore", "counter", "nightly"]);
        assert!(said.contains(word), "{case}: no {word:?} in {said}");
        let vm = self.counter.json(&["vm", "inspect", "counter"]);
        assert_eq!(vm["state"], "running", "{case}");
        assert_eq!(vm["pid"], self.pid, "{case}");
        self.counter.goes_on();
    }

    /// So it is as long as a file has other bytes.
    fn with(&self, file: &Path, bytes: &[u8], case: &str, word: &str) {
        let whole = std::fs::read(file).unwrap();
        std::fs::write(file, bytes).unwrap();
        self.is_refused(&format!("{case} of {}", file.display()), word);
        std::fs::write(file, whole).unwrap();
    }

    /// So it is as long as the manifest says something else, and says it well.
    fn claiming(&self, case: &str, word: &str, change: impl FnOnce(&mut Manifest)) {
        let whole = std::fs::read(self.folder.manifest()).unwrap();
        let mut manifest = self.manifest();
        change(&mut manifest);
        manifest.write(&self.folder).unwrap();
        self.is_refused(case, word);
        std::fs::write(self.folder.manifest(), whole).unwrap();
    }
}

#[test]
fn root_a_damaged_snapshot_is_refused_and_the_running_vm_has_not_noticed() {
    let Some(saved) = Saved::make() else {
        return;
    };
    let files: Vec<_> = saved.manifest().files;
    assert!(files.len() >= 3, "state, memory and disk: {files:?}");
    for file in files {
        let path = file.place(&saved.folder);
        let opened = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let mut last = [0];
        opened.read_exact_at(&mut last, file.size - 1).unwrap();
        opened.set_len(file.size - 1).unwrap();
        saved.is_refused(&format!("{} without its end", file.path), "bytes long");
        opened.write_all_at(&last, file.size - 1).unwrap();
        let (mut byte, place) = ([0], file.size / 2);
        opened.read_exact_at(&mut byte, place).unwrap();
        opened.write_all_at(&[byte[0] ^ 0x10], place).unwrap();
        saved.is_refused(&format!("a bit of {} flipped", file.path), "digest");
        opened.write_all_at(&byte, place).unwrap();
    }
    let manifest = saved.folder.manifest();
    let text = std::fs::read(&manifest).unwrap();
    saved.with(&manifest, &text[..text.len() / 2], "half", "no manifest");
    saved.with(&manifest, b"{}", "nothing", "no manifest");
    let other = String::from_utf8(text)
        .unwrap()
        .replace("\"boot\":1", "\"boot\":2");
    saved.with(&manifest, other.as_bytes(), "a changed number", "digest");
    std::fs::rename(&manifest, manifest.with_extension("away")).unwrap();
    saved.is_refused("no manifest", "is missing");
    std::fs::rename(manifest.with_extension("away"), &manifest).unwrap();
    saved.counter.ok(&["vm", "restore", "counter", "nightly"]);
    saved.counter.goes_on();
}

#[test]
fn root_a_snapshot_of_another_engine_processor_or_vm_is_refused() {
    let Some(saved) = Saved::make() else {
        return;
    };
    let other = match saved.manifest().engine {
        EngineName::Micro => EngineName::CloudHypervisor,
        EngineName::CloudHypervisor => EngineName::Micro,
    };
    saved.claiming("another engine", &other.to_string(), |manifest| {
        manifest.engine = other;
    });
    saved.claiming("another version", "0.0.1", |manifest| {
        manifest.engine_version = "0.0.1".into();
    });
    saved.claiming("another processor", "flux-capacitor", |manifest| {
        manifest.cpu.features.insert("flux-capacitor".into());
    });
    saved.claiming("another VM", "no snapshot of VM counter", |manifest| {
        manifest.vm = "0123456789abcdef".parse().unwrap();
    });
    saved.claiming("a later version", "has version 9", |manifest| {
        manifest.version = 9;
    });
}
