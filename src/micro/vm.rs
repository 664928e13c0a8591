//! A VM in this process: what runs, what it stands on, and how it is stopped for a while and saved.
//!
//! ```text
//!            pause                                   save
//!  running ─────────▶ vCPUs out of the guest, ────────────▶ <folder>/{state, memory}
//!     ▲               watchdog stopped, lanes parked,
//!     └── resume ──── requests under way completed
//! ```
//! Invariants: while it is paused nothing of this process touches guest RAM. The fields are dropped in
//! their order: vCPUs end first, then lanes, then what either could have used.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use serde_json::{Value, json};

use super::bus::{Shared, lock};
use super::cpu;
use super::cpu::state::Extent;
use super::devices::power::device::Power;
use super::devices::serial::device::Serial;
use super::devices::watchdog::device::Watchdog;
use super::devices::watchdog::persist::WatchdogState;
use super::error::Error;
use super::growth::Room;
use super::lane::Lanes;
use super::memory::GuestRam;
use super::snapshot::saved::Saved;
use super::snapshot::{MEMORY, STATE, file};
use super::vcpu::Vcpus;
use super::virtio::mmio::Transport;
use super::{chip, devices};

/// A VM.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) vcpus: Vcpus,
    pub(super) parts: Parts,
    pub(super) extent: Extent,
    pub(super) paused: bool,
}

/// What vCPUs work with.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) watchdog: Option<Shared<Watchdog>>,
    pub(super) power: Shared<Power>,
    pub(super) serial: Shared<Serial>,
    pub(super) balloon: Option<Arc<devices::balloon::device::Size>>,
    pub(super) transports: Vec<Shared<Transport>>,
    pub(super) lanes: Arc<Lanes>,
    /// What the guest was told of when it booted.
    pub(super) room: Room,
    pub(super) ram: GuestRam,
    pub(super) fd: VmFd,
}

impl Vm {
    /// Asks the guest to power off.
    pub(super) fn press_power_button(&self) {
        lock(&self.parts.power).press_button();
    }

    /// What the next watchdog is to know after the guest was reset.
    pub(super) fn watchdog_after_reset(&self) -> Option<WatchdogState> {
        let watchdog = self.parts.watchdog.as_ref()?;
        Some(lock(watchdog).after_reset())
    }

    /// Whether its vCPUs stand still.
    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// What there is, for people.
    pub(super) fn describe(&self) -> Value {
        let name = |transport: &Shared<Transport>| lock(transport).name().to_owned();
        let devices: Vec<_> = self.parts.transports.iter().map(name).collect();
        let mut told = json!({
            "state": if self.is_paused() { "Paused" } else { "Running" },
            "devices": devices,
        });
        if let Some(balloon) = &self.parts.balloon {
            told["balloon"] = json!({ "target": balloon.target(), "actual": balloon.actual() });
        }
        told
    }

    /// Lets it run, for the first time or again.
    ///
    /// # Errors
    /// A thread is gone.
    pub(super) fn resume(&mut self) -> Result<(), Error> {
        self.parts.lanes.unpark();
        if let Some(watchdog) = &self.parts.watchdog {
            lock(watchdog).resume();
        }
        // Spares the guest a lockup warning; one without KVM's clock cannot be told.
        self.vcpus.each(|_, fd| {
            let _ = fd.kvmclock_ctrl();
        })?;
        self.paused = false;
        Ok(self.vcpus.run()?)
    }

    /// Stops it until [`Vm::resume`]. A VM that is paused already stays so.
    ///
    /// # Errors
    /// A thread is gone, or a request under way failed in a way that cannot be told to the guest.
    pub(super) fn pause(&mut self) -> Result<(), Error> {
        self.vcpus.pause()?;
        if let Some(watchdog) = &self.parts.watchdog {
            lock(watchdog).pause();
        }
        self.parts.lanes.park()?;
        for transport in &self.parts.transports {
            lock(transport).quiesce()?;
        }
        self.paused = true;
        Ok(())
    }

    /// Saves the paused VM into a folder. Neither file is synced.
    ///
    /// # Errors
    /// It is not paused, KVM refuses something, or a file cannot be written.
    pub(super) fn save(&self, into: &Path) -> Result<(), Error> {
        if !self.is_paused() {
            return Err(Error::NotPaused);
        }
        let Parts {
            watchdog,
            power,
            serial,
            transports,
            room,
            ram,
            fd,
            ..
        } = &self.parts;
        let extent = self.extent.clone();
        let vcpus = self
            .vcpus
            .each(move |number, fd| cpu::state::save(fd, number, &extent))?;
        let transports = transports.iter().map(|transport| lock(transport).save());
        let saved = Saved {
            memory: ram.pieces().clone(),
            room: *room,
            vcpus: vcpus.into_iter().collect::<Result<_, _>>()?,
            chips: chip::save(fd)?,
            serial: lock(serial).save(),
            power: lock(power).save(),
            watchdog: watchdog.as_ref().map(|watchdog| lock(watchdog).save()),
            transports: transports.collect::<Result<_, _>>()?,
        };
        let path = into.join(MEMORY);
        let memory = File::create_new(&path).map_err(|source| Error::Open { path, source })?;
        ram.write_to(&memory, 0)?;
        Ok(file::write(&into.join(STATE), &saved)?)
    }
}
