//! The device: one queue, nothing to configure.

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::queue::RngQueue;
use crate::micro::devices::DeviceState;
use crate::micro::notice::Fault;
use crate::micro::virtio::device::{Activation, Device, Placed};

/// Linux keeps one request under way at a time.
const QUEUE_SIZE: u16 = 16;

/// What people call it.
pub(super) const NAME: &str = "random number generator";

/// The random number generator.
#[derive(Debug, Default)]
pub(crate) struct Rng;

impl Device for Rng {
    fn name(&self) -> &str {
        NAME
    }

    fn kind(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Placed>, Fault> {
        let place = |queue| Placed {
            lane: 0,
            handler: Box::new(RngQueue {
                active: queue,
                memory: activation.memory.clone(),
                interrupt: activation.interrupt.clone(),
                notices: activation.notices.clone(),
            }),
        };
        Ok(activation.queues.into_iter().map(place).collect())
    }

    fn save(&self) -> DeviceState {
        DeviceState::Nothing
    }
}
