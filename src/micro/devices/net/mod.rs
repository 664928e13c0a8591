//! The network interface: frames between a guest's virtio-net driver and a TAP device.
//!
//! ```text
//!                     ┌ Pair 0, lane 0 ┐  readv, writev of guest memory   ┌ TAP queue 0 ┐
//!  receive 0, send 0 ─┤ Pair 1, lane 1 ├──────────────────────────────────┤ TAP queue 1 ├─▶ redirect, veth
//!  receive 1, send 1  └ …              ┘                                  └ …           ┘
//!  control ───────────── Control, lane 0 ── pairs in use, offloads ── TUNSETQUEUE, TUNSETOFFLOAD
//! ```
//! Source: virtio 1.2, section 5.1; Documentation/networking/tuntap of Linux.
//! Invariants: a TAP queue is attached exactly while its pair is in use, so the kernel gives no frame
//! to a queue that the guest does not read. What a frame's header asks for is checked by the kernel;
//! frames that it refuses are dropped, as a wire would.

mod control;
pub(crate) mod device;
pub(crate) mod persist;
mod queue;
mod receive;
mod ring;
mod segments;
pub(crate) mod tap;
mod transmit;

#[cfg(test)]
mod tests;

/// The header before each frame: `virtio_net_hdr_v1` (virtio 1.2, 5.1.6).
const HEADER: usize = 12;

/// An Ethernet header; no frame is shorter.
const ETHERNET_HEADER: usize = 14;

/// The largest frame with its header: what a driver that takes offloads has room for (5.1.6.3.1).
const MAX_FRAME: usize = 65_562;

/// Frames that a queue moves at one event before the others of its lane have their turn. A lane thus
/// works for at most some 4 MiB, about a millisecond, on one queue.
const FRAMES_PER_EVENT: usize = 64;

/// Why a queue stopped moving frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// There is nothing to do until the next event.
    Idle,
    /// It had its share.
    Share,
}
