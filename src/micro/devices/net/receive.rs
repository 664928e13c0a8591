//! Frames from the TAP device to the guest.
//!
//! ```text
//! available chains ─▶ ready: room for the largest frame ─▶ readv ─┬─ fits: publish the chains it filled
//!                                              + overflow buffer  └─ does not: the rest is in the
//!                                                                    overflow, until the driver gives more
//! ```
//! With `VIRTIO_NET_F_MRG_RXBUF` a frame fills as many chains as it needs; without, exactly one, and
//! a frame that is larger than the driver's chain is dropped.
//! Invariant: chains in `ready` are taken from the ring and not yet given back; [`Receiver::give_back`]
//! undoes that. A frame held in the overflow has its beginning in `ready`.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use virtio_queue::{Error, Queue, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::ring::{self, Used};
use super::segments::{LIMITS, Segments};
use super::tap::{Attachment, TapQueue};
use super::{ETHERNET_HEADER, FRAMES_PER_EVENT, HEADER, MAX_FRAME, Pause};
use crate::micro::notice::Problem;
use crate::micro::virtio::chain::{Buffers, Chain};
use crate::micro::virtio::device::ActiveQueue;
use crate::micro::virtio::interrupt::Interrupt;

/// Where `num_buffers` stands in the header (virtio 1.2, 5.1.6).
const NUM_BUFFERS: usize = 10;

/// The receive queue of a pair.
#[derive(Debug)]
pub(super) struct Receiver {
    index: u16,
    queue: Queue,
    kick: EventFd,
    memory: GuestMemoryMmap,
    interrupt: Arc<Interrupt>,
    tap: Arc<TapQueue>,
    room: Room,
    ready: VecDeque<Ready>,
    segments: Segments,
    ready_bytes: usize,
    overflow: Box<[u8]>,
    held: Option<Held>,
    /// End of the used ring when the driver was last told of it.
    told: u16,
    /// The TAP device has failed, and that was logged.
    failing: bool,
}

/// Room that is gathered before a frame is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// One chain.
    OneChain,
    /// Chains of so many bytes in total, where the driver has as many (`VIRTIO_NET_F_MRG_RXBUF`).
    Bytes(usize),
}

/// A chain that was taken from the ring for the next frames.
#[derive(Debug)]
struct Ready {
    head: u16,
    /// How many of `segments` are its.
    pieces: usize,
    bytes: usize,
    buffers: Buffers,
}

/// A frame whose end is in the overflow and waits for more room.
#[derive(Clone, Copy, Debug)]
struct Held {
    length: usize,
    /// Bytes that are in the driver's chains already.
    filled: usize,
}

impl Receiver {
    pub(super) fn new(
        active: ActiveQueue,
        memory: GuestMemoryMmap,
        interrupt: Arc<Interrupt>,
        tap: Arc<TapQueue>,
        room: Room,
    ) -> Self {
        Self {
            index: active.index,
            told: active.queue.next_used(),
            queue: active.queue,
            kick: active.kick,
            memory,
            interrupt,
            tap,
            room,
            ready: VecDeque::new(),
            segments: Segments::default(),
            ready_bytes: 0,
            overflow: vec![0; MAX_FRAME].into(),
            held: None,
            failing: false,
        }
    }

    /// Moves frames while there are some, the driver has room, and its share lasts.
    pub(super) fn work(&mut self) -> Result<Pause, Problem> {
        let tap = Arc::clone(&self.tap);
        let tap = tap.hold();
        if !tap.is_attached() {
            return Ok(Pause::Idle);
        }
        let pause = self.move_frames(&tap)?;
        let told = &mut self.told;
        let wanted = ring::wants_interrupt(&self.queue, &self.memory, told);
        if wanted.map_err(|source| self.broken(source))? {
            self.interrupt.used();
        }
        Ok(pause)
    }

    /// Puts chains that no frame has filled back into the ring, and forgets a frame that was waiting
    /// for more of them.
    pub(super) fn give_back(&mut self) {
        self.queue.set_next_avail(self.next_avail());
        self.ready.clear();
        self.segments.clear();
        self.ready_bytes = 0;
        self.held = None;
    }

    /// What the driver writes to.
    pub(super) fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Where the queue stands.
    pub(super) fn state(&self) -> (u16, QueueState) {
        let mut state = self.queue.state();
        state.next_avail = self.next_avail();
        (self.index, state)
    }

    fn next_avail(&self) -> u16 {
        // A ring has at most 32,768 chains.
        let ready = u16::try_from(self.ready.len()).unwrap_or(0);
        self.queue.next_avail().wrapping_sub(ready)
    }

    fn move_frames(&mut self, tap: &Attachment<'_>) -> Result<Pause, Problem> {
        let failed = self.queue.disable_notification(&self.memory);
        failed.map_err(|source| self.broken(source))?;
        for _ in 0..FRAMES_PER_EVENT {
            if !self.gather()? {
                let more = self.queue.enable_notification(&self.memory);
                if more.map_err(|source| self.broken(source))? {
                    continue;
                }
                return Ok(Pause::Idle);
            }
            let length = match self.held.take() {
                Some(held) => {
                    let rest = &self.overflow[..held.length - held.filled];
                    self.write(held.filled, rest);
                    held.length
                }
                None => match self.take_frame(tap)? {
                    Some(length) => length,
                    None => return Ok(Pause::Idle),
                },
            };
            self.place(length)?;
        }
        Ok(Pause::Share)
    }

