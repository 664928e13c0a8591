//! The rings: packets from descriptors to the muxer and back.
//!
//! ```text
//! tx kick ──┐                         ┌─ take_packet: one of queue 1, while the muxer listens
//! rx kick ──┼─▶ process ─▶ serve ─────┤
//! sockets ──┘   BUDGET rounds at most └─ give_packet: into a buffer of queue 0
//! event kick ─▶ TRANSPORT_RESET, once after a restore
//! ```
//! Invariant: no chain is held between events, so there is nothing to quiesce.

use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;

use super::muxer::Muxer;
use super::packet::{HEADER, Header, PAYLOAD_MAX, op};
use crate::micro::notice::{Fault, Notice, Notices, Problem};
use crate::micro::virtio::chain::{Chain, Limits};
use crate::micro::virtio::device::{ActiveQueue, QueueHandler};
use crate::micro::virtio::interrupt::Interrupt;

/// Rounds until other devices of the lane have their turn.
const BUDGET: usize = 128;

/// Chains may be as large as the driver likes: only what a packet needs is read or written.
const LIMITS: Limits = Limits {
    pieces: 256,
    bytes: u32::MAX,
};

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`: all connections are gone (virtio 1.2, 5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// The events of a handler; a kick's is its queue's index.
const SOCKETS: u32 = 3;

/// Serves all queues of a vsock device.
#[derive(Debug)]
pub(super) struct Queues {
    pub(super) device: String,
    pub(super) memory: GuestMemoryMmap,
    pub(super) rx: ActiveQueue,
    pub(super) tx: ActiveQueue,
    pub(super) events: ActiveQueue,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) notices: Notices,
    pub(super) muxer: Muxer,
    pub(super) owes_reset: bool,
    /// A payload on its way; made when it is needed.
    pub(super) buffer: Vec<u8>,
}

impl Queues {
    /// Moves packets both ways until neither goes on, or others should have their turn.
    fn serve(&mut self) -> Result<(), Problem> {
        let mut used = self.tell_reset()?;
        let mut moved = true;
        for _ in 0..BUDGET {
            moved = self.take_packet()? | self.give_packet()?;
            used |= moved;
            if !moved {
                break;
            }
        }
        if moved {
            // An eventfd refuses only when its counter is full, and then it is readable already.
            let _ = self.rx.kick.write(1);
        }
        if used {
            self.interrupt.used();
        }
        Ok(())
    }

    /// Takes a packet from the guest, if there is one.
    fn take_packet(&mut self) -> Result<bool, Problem> {
        if !self.muxer.listens() {
            return Ok(false);
        }
        let index = self.tx.index;
        let Some(chain) = Chain::next(&mut self.tx.queue, &self.memory, index, LIMITS)? else {
            return Ok(false);
        };
        let mut header = [0; HEADER];
        if chain.readable.read(&self.memory, 0, &mut header) < HEADER {
            return Err(Problem::Request {
                queue: index,
                what: "shorter than a header",
            });
        }
        let header = Header::parse(&header);
        let payload = read_payload(&chain, &self.memory, &header, &mut self.buffer);
        self.muxer.receive(&header, payload);
        use_chain(&mut self.tx.queue, &self.memory, index, chain.head, 0)?;
        Ok(true)
    }

    /// Gives the guest a packet, if there is one and it has a buffer.
    fn give_packet(&mut self) -> Result<bool, Problem> {
        if !self.muxer.is_ready() {
            return Ok(false);
        }
        let index = self.rx.index;
        let Some(chain) = Chain::next(&mut self.rx.queue, &self.memory, index, LIMITS)? else {
            return Ok(false);
        };
        let room = usize::try_from(chain.writable.length()).unwrap_or(usize::MAX);
        let Some(room @ 1..) = room.checked_sub(HEADER) else {
            return Err(Problem::Request {
                queue: index,
                what: "without room for a packet",
            });
        };
        self.buffer.resize(PAYLOAD_MAX, 0);
        let room = room.min(PAYLOAD_MAX);
        let Some(header) = self.muxer.transmit(&mut self.buffer[..room]) else {
            // There was none after all: the buffer is still the next one.
            let next = self.rx.queue.next_avail();
            self.rx.queue.set_next_avail(next.wrapping_sub(1));
            return Ok(false);
        };
        let payload = &self.buffer[..header.len as usize];
        let mut written = chain.writable.write(&self.memory, 0, &header.bytes());
        written += chain.writable.write(&self.memory, HEADER as u64, payload);
        use_chain(&mut self.rx.queue, &self.memory, index, chain.head, written)?;
        Ok(true)
    }

    /// Tells a restored guest that its connections are gone.
    fn tell_reset(&mut self) -> Result<bool, Problem> {
        if !self.owes_reset {
            return Ok(false);
        }
        let index = self.events.index;
        let queue = &mut self.events.queue;
        let Some(chain) = Chain::next(queue, &self.memory, index, LIMITS)? else {
            return Ok(false);
        };
        let written = chain.writable.write(&self.memory, 0, &TRANSPORT_RESET);
        if written < TRANSPORT_RESET.len() {
            return Err(Problem::Request {
                queue: index,
                what: "without room for an event",
            });
        }
        use_chain(queue, &self.memory, index, chain.head, written)?;
        self.owes_reset = false;
        Ok(true)
    }

    fn watched(&self) -> [Events; 4] {
        let kick = |queue: &ActiveQueue| {
            Events::with_data(&queue.kick, u32::from(queue.index), EventSet::IN)
        };
        let sockets = Events::with_data(&self.muxer.events(), SOCKETS, EventSet::IN);
        [kick(&self.rx), kick(&self.tx), kick(&self.events), sockets]
    }

    fn fail(&self, problem: Problem, ops: &mut EventOps<'_>) {
        for events in self.watched() {
            // What was never added needs no removal.
            let _ = ops.remove(events);
        }
        self.notices.tell(Notice::Fault(Fault {
            device: self.device.clone(),
            problem,
        }));
    }
}

/// The payload of a packet: nothing if there cannot be one so long.
fn read_payload<'a>(
    chain: &Chain,
    memory: &GuestMemoryMmap,
    header: &Header,
    buffer: &'a mut Vec<u8>,
) -> Option<&'a [u8]> {
    if header.op != op::DATA {
        return Some(&[]);
    }
    let length = usize::try_from(header.len).ok()?;
    if length > PAYLOAD_MAX {
        return None;
    }
    buffer.resize(PAYLOAD_MAX, 0);
    let payload = &mut buffer[..length];
    let read = chain.readable.read(memory, HEADER as u64, payload);
    (read == length).then_some(payload)
}

fn use_chain(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    index: u16,
    head: u16,
    written: usize,
) -> Result<(), Problem> {
    // No longer than a packet.
    let written = u32::try_from(written).unwrap_or(0);
    queue
        .add_used(memory, head, written)
        .map_err(|source| Problem::Queue {
            queue: index,
            source,
        })
}

impl MutEventSubscriber for Queues {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for events in self.watched() {
            if let Err(error) = ops.add(events) {
                let source = std::io::Error::other(error.to_string());
                let operation = "watch the queues of a vsock device";
                return self.fail(Problem::Host { operation, source }, ops);
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let kicked = [&self.rx, &self.tx, &self.events];
        match kicked
            .iter()
            .find(|queue| u32::from(queue.index) == events.data())
        {
            // Empty only if it was read already, and then looking once more does no harm.
            Some(queue) => drop(queue.kick.read()),
            None => self.muxer.serve_sockets(),
        }
        if let Err(problem) = self.serve() {
            self.fail(problem, ops);
        }
    }
}

impl QueueHandler for Queues {
    fn quiesce(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn queues(&self) -> Vec<(u16, QueueState)> {
        let queues = [&self.rx, &self.tx, &self.events];
        queues
            .map(|queue| (queue.index, queue.queue.state()))
            .to_vec()
    }
}

#[cfg(test)]
mod tests;
