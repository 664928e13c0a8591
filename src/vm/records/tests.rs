//! Records in a database of their own.

use std::net::Ipv4Addr;

use super::*;
use crate::store::{Database, Durability, Layout};
use crate::units::{ByteSize, EngineName};
use crate::vm::config::{Hugepages, Layers, Root};

struct Fixture {
    _dir: tempfile::TempDir,
    layout: Layout,
    db: Database,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let [run, log] = ["run", "log"].map(|name| dir.path().join(name));
    let layout = Layout::new(dir.path(), &run, &log);
    layout.prepare().unwrap();
    let db = Database::open(layout.root()).unwrap();
    Fixture {
        _dir: dir,
        layout,
        db,
    }
}

fn config() -> VmConfig {
    let layer = Digest::of(b"layer");
    VmConfig {
        engine: EngineName::CloudHypervisor,
        cpu: 2,
        memory: ByteSize::from_gib(1),
        storage: ByteSize::from_gib(10),
        nics: 1,
        hugepages: Hugepages::Auto,
        dns: vec![Ipv4Addr::LOCALHOST],
        image: "docker.io/library/tiny:latest".into(),
        image_digest: Digest::of(b"image"),
        root: Root::Layers(Layers {
            layers: vec![layer],
            kernel: layer,
            initrd: layer,
        }),
    }
}

impl Fixture {
    fn reserve(&mut self, id: &str, name: &str) -> Result<VmLock, RecordError> {
        let lock = VmLock::wait(&self.layout, id.parse().unwrap()).unwrap();
        let name = name.parse().unwrap();
        self.db.write(Durability::Full, |tx| {
            reserve(tx, &lock, &name, &config(), Timestamp::now())
        })?;
        Ok(lock)
    }

    fn resolve(&mut self, reference: &str) -> Result<String, RecordError> {
        self.db
            .read(|tx| resolve(tx, reference))
            .map(|id| id.to_string())
    }

    fn get(&mut self, id: &str) -> VmRecord {
        self.db
            .read(|tx| get(tx, id.parse().unwrap()))
            .unwrap()
            .unwrap()
    }
}

#[test]
fn a_reserved_vm_reads_back_as_written() {
    let mut fixture = fixture();
    fixture.reserve("00000000000000aa", "web").unwrap();
    let record = fixture.get("00000000000000aa");
    assert_eq!(
        (record.state, record.name.as_str()),
        (VmState::Creating, "web")
    );
    assert_eq!(record.config, config());
}

#[test]
fn a_vm_has_the_configuration_that_was_recorded_last() {
    let mut fixture = fixture();
    let lock = fixture.reserve("00000000000000aa", "web").unwrap();
    fixture.reserve("00000000000000bb", "db").unwrap();
    let larger = VmConfig { cpu: 4, ..config() };
    fixture
        .db
        .write(Durability::Full, |tx| {
            set_config(tx, &lock, &larger, Timestamp::now())
        })
        .unwrap();
    assert_eq!(fixture.get("00000000000000aa").config, larger);
    assert_eq!(fixture.get("00000000000000bb").config, config());
}

#[test]
fn a_taken_name_is_refused_and_its_holder_keeps_it() {
    let mut fixture = fixture();
    fixture.reserve("00000000000000aa", "web").unwrap();
    assert!(matches!(
        fixture.reserve("00000000000000bb", "web"),
        Err(RecordError::NameTaken { .. })
    ));
    assert_eq!(fixture.resolve("web").unwrap(), "00000000000000aa");
}

