//! A running VM, as the rest of cocoon sees it, and the thread that looks after it.
//!
//! ```text
//!  vCPUs, devices, signals ── Notice ──▶ life ──▶ Event
//!                                         │ Reset: the VM is let go and built anew, on the same console
//!                                         │ PowerOff, Fault, …: let go, Stopped(reason), the end
//! ```
//! Invariants: `Stopped` comes once, last, and after every file of the VM is closed. A panicked guest
//! gets time to reboot itself, then is ended.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::builder::{self, Site};
use super::bus::lock;
use super::devices::serial::console::Console;
use super::error::{Error, chain};
use super::notice::{Notice, Notices};
use super::vm::Vm;
use crate::sys::thread::STACK_BYTES;
use crate::vm::spec::{Memory, OnReset, VmSpec};
use crate::vmm::Machine;
use crate::vmm::engine::{EngineError, Event, RestoredMemory, StopReason};

/// Wait for a panicked guest to reboot itself, as `kernel.panic` may tell it to after some seconds;
/// beyond a minute and a margin it is taken to hang, which is what the default of 0 does.
const PANIC_GRACE: Duration = Duration::from_secs(70);

/// A VM of this process.
#[derive(Debug)]
pub(super) struct MicroMachine {
    shared: Arc<Shared>,
    events: Mutex<Option<Receiver<Event>>>,
    restored_memory: Option<RestoredMemory>,
}

#[derive(Debug)]
struct Shared {
    spec: VmSpec,
    console: Arc<Console>,
    notices: Notices,
    /// Nothing when it is over.
    vm: Mutex<Option<Vm>>,
}

/// Boots `spec`'s VM in this process.
///
/// # Errors
/// As [`crate::vmm::Engine::boot`].
pub(super) fn boot(spec: &VmSpec) -> Result<MicroMachine, EngineError> {
    begin(spec, |site| builder::boot(site, None)).map_err(|error| error.during("boot the VM"))
}

/// Brings the VM saved in `from` to life in this process.
///
/// # Errors
/// As [`crate::vmm::Engine::restore`].
pub(super) fn restore(spec: &VmSpec, from: &Path) -> Result<MicroMachine, EngineError> {
    let machine = begin(spec, |site| builder::restore(site, from))
        .map_err(|error| error.during("restore the VM"))?;
    Ok(MicroMachine {
        restored_memory: Some(builder::restored_memory(spec.memory.hugepages)),
        ..machine
    })
}

fn begin(
    spec: &VmSpec,
    build: impl FnOnce(Site<'_>) -> Result<Vm, Error>,
) -> Result<MicroMachine, Error> {
    raise_descriptor_limit();
    let (sender, incoming) = channel();
    let notices = Notices::new(sender);
    listen_to_signals(notices.clone()).map_err(Error::Signals)?;
    live(spec, notices, incoming, build)
}

/// Builds a VM, and has it looked after until it is over.
fn live(
    spec: &VmSpec,
    notices: Notices,
    incoming: Receiver<Notice>,
    build: impl FnOnce(Site<'_>) -> Result<Vm, Error>,
) -> Result<MicroMachine, Error> {
    let console = Console::open().map_err(Error::Terminal)?;
    let vm = build(Site {
        spec,
        console: &console,
        notices: &notices,
    })?;
    let shared = Arc::new(Shared {
        spec: spec.clone(),
        console,
        notices,
        vm: Mutex::new(Some(vm)),
    });
    let (events, happened) = channel();
    let life = Life {
        shared: Arc::clone(&shared),
        incoming,
        events,
    };
    spawn("life", move || life.follow()).map_err(Error::Thread)?;
    Ok(MicroMachine {
        shared,
        events: Mutex::new(Some(happened)),
        restored_memory: None,
    })
}

/// Each queue of a device takes four descriptors: an image of many layers, on many CPUs, more than the
/// usual soft limit of 1024.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        // Most VMs need no more than there are.
        tracing::warn!(%error, "the limit on descriptors cannot be raised");
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_BYTES)
        .spawn(body)
        .map(drop)
}

fn listen_to_signals(notices: Notices) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    spawn("signals", move || {
        for _ in signals.forever() {
            notices.tell(Notice::PowerOffAsked);
        }
    })
}

impl MicroMachine {
    /// Lets `f` work on the VM, unless it is over.
    fn with<T>(
        &self,
        operation: &'static str,
        f: impl FnOnce(&mut Vm) -> Result<T, Error>,
    ) -> Result<T, EngineError> {
        let mut vm = lock(&self.shared.vm);
        let done = vm.as_mut().ok_or(Error::Over).and_then(f);
        done.map_err(|error| error.during(operation))
    }
}

impl Machine for MicroMachine {
    fn console(&self) -> Result<OwnedFd, EngineError> {
        let console = &self.shared.console;
        self.with("open the VM's terminal", |_| {
            console.terminal().map_err(Error::Terminal)
        })
    }

