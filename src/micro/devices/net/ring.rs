//! The used side of a ring: many buffers published at once, and whether the driver wants to know.
//!
//! ```text
//! used ring   … │ head, length │ head, length │ head, length │      all written,
//!     index ────┘──────────────────────────────────────────▶ ┘      then one store
//! ```
//! virtio-queue publishes one buffer at a time; a driver that sees the first buffer of a frame and not
//! yet the others would take the frame for broken. It also knows no `VRING_AVAIL_F_NO_INTERRUPT`.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// A buffer of the driver that the device is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Used {
    /// First descriptor.
    pub(super) head: u16,
    /// Bytes that the device wrote.
    pub(super) length: u32,
}

/// Publishes all of `used` at once.
pub(super) fn publish(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    used: &[Used],
) -> Result<(), Error> {
    let Some((last, others)) = used.split_last() else {
        return Ok(());
    };
    let mut next = Wrapping(queue.next_used());
    for Used { head, length } in others {
        let slot = next.0 % queue.size();
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(*head).to_le_bytes());
        element[4..].copy_from_slice(&length.to_le_bytes());
        let address = at(queue.used_ring(), 4 + 8 * u64::from(slot))?;
        memory
            .write_slice(&element, address)
            .map_err(Error::GuestMemory)?;
        next += 1;
    }
    queue.set_next_used(next.0);
    queue.add_used(memory, last.head, last.length)
}

/// Whether the driver wants an interrupt for what was published after `told`, which becomes the end
/// of the ring (virtio 1.2, 2.7.10).
pub(super) fn wants_interrupt(
    queue: &Queue,
    memory: &GuestMemoryMmap,
    told: &mut u16,
) -> Result<bool, Error> {
    let before = Wrapping(std::mem::replace(told, queue.next_used()));
    let now = Wrapping(queue.next_used());
    if now == before {
        return Ok(false);
    }
    // The driver must have seen what was published before it is asked what it wants.
    fence(Ordering::SeqCst);
    let load = |offset| {
        let address = at(queue.avail_ring(), offset)?;
        let value: u16 = memory
            .load(address, Ordering::Relaxed)
            .map_err(Error::GuestMemory)?;
        Ok(u16::from_le(value))
    };
    if queue.event_idx_enabled() {
        let event = Wrapping(load(4 + 2 * u64::from(queue.size()))?);
        Ok(now - event - Wrapping(1) < now - before)
    } else {
        Ok(u32::from(load(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}

fn at(ring: u64, offset: u64) -> Result<GuestAddress, Error> {
    let address = ring.checked_add(offset).ok_or(Error::AddressOverflow)?;
    Ok(GuestAddress(address))
}
