//! What threads of a VM tell the thread that looks after it.

use std::io;
use std::sync::mpsc::Sender;

/// Something that concerns the whole VM.
#[derive(Debug)]
pub(crate) enum Notice {
    /// The guest reset itself, or its watchdog did.
    Reset,
    /// The guest powered itself off.
    PowerOff,
    /// The guest's kernel panicked.
    Panicked,
    /// A device cannot go on.
    Fault(Fault),
    /// A vCPU cannot go on.
    VcpuFailed {
        /// Its number.
        vcpu: u32,
        /// What KVM said.
        why: String,
    },
    /// cocoon or a signal asks for the end.
    PowerOffAsked,
}

/// Where notices go. Sending fails only when the VM is over, and is then of no interest.
#[derive(Clone, Debug)]
pub(crate) struct Notices(Sender<Notice>);

impl Notices {
    /// Notices to the receiver of `sender`.
    pub(crate) fn new(sender: Sender<Notice>) -> Self {
        Self(sender)
    }

    /// Tells.
    pub(crate) fn tell(&self, notice: Notice) {
        // As above: nobody is left to be told.
        let _ = self.0.send(notice);
    }
}

/// A device that cannot go on: the VM is stopped with this as its reason.
#[derive(Debug, thiserror::Error)]
#[error("{device} cannot go on")]
pub(crate) struct Fault {
    /// The device, as people know it: `disk cocoon-cow`, `nic tap0`.
    pub(crate) device: String,
    /// Why.
    #[source]
    pub(crate) problem: Problem,
}

/// Why a device cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    /// The driver made a ring that is none.
    #[error("the guest's driver broke queue {queue}")]
    Queue {
        /// Index of the queue.
        queue: u16,
        /// How.
        #[source]
        source: virtio_queue::Error,
    },
    /// The driver made a request that no device could serve, nor answer.
    #[error("the guest's driver made a request {what} on queue {queue}")]
    Request {
        /// Index of the queue.
        queue: u16,
        /// The rest of the sentence, such as "without a status byte".
        what: &'static str,
    },
    /// The host failed the device.
    #[error("the host failed to {operation}")]
    Host {
        /// The rest of the sentence.
        operation: &'static str,
        /// How.
        #[source]
        source: io::Error,
    },
}
