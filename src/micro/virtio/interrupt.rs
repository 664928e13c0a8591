//! A device's interrupt: the status register and the line.
//!
//! Invariant: the status says why before the line says that.

use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// A used buffer notification (virtio 1.2, 4.2.2 InterruptStatus).
const USED_BUFFER: u32 = 1;

/// A configuration change notification.
const CONFIGURATION: u32 = 2;

/// The interrupt of one virtio device, shared by its transport and its handlers.
#[derive(Debug)]
pub(crate) struct Interrupt {
    status: AtomicU32,
    /// Of the configuration: a driver that reads more than one field reads again when it changed.
    generation: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    /// The interrupt on `line`, which KVM injects (an irqfd).
    pub(crate) fn new(line: EventFd, status: u32) -> Self {
        Self::restored(line, status, 0)
    }

    /// The interrupt as it was saved.
    pub(crate) fn restored(line: EventFd, status: u32, generation: u32) -> Self {
        let status = AtomicU32::new(status);
        let generation = AtomicU32::new(generation);
        Self {
            status,
            generation,
            line,
        }
    }

    /// Buffers have been used.
    pub(crate) fn used(&self) {
        self.raise(USED_BUFFER);
    }

    /// The device's configuration has changed.
    pub(crate) fn configuration_changed(&self) {
        self.note_change();
        self.raise(CONFIGURATION);
    }

    /// The same, but the driver is told only when the interrupt is repeated.
    pub(crate) fn note_change(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.status.fetch_or(CONFIGURATION, Ordering::SeqCst);
    }

    /// Raises the line again for what the driver has not acknowledged, as after a restore.
    pub(crate) fn repeat(&self) {
        if self.status() != 0 {
            self.raise(0);
        }
    }

    /// How often the configuration has changed.
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The status register.
    pub(crate) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver acknowledges.
    pub(crate) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    fn raise(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::SeqCst);
        // An eventfd refuses only when its counter is full, and then the line is up already.
        let _ = self.line.write(1);
    }
}
