//! What is saved of a transport, and the transport made anew from that.
//!
//! ```text
//! Transport ─ save: quiesce, ask the handlers where they are ─▶ TransportState ─▶ a snapshot's file
//! Device + TransportState ─ restore: check, activate ─▶ Transport ─ resume ─▶ kicks, interrupt
//! ```
//! Invariant: a saved state is foreign input. Only what a driver could have brought about by itself
//! is taken; the rest is [`Unfit`].

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueState};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, Device, FAILED, FEATURES_OK, Interrupt, Lanes, NEEDS_RESET,
    Notices, Transport, TransportError, VIRTIO_F_VERSION_1,
};
use crate::micro::devices::DeviceState;

/// A transport and its device, at rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TransportState {
    /// The type of the device that it belongs to.
    kind: u32,
    status: u8,
    features: u64,
    device_features_selector: u32,
    driver_features_selector: u32,
    queue_selector: u32,
    queues: Vec<SavedQueue>,
    interrupt_status: u32,
    config_generation: u32,
    /// For the device itself.
    pub(crate) device: DeviceState,
}

/// One queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedQueue {
    size: u16,
    ready: bool,
    next_avail: u16,
    next_used: u16,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

/// Why a saved state does not fit a device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    /// It is another device's.
    #[error("it is of a device of type {saved}, not {actual}")]
    Kind {
        /// Saved.
        saved: u32,
        /// Of the device.
        actual: u32,
    },
    /// No driver brings this status about.
    #[error("status {0:#x} is none")]
    Status(u8),
    /// The device does not offer these.
    #[error("features {0:#x} are not offered")]
    Features(u64),
    /// Their number differs.
    #[error("it has {saved} queues, not {actual}")]
    Queues {
        /// Saved.
        saved: usize,
        /// Of the device.
        actual: usize,
    },
    /// An interrupt status that is none.
    #[error("interrupt status {0:#x} is none")]
    Interrupt(u32),
}

impl Transport {
    /// What is to be saved. All requests under way are completed first; the lanes are parked, else
    /// new ones are served while and after this is taken.
    ///
    /// # Errors
    /// As [`Transport::quiesce`].
    pub(crate) fn save(&self) -> Result<TransportState, TransportError> {
        self.quiesce()?;
        let mut queues = self.queues.clone();
        for &place in &self.places {
            let states = self.lanes.with(place, |handler| handler.queues());
            let states = states.map_err(|source| self.lane(source))?;
            for (index, state) in states.into_iter().flatten() {
                if let Some(queue) = queues.get_mut(usize::from(index)) {
                    queue.next_avail = state.next_avail;
                    queue.next_used = state.next_used;
                }
            }
        }
        Ok(TransportState {
            kind: self.device.kind(),
            status: self.status,
            features: self.features,
            device_features_selector: self.device_features_selector,
            driver_features_selector: self.driver_features_selector,
            queue_selector: self.queue_selector,
            queues: queues.iter().map(SavedQueue::from).collect(),
            interrupt_status: self.interrupt.status(),
            config_generation: self.interrupt.generation(),
            device: self.device.save(),
        })
    }

    /// A transport as it was saved, its device active if it was. [`Transport::resume`] makes it go on,
    /// and tells the driver of a configuration that has changed, once the VM's interrupt controllers are
    /// restored.
    ///
    /// # Errors
    /// The state is not of such a device, or the device cannot go on.
    pub(crate) fn restore(
        device: Box<dyn Device>,
        memory: GuestMemoryMmap,
        lanes: Arc<Lanes>,
        line: EventFd,
        notices: Notices,
        state: &TransportState,
    ) -> Result<Self, TransportError> {
        state
            .check(&*device)
            .map_err(|source| TransportError::Unfit {
                device: device.name().to_owned(),
                source,
            })?;
        let interrupt = Interrupt::restored(line, state.interrupt_status, state.config_generation);
        // A driver that has yet to begin will read what there is now.
        if device.has_changed() && state.status != 0 {
            interrupt.note_change();
        }
        let mut transport = Self::with_interrupt(device, memory, lanes, interrupt, notices)?;
        transport.status = state.status;
        transport.features = state.features;
        transport.device_features_selector = state.device_features_selector;
        transport.driver_features_selector = state.driver_features_selector;
        transport.queue_selector = state.queue_selector;
        let event_idx = state.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        for (queue, saved) in transport.queues.iter_mut().zip(&state.queues) {
            *queue = saved.onto(queue.max_size, event_idx);
        }
        if transport.is_active() {
            transport.activate()?;
        }
        Ok(transport)
    }
}

impl TransportState {
    fn check(&self, device: &dyn Device) -> Result<(), Unfit> {
        let (saved, actual) = (self.kind, device.kind());
        if saved != actual {
            return Err(Unfit::Kind { saved, actual });
        }
        let steps = self.status & !(FAILED | NEEDS_RESET);
        const TO_DRIVER: u8 = ACKNOWLEDGE | DRIVER;
        const TO_FEATURES: u8 = TO_DRIVER | FEATURES_OK;
        const TO_DRIVER_OK: u8 = TO_FEATURES | DRIVER_OK;
        if ![0, ACKNOWLEDGE, TO_DRIVER, TO_FEATURES, TO_DRIVER_OK].contains(&steps) {
            return Err(Unfit::Status(self.status));
        }
        if self.status & FEATURES_OK != 0 && !features_fit(device, self.features) {
            return Err(Unfit::Features(self.features));
        }
        let (saved, actual) = (self.queues.len(), device.queue_sizes().len());
        if saved != actual {
            return Err(Unfit::Queues { saved, actual });
        }
        if self.interrupt_status > 3 {
            return Err(Unfit::Interrupt(self.interrupt_status));
        }
        Ok(())
    }
}

impl From<&QueueState> for SavedQueue {
    fn from(queue: &QueueState) -> Self {
        Self {
            size: queue.size,
            ready: queue.ready,
            next_avail: queue.next_avail,
            next_used: queue.next_used,
            desc_table: queue.desc_table,
            avail_ring: queue.avail_ring,
            used_ring: queue.used_ring,
        }
    }
}

impl SavedQueue {
    fn onto(self, max_size: u16, event_idx_enabled: bool) -> QueueState {
        QueueState {
            max_size,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled,
            size: self.size,
            ready: self.ready,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
        }
    }
}

/// Features that a transport offers for its device.
pub(super) fn offered(device: &dyn Device) -> u64 {
    device.features() | 1 << VIRTIO_F_VERSION_1
}

/// Whether a driver may choose these: nothing unoffered, and no legacy interface.
pub(super) fn features_fit(device: &dyn Device, features: u64) -> bool {
    features & !offered(device) == 0 && features & 1 << VIRTIO_F_VERSION_1 != 0
}

/// A queue whose rings are aligned and lie in RAM.
pub(super) fn ring(
    state: &QueueState,
    memory: &GuestMemoryMmap,
) -> Result<Queue, virtio_queue::Error> {
    let queue = Queue::try_from(*state)?;
    let size = usize::from(state.size);
    // Sizes: virtio 1.2, section 2.7; the rings with their event index.
    for (start, bytes) in [
        (state.desc_table, 16 * size),
        (state.avail_ring, 6 + 2 * size),
        (state.used_ring, 6 + 8 * size),
    ] {
        if !memory.check_range(GuestAddress(start), bytes) {
            return Err(virtio_queue::Error::FindMemoryRegion);
        }
    }
    // `Queue::iter` takes a ring there for one that was never set up.
    if state.avail_ring == 0 {
        return Err(virtio_queue::Error::QueueNotReady);
    }
    Ok(queue)
}
