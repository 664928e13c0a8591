//! Pausing, resuming and saving, with a machine that notes what is done to it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};

use super::*;
use crate::units::EngineName;
use crate::vmm::engine::{Event, RestoredMemory};

/// Notes what is done to it, and fails at what it is told to fail at.
#[derive(Debug, Default)]
struct Noted {
    done: Mutex<Vec<&'static str>>,
    fails_at: Option<&'static str>,
    /// A save says that it has begun, and waits for leave to end.
    gate: Option<(Sender<()>, Mutex<Receiver<()>>)>,
}

impl Noted {
    fn note(&self, what: &'static str) -> Result<(), EngineError> {
        self.done.lock().unwrap().push(what);
        match self.fails_at {
            Some(at) if at == what => Err(EngineError {
                engine: EngineName::Micro,
                operation: what,
                source: "no".into(),
            }),
            _ => Ok(()),
        }
    }
}

impl Machine for Noted {
    fn console(&self) -> Result<OwnedFd, EngineError> {
        // One on which nobody speaks.
        Ok(std::fs::File::open("/dev/null").unwrap().into())
    }
    fn events(&self) -> Option<Receiver<Event>> {
        None
    }
    fn press_power_button(&self) -> Result<(), EngineError> {
        self.note("press")
    }
    fn power_off(&self) -> Result<(), EngineError> {
        self.note("power off")
    }
    fn pause(&self) -> Result<(), EngineError> {
        self.note("pause")
    }
    fn resume(&self) -> Result<(), EngineError> {
        self.note("resume")
    }
    fn save(&self, into: &Path) -> Result<(), EngineError> {
        std::fs::write(into.join("state"), "registers").unwrap();
        if let Some((begun, leave)) = &self.gate {
            begun.send(()).unwrap();
            leave.lock().unwrap().recv().unwrap();
        }
        self.note("save")
    }
    fn restored_memory(&self) -> Option<RestoredMemory> {
        Some(RestoredMemory::OnDemand)
    }
    fn info(&self) -> Result<Value, EngineError> {
        Ok(json!({"state": "Running"}))
    }
}

#[test]
fn what_the_engine_says_of_its_vm_is_told_with_how_it_got_its_memory() {
    let told = fixture(Noted::default()).ask(Request::Info).unwrap();
    assert_eq!(
        told,
        json!({"state": "Running", "restored_memory": "on-demand"})
    );
}

struct Fixture {
    dir: tempfile::TempDir,
    machine: Arc<Noted>,
    control: Control,
    recorded: Arc<Mutex<Vec<bool>>>,
}

fn fixture(machine: Noted) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("vm")).unwrap();
    std::fs::write(dir.path().join("cow.raw"), "disk").unwrap();
    let machine = Arc::new(machine);
    let recorded = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&recorded);
    let record = move |paused| {
        notes.lock().unwrap().push(paused);
        Ok(())
    };
    let control = Control::new(Arc::clone(&machine) as _, Arc::default(), Box::new(record));
    Fixture {
        dir,
        machine,
        control,
        recorded,
    }
}

impl Fixture {
    fn save(&self) -> Request {
        let path = |name| self.dir.path().join(name);
        Request::Save {
            into: path("vm"),
            lock: path("lock"),
            disks: vec![DiskCopy {
                from: path("cow.raw"),
                to: path("copy.raw"),
            }],
        }
    }

    fn ask(&self, request: Request) -> Result<Value, String> {
        match self.control.answer(request, &|| false) {
            Response::Done(value) => Ok(value),
            Response::Failed(reason) => Err(reason),
        }
    }

    fn done(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.machine.done.lock().unwrap())
    }

    fn has_copy(&self) -> bool {
        self.dir.path().join("copy.raw").exists()
    }
}

#[test]
fn a_save_halts_the_guest_for_memory_and_disks_and_lets_it_go_on() {
    let fixture = fixture(Noted::default());
    let saved = fixture.ask(fixture.save()).unwrap();
    let saved: Saved = serde_json::from_value(saved).unwrap();
    assert!(
        saved.halted_us.is_some() && saved.disks.is_some(),
        "{saved:?}"
    );
    assert_eq!(fixture.done(), ["pause", "save", "resume"]);
    assert!(fixture.has_copy());
    assert!(fixture.recorded.lock().unwrap().is_empty(), "nobody paused");
}