    /// Gathers room for the next frame; whether there is enough.
    fn gather(&mut self) -> Result<bool, Problem> {
        self.take_chains()?;
        if let Some(held) = self.held {
            if self.ready_bytes >= held.length {
                return Ok(true);
            }
            if self.ready.len() < usize::from(self.queue.size()) && self.segments.has_room() {
                return Ok(false);
            }
            tracing::debug!(queue = self.index, "a frame is larger than all of the ring");
            self.held = None;
        }
        Ok(!self.ready.is_empty())
    }

    fn take_chains(&mut self) -> Result<(), Problem> {
        let queue = self.index;
        let wanted = match (self.room, self.held) {
            (Room::OneChain, _) => 1,
            (Room::Bytes(bytes), None) => bytes,
            (Room::Bytes(_), Some(held)) => held.length,
        };
        while self.ready_bytes < wanted && self.segments.has_room() {
            let chain = Chain::next(&mut self.queue, &self.memory, queue, LIMITS)?;
            let Some(chain) = chain else {
                return Ok(());
            };
            let what = match as_bytes(chain.writable.length()) {
                _ if chain.readable.length() != 0 => "to receive that is to be read",
                ..HEADER => "without room for a header",
                bytes => {
                    self.add(chain, bytes);
                    continue;
                }
            };
            return Err(Problem::Request { queue, what });
        }
        Ok(())
    }

    fn add(&mut self, chain: Chain, bytes: usize) {
        let pieces = chain.writable.iovecs(&self.memory);
        self.ready_bytes += bytes;
        self.ready.push_back(Ready {
            head: chain.head,
            pieces: self.segments.add(&pieces),
            bytes,
            buffers: chain.writable,
        });
    }

    /// Writes into what is ready, from the byte `from` on.
    fn write(&self, mut from: usize, mut bytes: &[u8]) {
        for chain in &self.ready {
            if from < chain.bytes {
                let written = chain.buffers.write(&self.memory, from as u64, bytes);
                bytes = &bytes[written..];
            }
            from = from.saturating_sub(chain.bytes);
        }
    }

    /// Takes a frame into what is ready and the overflow; its length, or none where there is none.
    fn take_frame(&mut self, tap: &Attachment<'_>) -> Result<Option<usize>, Problem> {
        let taken = self
            .segments
            .with_overflow(&mut self.overflow, |all| tap.receive(all));
        match taken {
            // The end of a socket in a TAP device's place.
            Ok(0) => Ok(None),
            Ok(length) => {
                self.failing = false;
                Ok(Some(length))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Err(Problem::Host {
                operation: "write a frame to the guest's memory",
                source: error,
            }),
            // As a wire that is cut: the guest goes on, and so does the device once it is mended.
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(queue = self.index, %error, "cannot read from the TAP device");
                }
                Ok(None)
            }
        }
    }

    /// Gives the driver a frame that was taken, or holds or drops what does not fit.
    fn place(&mut self, length: usize) -> Result<(), Problem> {
        if length < HEADER + ETHERNET_HEADER || length >= self.ready_bytes + self.overflow.len() {
            tracing::debug!(queue = self.index, length, "dropped a frame that is none");
            return Ok(());
        }
        if length <= self.ready_bytes {
            return self.publish(length);
        }
        match self.room {
            Room::OneChain => {
                tracing::debug!(
                    queue = self.index,
                    length,
                    "dropped: the driver has no room"
                );
            }
            Room::Bytes(_) => {
                let filled = self.ready_bytes;
                self.held = Some(Held { length, filled });
            }
        }
        Ok(())
    }

    /// Publishes the chains that a frame of `length` bytes fills.
    fn publish(&mut self, length: usize) -> Result<(), Problem> {
        let (mut chains, mut pieces, mut bytes) = (0, 0, 0);
        for chain in &self.ready {
            chains += 1;
            pieces += chain.pieces;
            bytes += chain.bytes;
            if bytes >= length {
                break;
            }
        }
        // No more than the ring has.
        let count = u16::try_from(chains).unwrap_or(u16::MAX);
        self.write(NUM_BUFFERS, &count.to_le_bytes());
        let mut left = length;
        let used: Vec<_> = self
            .ready
            .drain(..chains)
            .map(|chain| {
                let part = left.min(chain.bytes);
                left -= part;
                Used {
                    head: chain.head,
                    // No more than `MAX_FRAME`.
                    length: u32::try_from(part).unwrap_or(u32::MAX),
                }
            })
            .collect();
        self.segments.remove_first(pieces);
        self.ready_bytes -= bytes;
        ring::publish(&mut self.queue, &self.memory, &used).map_err(|source| self.broken(source))
    }

    fn broken(&self, source: Error) -> Problem {
        let queue = self.index;
        Problem::Queue { queue, source }
    }
}

/// A length within [`LIMITS`], which any machine can count.
fn as_bytes(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}
