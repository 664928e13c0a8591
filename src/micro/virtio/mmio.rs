//! The virtio-mmio transport: registers between a guest's driver and a device.
//!
//! ```text
//!            reset        ACKNOWLEDGE, DRIVER      FEATURES_OK           DRIVER_OK
//!  status 0 ───────▶ 0 ─────────────────────▶ … ───────────────▶ … ────────────────▶ active
//!     ▲ handlers quiesced and removed,            VERSION_1 and       rings lie in RAM,│ handlers on
//!     └ then Device::reset ◀── status := 0 ────── nothing unoffered   Device::activate ▼ their lanes
//! ```
//! Source: virtio 1.2, section 4.2 (version 2; no legacy interface).
//! Invariants: the device has handlers exactly while the transport is active, which is after
//! `DRIVER_OK` and without `DEVICE_NEEDS_RESET`. A driver that sets up a ring outside of RAM gets
//! `DEVICE_NEEDS_RESET` and no handlers: nothing has been served yet, so only its own guest has lost
//! anything, and a reset heals it. Once rings are in use, breaking them is a `Fault` of the handler.

mod registers;
pub(crate) mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Once};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{Activation, ActiveQueue, Device};
use super::interrupt::Interrupt;
use crate::micro::lane::{LaneError, Lanes, Place};
use crate::micro::notice::{Fault, Notice, Notices, Problem};

use state::Unfit;

/// Where the driver notifies queues: an ioeventfd of 4 bytes, with the queue's index to match.
pub(crate) const QUEUE_NOTIFY: u64 = 0x50;

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;
const FAILED: u8 = 128;

/// A transport that cannot be made, saved or stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransportError {
    /// No descriptor is left.
    #[error("cannot make the kick of a queue of {device}")]
    Kick {
        /// The device.
        device: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A thread is gone.
    #[error("cannot reach the queues of {device}")]
    Lane {
        /// The device.
        device: String,
        /// Why.
        #[source]
        source: LaneError,
    },
    /// The device failed.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// A saved state is not this device's.
    #[error("the saved state of {device} does not fit")]
    Unfit {
        /// The device.
        device: String,
        /// How.
        #[source]
        source: Unfit,
    },
}

/// A device and its registers.
#[derive(Debug)]
pub(crate) struct Transport {
    device: Box<dyn Device>,
    memory: GuestMemoryMmap,
    lanes: Arc<Lanes>,
    interrupt: Arc<Interrupt>,
    notices: Notices,
    kicks: Vec<EventFd>,
    status: u8,
    /// What the driver wrote, until `FEATURES_OK` unchecked.
    features: u64,
    device_features_selector: u32,
    driver_features_selector: u32,
    queue_selector: u32,
    /// As the driver sets them up. While active, the positions are the handlers' to know.
    queues: Vec<QueueState>,
    places: Vec<Place>,
    /// That a driver set up a ring that is none: it may do so as often as it likes.
    complaint: Once,
}

impl Transport {
    /// A transport as after reset, which interrupts by `line` (an irqfd).
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn new(
        device: Box<dyn Device>,
        memory: GuestMemoryMmap,
        lanes: Arc<Lanes>,
        line: EventFd,
        notices: Notices,
    ) -> Result<Self, TransportError> {
        Self::with_interrupt(device, memory, lanes, Interrupt::new(line, 0), notices)
    }

    fn with_interrupt(
        device: Box<dyn Device>,
        memory: GuestMemoryMmap,
        lanes: Arc<Lanes>,
        interrupt: Interrupt,
        notices: Notices,
    ) -> Result<Self, TransportError> {
        let kick = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let kicks = device.queue_sizes().iter().map(|_| kick());
        let kicks = kicks
            .collect::<Result<_, _>>()
            .map_err(|source| TransportError::Kick {
                device: device.name().to_owned(),
                source,
            })?;
        Ok(Self {
            queues: fresh_queues(&*device),
            device,
            memory,
            lanes,
            interrupt: Arc::new(interrupt),
            notices,
            kicks,
            status: 0,
            features: 0,
            device_features_selector: 0,
            driver_features_selector: 0,
            queue_selector: 0,
            places: Vec::new(),
            complaint: Once::new(),
        })
    }

    /// The device's name, as people know it.
    pub(crate) fn name(&self) -> &str {
        self.device.name()
    }

    /// What the driver's notifications are to write to, by queue: ioeventfds at [`QUEUE_NOTIFY`].
    pub(crate) fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// Whether the device has handlers.
    pub(crate) fn is_active(&self) -> bool {
        self.status & DRIVER_OK != 0 && self.status & NEEDS_RESET == 0
    }

    /// Completes all requests under way. While the lanes are parked, nothing of this device touches
    /// guest memory afterwards.
    ///
    /// # Errors
    /// A lane is gone, or a request failed in a way that cannot be told to the driver.
    pub(crate) fn quiesce(&self) -> Result<(), TransportError> {
        for &place in &self.places {
            let quiesced = self.lanes.with(place, |handler| handler.quiesce());
            quiesced.map_err(|source| self.lane(source))?.transpose()?;
        }
        Ok(())
    }

