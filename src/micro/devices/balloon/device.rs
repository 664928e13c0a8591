//! The balloon as its driver finds it, and its size as others see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::PAGE;
use super::persist::State;
use super::queue::{Balloon as Handler, Role, Served};
use crate::micro::devices::DeviceState;
use crate::micro::notice::Fault;
use crate::micro::virtio::device::{Activation, Device, Placed};
use crate::units::ByteSize;

/// The driver takes pages out of the balloon before its kernel kills a process for want of them
/// (virtio 1.2, 5.5.3).
const DEFLATE_ON_OOM: u64 = 1 << 2;

/// The driver tells which pages are free for now.
const REPORTING: u64 = 1 << 5;

/// Inflate, deflate, and reporting, which is number 4 by virtio 1.2 (5.5.2) and 2 by every Linux up to
/// 6.10: it does not count queues whose features are not offered, here statistics and hints. So each
/// number from 2 on is the reporting queue, and no driver sets up more than one of them. 128 is what
/// others offer; Linux has one request under way in each.
const QUEUE_SIZES: [u16; 5] = [128; 5];

/// Pages of 2 MiB.
const HUGE_PAGE: u64 = 2 << 20;

/// A balloon device.
#[derive(Debug)]
pub(crate) struct Balloon {
    size: Arc<Size>,
    page: u64,
}

/// A balloon's size, to be seen by any thread.
#[derive(Debug)]
pub(crate) struct Size {
    /// Pages of 4 KiB, as it is to be.
    target: u32,
    /// Pages of 4 KiB, as the driver said that it is.
    actual: AtomicU32,
}

impl Size {
    /// How much memory the guest is to do without.
    pub(crate) fn target(&self) -> ByteSize {
        ByteSize::from_bytes(PAGE * u64::from(self.target))
    }

    /// How much memory the guest does without, as its driver says.
    pub(crate) fn actual(&self) -> ByteSize {
        ByteSize::from_bytes(PAGE * u64::from(self.actual.load(Ordering::SeqCst)))
    }
}

impl Balloon {
    /// A balloon that is to have the size `target` from the guest's boot on, in RAM of 2 MiB pages or
    /// not; or as it was saved.
    pub(crate) fn new(target: ByteSize, hugepages: bool, saved: Option<&State>) -> Self {
        let fresh = State {
            target: pages(target),
            actual: 0,
        };
        let state = saved.unwrap_or(&fresh);
        let size = Size {
            target: state.target,
            actual: AtomicU32::new(state.actual),
        };
        Self {
            size: Arc::new(size),
            page: if hugepages { HUGE_PAGE } else { PAGE },
        }
    }

    /// Its size, for those who show it while the transport has the device.
    pub(crate) fn size(&self) -> Arc<Size> {
        Arc::clone(&self.size)
    }

    fn state(&self) -> State {
        State {
            target: self.size.target,
            actual: self.size.actual.load(Ordering::SeqCst),
        }
    }
}

impl Device for Balloon {
    fn name(&self) -> &str {
        "balloon"
    }

    fn kind(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn features(&self) -> u64 {
        let ring = 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
        ring | DEFLATE_ON_OOM | REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Vec<u8> {
        let State { target, actual } = self.state();
        [target.to_le_bytes(), actual.to_le_bytes()].concat()
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (4, Ok(actual)) = (offset, <[u8; 4]>::try_from(data)) {
            let actual = u32::from_le_bytes(actual);
            self.size.actual.store(actual, Ordering::SeqCst);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Placed>, Fault> {
        let Activation {
            memory,
            features,
            queues,
            interrupt,
            notices,
        } = activation;
        let served = queues.into_iter().filter_map(|active| {
            let role = match active.index {
                0 => Role::Inflate,
                1 => Role::Deflate,
                _ if features & REPORTING != 0 => Role::Report,
                _ => return None,
            };
            Some(Served { active, role })
        });
        let handler = Handler {
            queues: served.collect(),
            memory,
            page: self.page,
            interrupt,
            notices,
            refused: false,
        };
        let handler = Box::new(handler);
        Ok(vec![Placed { lane: 0, handler }])
    }

    fn reset(&mut self) {
        // A guest that boots anew has all its memory.
        self.size.actual.store(0, Ordering::SeqCst);
    }

    fn save(&self) -> DeviceState {
        DeviceState::Balloon(self.state())
    }
}

fn pages(size: ByteSize) -> u32 {
    u32::try_from(size.bytes() / PAGE).unwrap_or(u32::MAX)
}
