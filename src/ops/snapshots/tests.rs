//! Snapshots of a host without VMs: imported, exported, left behind by killed commands, collected.

use super::*;
use crate::config::Settings;
use crate::ops::export::{self, Target};
use crate::ops::import::{self, Source};
use crate::ops::{create, gc, staging::Staging};
use crate::snapshot::manifest::tests::{config, snapshot, spec};
use crate::snapshot::records::Reservation;
use crate::store::layout::SnapshotFolder;
use crate::sys::interrupt::Interrupt;
use crate::units::SnapshotName;
use std::fs;
use std::path::Path;
use std::time::Duration;

struct Fixture {
    dir: tempfile::TempDir,
    host: Host,
    interrupt: Interrupt,
}

/// A host with the image of [`snapshot`]; nothing where the user may not.
fn fixture() -> Option<Fixture> {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: it needs root");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        root_dir: Some("root".into()),
        log_dir: Some("log".into()),
        ..Settings::default()
    };
    let settings = settings.decide(dir.path(), std::num::NonZeroUsize::MIN);
    let host = Host::open(settings.unwrap(), &[]).unwrap();
    let config = config();
    for path in create::image_files(&host, &config) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    Some(Fixture {
        dir,
        host,
        interrupt: Interrupt::never().unwrap(),
    })
}

impl Fixture {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn import(&self, from: &Path, name: Option<&str>) -> Result<SnapshotId, Error> {
        let request = import::Request {
            source: Source::of(from),
            name: name.map(|name| name.parse().unwrap()),
            description: None,
        };
        import::import(&self.host, &request, &self.interrupt)
    }

    fn export(&self, id: SnapshotId, to: &Path) -> Result<(), Error> {
        export::export(&self.host, id, &Target::of(to), &self.interrupt)
    }

    fn collect(&self) -> Vec<gc::Kind> {
        let collected = gc::collect(&self.host, false).unwrap();
        assert!(collected.failures.is_empty(), "{:?}", collected.failures);
        collected.items.into_iter().map(|item| item.kind).collect()
    }

    fn begin(&self, name: &str) -> Result<Staging<'_>, Error> {
        let name: SnapshotName = name.parse().unwrap();
        Staging::begin(
            &self.host,
            &Reservation {
                name: Some(&name),
                description: "",
                vm: spec().id,
                vm_name: &spec().name,
                config: &config(),
                created_at: jiff::Timestamp::UNIX_EPOCH,
            },
        )
    }

    /// What is there of snapshots: folders and lock files.
    fn traces(&self) -> usize {
        let locks = fs::read_dir(self.host.layout.locks()).unwrap();
        let locks = locks.filter(|lock| {
            let name = lock.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with("snapshot-")
        });
        fs::read_dir(self.host.layout.snapshots()).unwrap().count() + locks.count()
    }
}

#[test]
fn root_a_snapshot_travels_as_a_folder_and_as_a_file() {
    let Some(fixture) = fixture() else { return };
    let (_, manifest) = snapshot(&fixture.path("saved"));
    let first = fixture.import(&fixture.path("saved"), None).unwrap();
    fixture.export(first, &fixture.path("file")).unwrap();
    fixture.export(first, &fixture.path("folder/")).unwrap();
    let second = fixture.import(&fixture.path("file"), Some("two")).unwrap();
    let third = fixture
        .import(&fixture.path("folder"), Some("three"))
        .unwrap();
    let names: Vec<_> = list(&fixture.host).unwrap();
    let mut names: Vec<_> = names.iter().map(SnapshotRecord::label).collect();
    names.sort();
    assert_eq!(names, ["nightly", "three", "two"]);
    for id in [first, second, third] {
        let (object, checked) = inspect(&fixture.host, id, Depth::Full, &|| true).unwrap();
        checked.unwrap();
        assert_eq!(object["damage"], Value::Null);
        assert_eq!(object["description"], manifest.description);
        let folder = fixture.host.layout.snapshot(id).folder();
        assert_eq!(Manifest::read(&folder).unwrap().id, id);
    }
    assert_eq!(list_of_vm(&fixture.host, "web").unwrap().len(), 3);
    assert!(fixture.collect().is_empty());
    for id in [first, second, third] {
        remove(&fixture.host, id).unwrap();
    }
    assert_eq!(fixture.traces(), 0);
    let not_found = remove(&fixture.host, first).unwrap_err().to_string();
    assert!(not_found.contains("no snapshot"), "{not_found}");
    assert_eq!(fixture.traces(), 0, "a look at what is gone leaves no lock");
}

#[test]
fn root_an_import_that_is_refused_leaves_nothing() {
    let Some(fixture) = fixture() else { return };
    let saved = fixture.path("saved");
    snapshot(&saved);
    let blob = fixture.host.layout.blob(&config().blobs()[0]);
    fs::rename(&blob, fixture.path("away")).unwrap();
    let error = fixture.import(&saved, None).unwrap_err().to_string();
    assert!(error.contains("docker.io/library/tiny:latest"), "{error}");
    fs::rename(fixture.path("away"), &blob).unwrap();

    fixture.interrupt.raise();
    let interrupted = fixture.import(&saved, None).unwrap_err();
    assert!(matches!(interrupted, Error::Interrupted), "{interrupted}");
    let fixture = Fixture {
        interrupt: Interrupt::never().unwrap(),
        ..fixture
    };
    fs::write(saved.join("vm/state"), "regis7ers").unwrap();
    let error = fixture.import(&saved, None).unwrap_err().to_string();
    assert!(error.contains("its digest is wrong"), "{error}");
    assert_eq!(fixture.traces(), 0);
    assert!(list(&fixture.host).unwrap().is_empty());
}

