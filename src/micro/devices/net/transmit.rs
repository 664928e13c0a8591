//! Frames from the guest to the TAP device.

use std::ops::RangeInclusive;
use std::sync::Arc;

use virtio_queue::{Error, Queue, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::ring::{self, Used};
use super::segments::{LIMITS, Segments};
use super::tap::{Attachment, TapQueue};
use super::{ETHERNET_HEADER, FRAMES_PER_EVENT, HEADER, MAX_FRAME, Pause};
use crate::micro::notice::Problem;
use crate::micro::virtio::chain::Chain;
use crate::micro::virtio::device::ActiveQueue;
use crate::micro::virtio::interrupt::Interrupt;

/// Lengths of frames with their headers; others are dropped.
const FRAME: RangeInclusive<u64> = (HEADER + ETHERNET_HEADER) as u64..=MAX_FRAME as u64;

/// The transmit queue of a pair.
#[derive(Debug)]
pub(super) struct Sender {
    index: u16,
    queue: Queue,
    kick: EventFd,
    memory: GuestMemoryMmap,
    interrupt: Arc<Interrupt>,
    tap: Arc<TapQueue>,
    segments: Segments,
    /// End of the used ring when the driver was last told of it.
    told: u16,
}

impl Sender {
    pub(super) fn new(
        active: ActiveQueue,
        memory: GuestMemoryMmap,
        interrupt: Arc<Interrupt>,
        tap: Arc<TapQueue>,
    ) -> Self {
        Self {
            index: active.index,
            told: active.queue.next_used(),
            queue: active.queue,
            kick: active.kick,
            memory,
            interrupt,
            tap,
            segments: Segments::default(),
        }
    }

    /// Moves frames while the driver has some and its share lasts.
    pub(super) fn work(&mut self) -> Result<Pause, Problem> {
        let tap = Arc::clone(&self.tap);
        let pause = self.move_frames(&tap.hold())?;
        let told = &mut self.told;
        let wanted = ring::wants_interrupt(&self.queue, &self.memory, told);
        if wanted.map_err(|source| self.broken(source))? {
            self.interrupt.used();
        }
        Ok(pause)
    }

    /// What the driver writes to.
    pub(super) fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Where the queue stands.
    pub(super) fn state(&self) -> (u16, QueueState) {
        (self.index, self.queue.state())
    }

    fn move_frames(&mut self, tap: &Attachment<'_>) -> Result<Pause, Problem> {
        let queue = self.index;
        let broken = |source| Problem::Queue { queue, source };
        self.queue
            .disable_notification(&self.memory)
            .map_err(broken)?;
        for _ in 0..FRAMES_PER_EVENT {
            let chain = Chain::next(&mut self.queue, &self.memory, queue, LIMITS)?;
            let Some(chain) = chain else {
                let more = self.queue.enable_notification(&self.memory);
                if more.map_err(broken)? {
                    continue;
                }
                return Ok(Pause::Idle);
            };
            if chain.writable.length() != 0 {
                let what = "to send that is to be written";
                return Err(Problem::Request { queue, what });
            }
            let sensible = FRAME.contains(&chain.readable.length());
            if sensible && tap.is_attached() {
                self.send(&chain, tap)?;
            }
            let (head, length) = (chain.head, 0);
            ring::publish(&mut self.queue, &self.memory, &[Used { head, length }])
                .map_err(broken)?;
        }
        Ok(Pause::Share)
    }

    /// Sends a frame. One that the kernel refuses, for its header or because the
    /// device is down or busy, is lost.
    fn send(&mut self, chain: &Chain, tap: &Attachment<'_>) -> Result<(), Problem> {
        self.segments.clear();
        self.segments.add(&chain.readable.iovecs(&self.memory));
        match tap.send(&self.segments) {
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Err(Problem::Host {
                operation: "read a frame from the guest's memory",
                source: error,
            }),
            Err(error) => {
                tracing::trace!(queue = self.index, %error, "the TAP device refused a frame");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    fn broken(&self, source: Error) -> Problem {
        let queue = self.index;
        Problem::Queue { queue, source }
    }
}