    fn events(&self) -> Option<Receiver<Event>> {
        lock(&self.events).take()
    }

    fn press_power_button(&self) -> Result<(), EngineError> {
        self.with("press the VM's power button", |vm| {
            vm.press_power_button();
            Ok(())
        })
    }

    fn power_off(&self) -> Result<(), EngineError> {
        self.shared.notices.tell(Notice::PowerOffAsked);
        Ok(())
    }

    fn pause(&self) -> Result<(), EngineError> {
        self.with("pause the VM", |vm| {
            vm.pause().inspect_err(|_| {
                // The error that is returned says more than one of going on.
                let _ = vm.resume();
            })
        })
    }

    fn resume(&self) -> Result<(), EngineError> {
        self.with("resume the VM", |vm| match vm.is_paused() {
            true => vm.resume(),
            false => Ok(()),
        })
    }

    fn save(&self, into: &Path) -> Result<(), EngineError> {
        self.with("save the VM", |vm| vm.save(into))
    }

    fn restored_memory(&self) -> Option<RestoredMemory> {
        self.restored_memory
    }

    fn info(&self) -> Result<serde_json::Value, EngineError> {
        let spec = &self.shared.spec;
        self.with("describe the VM", |vm| {
            let mut told = vm.describe();
            let Memory {
                size,
                added,
                hugepages,
                ..
            } = spec.memory;
            told["cpus"] = json!({ "boot_vcpus": spec.cpus.boot, "added_vcpus": spec.cpus.added });
            told["memory"] = json!({ "size": size, "added": added, "hugepages": hugepages });
            Ok(told)
        })
    }
}

/// Follows one VM to its end.
struct Life {
    shared: Arc<Shared>,
    incoming: Receiver<Notice>,
    events: Sender<Event>,
}

impl Life {
    fn follow(self) {
        let reason = self.until_the_end();
        // Its files are closed before anyone hears that it is over.
        drop(lock(&self.shared.vm).take());
        self.tell(Event::Stopped(reason));
    }

    fn tell(&self, event: Event) {
        // The receiver may have been dropped by a process that is ending anyway.
        let _ = self.events.send(event);
    }

    fn until_the_end(&self) -> StopReason {
        let mut patience = None;
        loop {
            match self.next(patience) {
                Some(Notice::Reset) if self.shared.spec.on_reset == OnReset::End => {
                    return StopReason::GuestReset;
                }
                Some(Notice::Reset) => {
                    patience = None;
                    match self.reboot() {
                        Ok(None) => self.tell(Event::Rebooted),
                        Ok(Some(reason)) => return reason,
                        Err(error) => {
                            tracing::error!(error = %chain(&error), "the VM does not boot again");
                            return StopReason::EngineFailure;
                        }
                    }
                }
                Some(Notice::Panicked) => {
                    tracing::warn!("the guest's kernel panicked");
                    patience = Some(Instant::now() + PANIC_GRACE);
                }
                Some(Notice::PowerOff) => return StopReason::GuestPowerOff,
                Some(Notice::PowerOffAsked) => return StopReason::Stopped,
                Some(Notice::Fault(fault)) => {
                    tracing::error!(error = %chain(&fault), "the VM is stopped");
                    return StopReason::DeviceFault;
                }
                Some(Notice::VcpuFailed { vcpu, why }) => {
                    tracing::error!(vcpu, why, "a vCPU failed");
                    return StopReason::EngineFailure;
                }
                None => return StopReason::GuestPanic,
            }
        }
    }

    /// The next notice, or nothing when `deadline` has passed.
    fn next(&self, deadline: Option<Instant>) -> Option<Notice> {
        let Some(deadline) = deadline else {
            // `shared` holds a sender, so there is always one to wait for.
            return self.incoming.recv().ok();
        };
        let patience = deadline.saturating_duration_since(Instant::now());
        self.incoming.recv_timeout(patience).ok()
    }

    /// Lets the VM go and builds it anew; or tells why it ends instead.
    fn reboot(&self) -> Result<Option<StopReason>, Error> {
        let mut vm = lock(&self.shared.vm);
        let watchdog = vm.as_ref().and_then(Vm::watchdog_after_reset);
        drop(vm.take());
        // What the old VM still said is of no interest, but a wish to end it is.
        if self
            .incoming
            .try_iter()
            .any(|notice| matches!(notice, Notice::PowerOffAsked))
        {
            return Ok(Some(StopReason::Stopped));
        }
        let Shared {
            spec,
            console,
            notices,
            ..
        } = &*self.shared;
        let site = Site {
            spec,
            console,
            notices,
        };
        *vm = Some(builder::boot(site, watchdog.as_ref())?);
        Ok(None)
    }
}