#[test]
fn a_save_of_a_paused_guest_leaves_it_paused() {
    let fixture = fixture(Noted::default());
    fixture.ask(Request::Pause).unwrap();
    let saved = fixture.ask(fixture.save()).unwrap();
    let saved: Saved = serde_json::from_value(saved).unwrap();
    assert_eq!(saved.halted_us, None);
    assert_eq!(fixture.done(), ["pause", "save"]);
    fixture.ask(Request::Resume).unwrap();
    assert_eq!(fixture.done(), ["resume"]);
    assert_eq!(*fixture.recorded.lock().unwrap(), [true, false]);
}

#[test]
fn a_save_that_fails_lets_the_guest_go_on() {
    for (fails_at, done) in [
        ("pause", &["pause"][..]),
        ("save", &["pause", "save", "resume"]),
        ("resume", &["pause", "save", "resume"]),
    ] {
        let fixture = fixture(Noted {
            fails_at: Some(fails_at),
            ..Noted::default()
        });
        let reason = fixture.ask(fixture.save()).unwrap_err();
        assert!(reason.contains("micro failed to"), "{reason}");
        assert_eq!(fixture.done(), done, "{fails_at}");
    }
    let fixture = fixture(Noted::default());
    std::fs::remove_file(fixture.dir.path().join("cow.raw")).unwrap();
    let reason = fixture.ask(fixture.save()).unwrap_err();
    assert!(reason.contains("cannot copy the disk"), "{reason}");
    assert_eq!(fixture.done(), ["pause", "save", "resume"]);
}

#[test]
fn a_save_whose_command_has_gone_is_given_up_and_the_guest_goes_on() {
    let before = fixture(Noted::default());
    let gone = before.control.answer(before.save(), &|| true);
    assert!(matches!(gone, Response::Failed(reason) if reason.contains("has gone")));
    assert!(before.done().is_empty(), "nothing was begun");

    let during = fixture(Noted::default());
    let state = during.dir.path().join("vm/state");
    let gone = during.control.answer(during.save(), &|| state.exists());
    assert!(matches!(gone, Response::Failed(reason) if reason.contains("has gone")));
    assert_eq!(during.done(), ["pause", "save", "resume"]);
    assert!(!during.has_copy());
}

#[test]
fn what_ends_the_vm_waits_for_no_save_and_ends_it() {
    let (begun, has_begun) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel();
    let fixture = fixture(Noted {
        gate: Some((begun, Mutex::new(may_leave))),
        ..Noted::default()
    });
    std::thread::scope(|scope| {
        let save = scope.spawn(|| fixture.ask(fixture.save()));
        has_begun.recv().unwrap();
        fixture.ask(Request::PressPowerButton).unwrap();
        fixture.ask(Request::PowerOff).unwrap();
        leave.send(()).unwrap();
        let reason = save.join().unwrap().unwrap_err();
        assert!(reason.contains("being ended"), "{reason}");
    });
    assert_eq!(
        fixture.done(),
        ["pause", "press", "power off", "save", "resume"]
    );
    assert!(!fixture.has_copy());
}

#[test]
fn the_lock_of_a_snapshot_is_shared_for_as_long_as_it_is_written() {
    let (begun, has_begun) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel();
    let fixture = fixture(Noted {
        gate: Some((begun, Mutex::new(may_leave))),
        ..Noted::default()
    });
    let lock = fixture.dir.path().join("lock");
    std::thread::scope(|scope| {
        let save = scope.spawn(|| fixture.ask(fixture.save()));
        has_begun.recv().unwrap();
        assert!(FileLock::try_exclusive(&lock).unwrap().is_none());
        leave.send(()).unwrap();
        save.join().unwrap().unwrap();
    });
    assert!(FileLock::try_exclusive(&lock).unwrap().is_some());
}

#[test]
fn a_pause_that_cannot_be_recorded_is_none() {
    let mut fixture = fixture(Noted::default());
    fixture.control.record = Box::new(|_| {
        Err(DatabaseError::Value {
            what: "state",
            value: "x".into(),
        })
    });
    fixture.ask(Request::Pause).unwrap_err();
    assert_eq!(fixture.done(), ["pause", "resume"]);
}