    /// Looks at all queues that were not looked at since a restore, and repeats the interrupt. Does no
    /// harm at any other time.
    pub(crate) fn resume(&self) {
        if self.is_active() {
            let ready = self.kicks.iter().zip(&self.queues);
            for (kick, _) in ready.filter(|(_, queue)| queue.ready) {
                // Refused only when the counter is full, and then the kick is there already.
                let _ = kick.write(1);
            }
        }
        self.interrupt.repeat();
    }

    /// Brings the device to where it was before the driver found it, as when the guest reboots.
    pub(crate) fn reset(&mut self) {
        self.stop();
        self.device.reset();
        self.status = 0;
        self.features = 0;
        self.device_features_selector = 0;
        self.driver_features_selector = 0;
        self.queue_selector = 0;
        self.queues = fresh_queues(&*self.device);
        self.interrupt.acknowledge(u32::MAX);
        for kick in &self.kicks {
            // Empty is what it is to be.
            let _ = kick.read();
        }
    }

    fn stop(&mut self) {
        if let Err(error) = self.quiesce() {
            self.fail(error);
        }
        for place in std::mem::take(&mut self.places) {
            if let Err(source) = self.lanes.remove(place) {
                self.fail(self.lane(source));
            }
        }
    }

    /// The driver is ready, or was when the device was saved.
    fn activate(&mut self) -> Result<(), TransportError> {
        let mut queues = Vec::new();
        for (index, (state, kick)) in (0..).zip(self.queues.iter().zip(&self.kicks)) {
            if !state.ready {
                continue;
            }
            let broken = |source| {
                self.fault(Problem::Queue {
                    queue: index,
                    source,
                })
            };
            let queue = state::ring(state, &self.memory).map_err(broken)?;
            let kick = kick.try_clone().map_err(|source| TransportError::Kick {
                device: self.name().to_owned(),
                source,
            })?;
            queues.push(ActiveQueue { index, queue, kick });
        }
        let placed = self.device.activate(Activation {
            memory: self.memory.clone(),
            features: self.features,
            queues,
            interrupt: Arc::clone(&self.interrupt),
            notices: self.notices.clone(),
        })?;
        for placed in placed {
            let place = self.lanes.add(placed.lane, placed.handler);
            self.places.push(place.map_err(|source| self.lane(source))?);
        }
        Ok(())
    }

    fn set_status(&mut self, value: u32) {
        let Ok(value @ 1..) = u8::try_from(value) else {
            if value == 0 {
                self.reset();
            }
            return;
        };
        // Each step needs the one before; they may come in one write.
        for (bit, needs) in [
            (FAILED, 0),
            (ACKNOWLEDGE, 0),
            (DRIVER, ACKNOWLEDGE),
            (FEATURES_OK, DRIVER),
            (DRIVER_OK, FEATURES_OK),
        ] {
            let wanted = value & bit != 0 && self.status & bit == 0;
            let allowed = self.status & needs == needs;
            if !wanted || !allowed || (bit == FEATURES_OK && !self.features_fit()) {
                continue;
            }
            self.status |= bit;
            if bit == DRIVER_OK {
                self.begin();
            }
        }
    }

    fn begin(&mut self) {
        let event_idx = self.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        for queue in &mut self.queues {
            queue.event_idx_enabled = event_idx;
        }
        let Err(error) = self.activate() else {
            return;
        };
        self.stop();
        self.status |= NEEDS_RESET;
        self.interrupt.configuration_changed();
        match error {
            TransportError::Fault(Fault {
                device,
                problem: Problem::Queue { queue, source },
            }) => self.complaint.call_once(|| {
                tracing::warn!(device, queue, %source, "a driver set up a ring that is none");
            }),
            other => self.fail(other),
        }
    }

    fn features_fit(&self) -> bool {
        state::features_fit(&*self.device, self.features)
    }

    /// Tells that the VM cannot go on.
    fn fail(&self, error: TransportError) {
        let fault = match error {
            TransportError::Fault(fault) => fault,
            other => Fault {
                device: self.name().to_owned(),
                problem: Problem::Host {
                    operation: "serve its queues",
                    source: io::Error::other(other),
                },
            },
        };
        self.notices.tell(Notice::Fault(fault));
    }

    fn fault(&self, problem: Problem) -> TransportError {
        let device = self.name().to_owned();
        TransportError::Fault(Fault { device, problem })
    }

    fn lane(&self, source: LaneError) -> TransportError {
        let device = self.name().to_owned();
        TransportError::Lane { device, source }
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.stop();
    }
}

fn fresh_queues(device: &dyn Device) -> Vec<QueueState> {
    let fresh = |&max_size: &u16| QueueState {
        max_size,
        size: max_size,
        ..QueueState::default()
    };
    device.queue_sizes().iter().map(fresh).collect()
}
