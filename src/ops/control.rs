//! What a VM process does for the commands that ask it: the other end of `control.sock`.
//!
//! ```text
//! Save    pause ─▶ memory and state ─▶ disks ─▶ resume ─▶ answer
//!           └──────── the guest is halted ───────┘
//! ```
//! Invariants: whoever pauses, saves or resumes waits for its turn, so there is one save at a time; what
//! ends the VM never waits. A save resumes the guest that it has paused on every path, also when the
//! command that asked for it was killed; so a guest is left halted only where a user said `pause`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::vm_process::chain;
use crate::store::DatabaseError;
use crate::sys::failpoint;
use crate::sys::flock::FileLock;
use crate::sys::reflink::{self, Way};
use crate::vmm::Machine;
use crate::vmm::engine::EngineError;
use crate::vmm::protocol::{DiskCopy, Request, Response, Saved};

/// Records whether the guest is paused.
type Record = dyn Fn(bool) -> Result<(), DatabaseError> + Send + Sync;

/// Whether the command that asks has gone.
type IsGone<'a> = &'a dyn Fn() -> bool;

/// A VM of this process, for the commands that ask about it.
pub(super) struct Control {
    machine: Arc<dyn Machine>,
    /// Whether a command wants the VM to end; its end is then no news.
    asked: Arc<AtomicBool>,
    /// Whether it was told to end at once.
    ending: AtomicBool,
    record: Box<Record>,
    /// Whether a user has paused the guest. Held by whoever pauses or resumes it.
    paused: Mutex<bool>,
}

/// Why a VM process does not do what a command asks.
#[derive(Debug, thiserror::Error)]
enum ControlError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("cannot lock {}", path.display())]
    Lock {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot copy the disk {} to {}", copy.from.display(), copy.to.display())]
    Disk {
        copy: DiskCopy,
        #[source]
        source: std::io::Error,
    },
    #[error("the command has gone that asked for it")]
    Abandoned,
    #[error("the VM is being ended")]
    Ending,
}

impl Control {
    pub(super) fn new(
        machine: Arc<dyn Machine>,
        asked: Arc<AtomicBool>,
        record: Box<Record>,
    ) -> Self {
        Self {
            machine,
            asked,
            ending: AtomicBool::new(false),
            record,
            paused: Mutex::new(false),
        }
    }

    /// Does what a command asks; `is_gone` tells whether it still waits for the answer.
    pub(super) fn answer(&self, request: Request, is_gone: IsGone<'_>) -> Response {
        let name = format!("{request:?}");
        match self.act(request, is_gone) {
            Ok(value) => Response::Done(value),
            Err(error) => {
                let reason = chain(&error).join(": ");
                tracing::warn!(request = name, reason, "a request was not done");
                Response::Failed(reason)
            }
        }
    }

    fn act(&self, request: Request, is_gone: IsGone<'_>) -> Result<Value, ControlError> {
        match request {
            Request::Info => {
                let mut info = self.machine.info()?;
                info["restored_memory"] = json!(self.machine.restored_memory());
                return Ok(info);
            }
            Request::PressPowerButton => {
                self.asked.store(true, Ordering::Relaxed);
                self.machine.press_power_button()?;
            }
            Request::PowerOff => {
                self.asked.store(true, Ordering::Relaxed);
                self.ending.store(true, Ordering::Relaxed);
                self.machine.power_off()?;
            }
            Request::Pause => self.pause(is_gone)?,
            Request::Resume => self.resume(is_gone)?,
            Request::Save { into, lock, disks } => {
                let saved = self.save(&Save { into, lock, disks }, is_gone)?;
                // A struct of numbers has a JSON form.
                return Ok(serde_json::to_value(saved).unwrap_or_default());
            }
        }
        Ok(Value::Null)
    }

