//! What a virtio device is, to its transport and to the threads that serve it.
//!
//! ```text
//! Device          registers and configuration; behind the transport's lock, asked by vCPU threads
//! QueueHandler    serves some of its queues; owned by one lane (an I/O thread), asked by no one else
//! ```
//! Invariants: a device has handlers only between `activate` and `reset`. All that comes from the
//! guest is checked where it is read; a driver that breaks the rules is a [`Fault`], never a panic.

use std::fmt::Debug;
use std::sync::Arc;

use event_manager::MutEventSubscriber;
use virtio_queue::{Queue, QueueState};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::Interrupt;
use crate::micro::devices::DeviceState;
use crate::micro::notice::{Fault, Notices};

/// One virtio device.
pub(crate) trait Device: Send + Debug {
    /// What people call it: `disk cocoon-cow`.
    fn name(&self) -> &str;

    /// Its type (virtio 1.2, section 5).
    fn kind(&self) -> u32;

    /// Features it offers. The transport adds `VIRTIO_F_VERSION_1`.
    fn features(&self) -> u64;

    /// How many queues it has, and how long each may be: a power of 2.
    fn queue_sizes(&self) -> &[u16];

    /// What the guest reads in its configuration space; what lies beyond reads as zero.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// The guest writes to its configuration space; what may not be written is ignored.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Whether the configuration is another one than that with which the device was saved, so that a
    /// driver which knows that one must be told.
    fn has_changed(&self) -> bool {
        false
    }

    /// The driver is ready: the device begins, or goes on after a restore.
    ///
    /// # Errors
    /// It cannot; the VM is stopped.
    fn activate(&mut self, activation: Activation) -> Result<Vec<Placed>, Fault>;

    /// The driver reset the device; its handlers are gone already.
    fn reset(&mut self) {}

    /// What a restored device must know beyond its queues and what `VmSpec` tells.
    fn save(&self) -> DeviceState;
}

/// What an active device works with.
#[derive(Debug)]
pub(crate) struct Activation {
    /// Guest RAM. Cloning it shares the mapping.
    pub(crate) memory: GuestMemoryMmap,
    /// Features that the driver accepted, a subset of those offered.
    pub(crate) features: u64,
    /// The queues that the driver made ready, each checked to lie in RAM, by ascending index.
    pub(crate) queues: Vec<ActiveQueue>,
    /// Shared with the transport.
    pub(crate) interrupt: Arc<Interrupt>,
    /// Where faults go.
    pub(crate) notices: Notices,
}

/// A queue that the driver made ready.
#[derive(Debug)]
pub(crate) struct ActiveQueue {
    /// Its number in the device.
    pub(crate) index: u16,
    /// The ring.
    pub(crate) queue: Queue,
    /// Readable when the driver has made buffers available; not blocking.
    pub(crate) kick: EventFd,
}

/// Serves some queues of a device, on a lane. `init` says what is to be watched; `process` does what
/// can be done without waiting. After a fault it tells the notices once, and removes its events.
pub(crate) trait QueueHandler: MutEventSubscriber + Send + Debug {
    /// Completes all requests that are under way: afterwards nothing of this handler touches guest
    /// memory, until the next event.
    ///
    /// # Errors
    /// A request failed in a way that cannot be told to the driver.
    fn quiesce(&mut self) -> Result<(), Fault>;

    /// Its queues' positions, by index.
    fn queues(&self) -> Vec<(u16, QueueState)>;
}

/// A handler and the lane it is for: by convention queue `i` (or pair `i`) is for lane `i`, so that
/// each vCPU has an I/O thread of its own. Lanes beyond the last are counted around.
#[derive(Debug)]
pub(crate) struct Placed {
    /// Number of the lane.
    pub(crate) lane: usize,
    /// The handler.
    pub(crate) handler: Box<dyn QueueHandler>,
}