#[test]
fn root_a_damaged_snapshot_is_not_exported_and_says_why() {
    let Some(fixture) = fixture() else { return };
    snapshot(&fixture.path("saved"));
    let id = fixture.import(&fixture.path("saved"), None).unwrap();
    let folder = fixture.host.layout.snapshot(id).folder();
    fs::remove_file(folder.vm().join("memory")).unwrap();
    for to in ["file", "folder/"] {
        let to = fixture.path(to);
        let error = fixture.export(id, &to).unwrap_err().to_string();
        assert!(error.contains("vm/memory is missing"), "{error}");
        assert!(!to.exists());
    }
    let (object, checked) = inspect(&fixture.host, id, Depth::Quick, &|| true).unwrap();
    assert!(checked.is_err());
    assert!(object["damage"].as_str().unwrap().contains("is missing"));
}

#[test]
fn root_an_export_overwrites_no_folder() {
    let Some(fixture) = fixture() else { return };
    let (saved, _) = snapshot(&fixture.path("saved"));
    let id = fixture.import(saved.path(), None).unwrap();
    let error = fixture.export(id, saved.path()).unwrap_err();
    assert!(matches!(error, Error::NotEmpty(_)), "{error}");
    let manifest = Manifest::read(&saved).unwrap();
    manifest.check(&saved, Depth::Full, &|| true).unwrap();
}

#[test]
fn root_what_a_killed_save_leaves_is_collected_once_nobody_writes_it() {
    let Some(fixture) = fixture() else { return };
    let taken = |fixture: &Fixture| fixture.begin("nightly").unwrap_err().to_string();
    let staging = fixture.begin("nightly").unwrap();
    assert!(taken(&fixture).contains("the name nightly is taken"));
    fs::write(staging.folder().vm().join("memory"), "half").unwrap();
    let busy = gc::collect(&fixture.host, false).unwrap_err();
    assert!(matches!(busy, Error::Busy), "{busy}");
    let id = staging.id();
    // The command is dead, but the VM process has not noticed yet.
    let writer = SnapshotUse::share(&fixture.host.layout, id).unwrap();
    drop(staging);
    assert!(list(&fixture.host).unwrap().is_empty());
    let seen = gc::collect(&fixture.host, true).unwrap();
    assert_eq!(seen.items, [], "it is still being written");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            drop(writer);
        });
        assert_eq!(fixture.collect()[0], gc::Kind::Snapshot, "given some time");
    });
    assert_eq!(fixture.traces(), 0);
    let again = fixture.begin("nightly").unwrap();
    assert!(again.discard().is_empty());
    assert_eq!(fixture.traces(), 0);
}

#[test]
fn root_folders_and_locks_without_a_row_are_collected_and_others_stay() {
    let Some(fixture) = fixture() else { return };
    snapshot(&fixture.path("saved"));
    let id = fixture.import(&fixture.path("saved"), None).unwrap();
    let strays = ["00000000000000cc", ".staged-00000000000000dd", "notes"];
    for stray in strays {
        let folder = fixture.host.layout.snapshots().join(stray);
        SnapshotFolder::new(&folder).prepare().unwrap();
    }
    let lock = fixture.host.layout.locks();
    fs::write(lock.join("snapshot-00000000000000cc.lock"), "").unwrap();
    let folder = gc::Kind::SnapshotFolder;
    assert_eq!(fixture.collect(), [folder, folder, folder, gc::Kind::Lock]);
    let (_, checked) = inspect(&fixture.host, id, Depth::Full, &|| true).unwrap();
    checked.unwrap();
    let blob = fixture.host.layout.blob(&config().blobs()[0]);
    assert!(blob.exists(), "a snapshot keeps its layers");
    remove(&fixture.host, id).unwrap();
    let collected = fixture.collect();
    assert!(collected.contains(&gc::Kind::Blob), "{collected:?}");
    assert!(!blob.exists());
}

#[test]
fn root_a_removal_waits_for_who_reads_the_snapshot() {
    let Some(fixture) = fixture() else { return };
    snapshot(&fixture.path("saved"));
    let id = fixture.import(&fixture.path("saved"), None).unwrap();
    let (reader, _) = open(&fixture.host, id).unwrap();
    let file = fs::File::open(fixture.host.layout.snapshot(id).folder().manifest()).unwrap();
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| remove(&fixture.host, id));
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!removal.is_finished(), "it waits");
        drop(reader);
        removal.join().unwrap().unwrap();
    });
    assert_eq!(fixture.traces(), 0);
    assert!(!io_text(file).is_empty(), "who has a file open keeps it");
    open(&fixture.host, id).unwrap_err();
    assert_eq!(fixture.traces(), 0);
}

fn io_text(file: fs::File) -> String {
    std::io::read_to_string(file).unwrap()
}