    fn turn(&self) -> std::sync::MutexGuard<'_, bool> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses to begin, or to go on with, what nobody wants any more.
    fn check_wanted(&self, is_gone: IsGone<'_>) -> Result<(), ControlError> {
        if self.ending.load(Ordering::Relaxed) {
            Err(ControlError::Ending)
        } else if is_gone() {
            Err(ControlError::Abandoned)
        } else {
            Ok(())
        }
    }

    fn pause(&self, is_gone: IsGone<'_>) -> Result<(), ControlError> {
        let mut paused = self.turn();
        self.check_wanted(is_gone)?;
        let halted = Halted::begin(&*self.machine)?;
        (self.record)(true)?;
        halted.stay();
        *paused = true;
        Ok(())
    }

    fn resume(&self, is_gone: IsGone<'_>) -> Result<(), ControlError> {
        let mut paused = self.turn();
        self.check_wanted(is_gone)?;
        self.machine.resume()?;
        *paused = false;
        Ok((self.record)(false)?)
    }

    fn save(&self, save: &Save, is_gone: IsGone<'_>) -> Result<Saved, ControlError> {
        let paused = self.turn();
        self.check_wanted(is_gone)?;
        let _use = FileLock::shared(&save.lock).map_err(|source| ControlError::Lock {
            path: save.lock.clone(),
            source,
        })?;
        failpoint::reach("VM process: snapshot in use");
        // Its command may have died while this waited for the lock.
        self.check_wanted(is_gone)?;
        let begun = Instant::now();
        let halted = if *paused {
            None
        } else {
            Some(Halted::begin(&*self.machine)?)
        };
        failpoint::reach("VM process: guest halted");
        self.machine.save(&save.into)?;
        failpoint::reach("VM process: memory saved");
        let memory = begun.elapsed();
        let disks = self.copy_disks(&save.disks, is_gone)?;
        let all = begun.elapsed();
        let was_running = halted.is_some();
        if let Some(halted) = halted {
            halted.end()?;
        }
        failpoint::reach("VM process: guest goes on");
        Ok(Saved {
            halted_us: was_running.then(|| microseconds(begun.elapsed())),
            memory_us: microseconds(memory),
            disks_us: microseconds(all.saturating_sub(memory)),
            disks,
        })
    }

    fn copy_disks(
        &self,
        disks: &[DiskCopy],
        is_gone: IsGone<'_>,
    ) -> Result<Option<Way>, ControlError> {
        let mut slowest = None;
        for copy in disks {
            self.check_wanted(is_gone)?;
            let go_on = || self.check_wanted(is_gone).is_ok();
            let copied = reflink::copy(&copy.from, &copy.to, &go_on);
            let way = copied.or_else(|source| {
                self.check_wanted(is_gone)?;
                Err(ControlError::Disk {
                    copy: copy.clone(),
                    source,
                })
            })?;
            failpoint::reach("VM process: disk copied");
            slowest = slowest.max(Some(way));
        }
        self.check_wanted(is_gone)?;
        Ok(slowest)
    }
}

/// What is to be saved, and where.
struct Save {
    into: PathBuf,
    lock: PathBuf,
    disks: Vec<DiskCopy>,
}

/// A guest that stands still for a while. Dropping this lets it go on.
struct Halted<'a> {
    machine: Option<&'a dyn Machine>,
}

impl<'a> Halted<'a> {
    fn begin(machine: &'a dyn Machine) -> Result<Self, EngineError> {
        machine.pause()?;
        Ok(Self {
            machine: Some(machine),
        })
    }

    /// Lets the guest go on, and says if it does not.
    fn end(mut self) -> Result<(), EngineError> {
        self.machine.take().map_or(Ok(()), Machine::resume)
    }

    /// Leaves the guest halted.
    fn stay(mut self) {
        self.machine = None;
    }
}

impl Drop for Halted<'_> {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.machine.map(Machine::resume) {
            tracing::error!(error = %chain(&error).join(": "), "the guest stays halted: it could not be resumed");
        }
    }
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