#[test]
fn references_resolve_by_id_then_name_then_prefix() {
    let mut fixture = fixture();
    for (id, name) in [
        ("aaa0000000000000", "web"),
        ("aaa1000000000000", "aaa0"),
        ("bbb0000000000000", "db"),
    ] {
        fixture.reserve(id, name).unwrap();
    }
    assert_eq!(
        fixture.resolve("aaa0000000000000").unwrap(),
        "aaa0000000000000"
    );
    assert_eq!(
        fixture.resolve("aaa0").unwrap(),
        "aaa1000000000000",
        "a name goes before a prefix"
    );
    assert_eq!(fixture.resolve("bbb").unwrap(), "bbb0000000000000");
    assert!(
        matches!(fixture.resolve("bb"), Err(RecordError::NotFound { .. })),
        "two characters are no prefix"
    );
    assert!(matches!(
        fixture.resolve("%"),
        Err(RecordError::NotFound { .. })
    ));
    let ambiguous = fixture.resolve("aaa").unwrap_err().to_string();
    assert!(
        ambiguous.contains("aaa0000000000000 (web)") && ambiguous.contains("aaa1000000000000"),
        "{ambiguous}"
    );
}

#[test]
fn only_the_process_of_the_current_run_may_report() {
    let mut fixture = fixture();
    let lock = fixture.reserve("00000000000000aa", "web").unwrap();
    let now = Timestamp::now();
    let [old, new] = [RunId::random().unwrap(), RunId::random().unwrap()];
    fixture
        .db
        .write(Durability::Full, |tx| {
            set_state(tx, &lock, VmState::Created, now)?;
            begin_run(tx, &lock, new)
        })
        .unwrap();
    fixture
        .db
        .write(Durability::Full, |tx| {
            report_running(tx, lock.id(), old, now)
        })
        .unwrap();
    assert_eq!(fixture.get("00000000000000aa").state, VmState::Created);
    fixture
        .db
        .write(Durability::Full, |tx| {
            report_running(tx, lock.id(), new, now)
        })
        .unwrap();
    assert_eq!(fixture.get("00000000000000aa").state, VmState::Running);
    for (run, paused, state) in [
        (old, true, VmState::Running),
        (new, true, VmState::Paused),
        (old, false, VmState::Paused),
        (new, false, VmState::Running),
    ] {
        fixture
            .db
            .write(Durability::Full, |tx| {
                report_paused(tx, lock.id(), run, paused, now)
            })
            .unwrap();
        assert_eq!(fixture.get("00000000000000aa").state, state);
    }
    fixture
        .db
        .write(Durability::Full, |tx| {
            report_stopped(tx, lock.id(), old, "x", now)
        })
        .unwrap();
    assert_eq!(fixture.get("00000000000000aa").state, VmState::Running);
}

#[test]
fn a_vm_that_is_being_created_stays_so_until_its_maker_says_that_it_is_complete() {
    let mut fixture = fixture();
    let lock = fixture.reserve("00000000000000aa", "web").unwrap();
    let (now, run) = (Timestamp::now(), RunId::random().unwrap());
    for report in 0..4 {
        fixture
            .db
            .write(Durability::Full, |tx| match report {
                0 => begin_run(tx, &lock, run),
                1 => report_running(tx, lock.id(), run, now),
                2 => start_failed(tx, &lock, "no", now),
                _ => report_stopped(tx, lock.id(), run, "off", now),
            })
            .unwrap();
        assert_eq!(fixture.get("00000000000000aa").state, VmState::Creating);
    }
    for _ in 0..2 {
        fixture
            .db
            .write(Durability::Full, |tx| complete(tx, &lock, now))
            .unwrap();
        assert_eq!(fixture.get("00000000000000aa").state, VmState::Running);
    }
    fixture
        .db
        .write(Durability::Full, |tx| start_failed(tx, &lock, "no", now))
        .unwrap();
    assert_eq!(fixture.get("00000000000000aa").state, VmState::Error);
}

#[test]
fn deleting_a_vm_frees_its_name_and_its_pins() {
    let mut fixture = fixture();
    let lock = fixture.reserve("00000000000000aa", "web").unwrap();
    assert_eq!(
        fixture.db.read(pinned_blobs).unwrap(),
        [Digest::of(b"layer")]
    );
    fixture
        .db
        .write(Durability::Full, |tx| delete(tx, &lock))
        .unwrap();
    assert!(fixture.db.read(pinned_blobs).unwrap().is_empty());
    fixture.reserve("00000000000000bb", "web").unwrap();
}
