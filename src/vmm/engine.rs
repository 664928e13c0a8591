//! What an engine must do. Implemented by `micro`, and by `vmm-glue` for Cloud Hypervisor.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::Receiver;

use crate::vm::spec::{EngineName, VmSpec};

/// A hypervisor that this build links.
pub trait Engine: Sync + std::fmt::Debug {
    /// The name by which users and records know it.
    fn name(&self) -> EngineName;

    /// The version of the VMM behind it, for `cocoon version`.
    fn version(&self) -> String;

    /// Refuses what this engine cannot do. Pure; called before anything is created.
    ///
    /// # Errors
    /// The feature of `spec` that this engine lacks.
    fn check(&self, spec: &VmSpec) -> Result<(), Unsupported>;

    /// Whether it boots UEFI firmware, beside a kernel that is given to it.
    fn boots_firmware(&self) -> bool;

    /// Whether a guest's wall clock goes on while the guest is halted. Where it does not, the guest must be
    /// told the time when it goes on.
    fn clock_outlives_pause(&self) -> bool;

    /// Boots the VM in this process, which must run nothing else, at most once in its life.
    ///
    /// SIGTERM and SIGINT then end the VM, as [`Machine::power_off`] does. What the engine logs
    /// must not be written by the thread that logs it: threads of the engine may be confined.
    ///
    /// # Errors
    /// The VM could not be created or booted; nothing of it is left in this process that would
    /// keep it from ending.
    fn boot(&self, spec: &VmSpec) -> Result<Box<dyn Machine>, EngineError>;

    /// Brings a saved VM to life in this process, in place of [`Engine::boot`]: under the same rules,
    /// and on return its virtual processors run.
    ///
    /// `from` is what [`Machine::save`] filled; several processes may restore from it at once. It
    /// must stay as it is for as long as the VM lives, since memory may be read from it when the
    /// guest needs it. `spec` has the shape of the saved VM (processors, memory, disks, NICs) but
    /// may name other files, TAP devices and sockets; the disks hold what they held at the save.
    /// It may also have more `added` processors and memory than the saved VM, within its room, and
    /// disks whose files have grown: then the guest is told, as of a plug that somebody pushed in.
    ///
    /// # Errors
    /// `from` is not of this engine or is damaged, `spec` has another shape, or the host refused
    /// something; as with a failed boot, nothing of the VM is left.
    fn restore(&self, spec: &VmSpec, from: &Path) -> Result<Box<dyn Machine>, EngineError>;

    /// The arguments by which the engine's own program boots the same VM as [`Engine::boot`], but with
    /// the console on the caller's terminal. Pure; for a spec that [`Engine::check`] has nothing against and
    /// whose paths are text. None where the engine has no other program than cocoon.
    fn command_line(&self, spec: &VmSpec) -> Option<Vec<Flag>>;
}

/// A flag on a command line, with its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// With its dashes.
    pub name: &'static str,
    /// Each an argument of its own.
    pub values: Vec<String>,
}

/// A running VM of this process.
pub trait Machine: Send + Sync + std::fmt::Debug {
    /// The guest's console: a raw terminal, of which the engine holds the other end. Read and
    /// written by the console hub, not blocking; its window size is the guest's.
    ///
    /// A guest's reboot may replace it: the old one then reads as hung up. Called at that moment,
    /// this waits until the guest runs again and gives the new one.
    ///
    /// # Errors
    /// The terminal cannot be opened, or the VM is over.
    fn console(&self) -> Result<OwnedFd, EngineError>;

    /// What happens to the VM, from boot on. Ends after [`Event::Stopped`]. May be taken once.
    fn events(&self) -> Option<Receiver<Event>>;

    /// Asks the guest to power off, by its power button.
    ///
    /// # Errors
    /// The engine refused; the guest has not been asked.
    fn press_power_button(&self) -> Result<(), EngineError>;

    /// Ends the VM without asking the guest.
    ///
    /// # Errors
    /// The engine refused; the caller may end the process instead.
    fn power_off(&self) -> Result<(), EngineError>;

    /// Halts the guest: on return no virtual processor runs, and nothing of this process writes to
    /// the guest's memory or disks. The VM may be paused already.
    ///
    /// # Errors
    /// The engine refused; the guest runs as before.
    fn pause(&self) -> Result<(), EngineError>;

    /// Lets a paused guest go on. The VM may be running already.
    ///
    /// # Errors
    /// The engine refused; the guest is still halted.
    fn resume(&self) -> Result<(), EngineError>;

    /// Writes memory and state of the paused VM into `into`, an empty folder; its disks are the
    /// caller's to copy before it resumes.
    ///
    /// # Errors
    /// The VM runs, or the folder cannot be written; the VM is as it was, the folder is rubbish.
    fn save(&self, into: &Path) -> Result<(), EngineError>;

    /// How the memory of a restored VM comes to it; nothing if it was booted. A guest that reboots
    /// begins with fresh memory, and changes nothing here.
    fn restored_memory(&self) -> Option<RestoredMemory>;

    /// Measures of the running VM, an object in the engine's own words, for `vm inspect`.
    ///
    /// # Errors
    /// The engine did not answer.
    fn info(&self) -> Result<serde_json::Value, EngineError>;
}

/// How a restored VM gets the memory that was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestoredMemory {
    /// Each page when it is first touched: the restore does not wait for memory.
    OnDemand,
    /// All of it before the guest runs: the host or the kind of memory allows nothing else.
    Copied,
}

/// What happens to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest reset itself and boots again in the same process.
    Rebooted,
    /// The VM is over and the engine has let go of its files.
    Stopped(StopReason),
}

/// Why a VM is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// The guest powered itself off.
    GuestPowerOff,
    /// The guest reset itself, and was not to boot again ([`OnReset::End`](crate::vm::spec::OnReset)).
    GuestReset,
    /// The guest's kernel panicked.
    GuestPanic,
    /// cocoon ended it: `vm stop`, or a signal to the VM process.
    Stopped,
    /// A device could not go on, mostly because the guest's driver broke its rules; the log of the
    /// VM process says how.
    DeviceFault,
    /// The VMM failed.
    EngineFailure,
}

/// A feature that an engine lacks.
#[derive(Debug, thiserror::Error)]
#[error("the {engine} engine cannot {feature}")]
pub struct Unsupported {
    /// The engine.
    pub engine: EngineName,
    /// What was asked of it, as the rest of the sentence "cannot ...".
    pub feature: String,
}

/// A failure inside an engine.
#[derive(Debug, thiserror::Error)]
#[error("{engine} failed to {operation}")]
pub struct EngineError {
    /// The engine.
    pub engine: EngineName,
    /// What it was doing, as the rest of the sentence "failed to ...".
    pub operation: &'static str,
    /// The engine's own error.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}
