//! The control queue: what the driver sets while the interface is in use.
//!
//! ```text
//! readable  class, command, data …      writable  ack: 0 done, 1 not
//! ```
//! Source: virtio 1.2, section 5.1.6.5. A command that makes no sense is answered with 1, one without
//! room for an answer is a `Fault`. The TAP device gives the guest all frames of its link, so every
//! filter that a driver may ask for is a wish that needs no work: its network stack drops the rest.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI,
    VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_MQ, VIRTIO_NET_OK,
};
use virtio_queue::{Error, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::device::Shared;
use super::queue::add;
use super::ring::{self, Used};
use super::segments::LIMITS;
use crate::micro::bus::lock;
use crate::micro::notice::{Fault, Notice, Notices, Problem};
use crate::micro::virtio::chain::Chain;
use crate::micro::virtio::device::{ActiveQueue, QueueHandler};
use crate::micro::virtio::interrupt::Interrupt;

/// Commands at one event; more than a driver ever has under way.
const COMMANDS_PER_EVENT: usize = 16;

/// Bytes of data that any command has which this device looks at.
const MAX_DATA: usize = 8;

/// The control queue.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) device: String,
    pub(super) active: ActiveQueue,
    pub(super) memory: GuestMemoryMmap,
    pub(super) features: u64,
    pub(super) shared: Arc<Shared>,
    /// The receive queues by pair: one that comes into use begins to watch its TAP queue.
    pub(super) wake: Vec<EventFd>,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) notices: Notices,
    /// End of the used ring when the driver was last told of it.
    pub(super) told: u16,
}

/// A command that is answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refused;

impl Control {
    pub(super) fn work(&mut self) -> Result<(), Problem> {
        // Empty when another event has taken it.
        let _ = self.active.kick.read();
        for _ in 0..COMMANDS_PER_EVENT {
            if !self.serve_next()? {
                return self.tell();
            }
        }
        // The rest has its turn after the others of this lane; a full counter is an event, too.
        let _ = self.active.kick.write(1);
        self.tell()
    }

    fn tell(&mut self) -> Result<(), Problem> {
        let told = &mut self.told;
        let wanted = ring::wants_interrupt(&self.active.queue, &self.memory, told);
        if wanted.map_err(|source| self.broken(source))? {
            self.interrupt.used();
        }
        Ok(())
    }

    /// Serves one command; false when there is none.
    fn serve_next(&mut self) -> Result<bool, Problem> {
        let queue = self.active.index;
        let broken = |source| Problem::Queue { queue, source };
        let ring = &mut self.active.queue;
        let Some(chain) = Chain::next(ring, &self.memory, queue, LIMITS)? else {
            return ring.enable_notification(&self.memory).map_err(broken);
        };
        if chain.writable.length() == 0 {
            let what = "without room for its answer";
            return Err(Problem::Request { queue, what });
        }
        let mut command = [0; 2 + MAX_DATA];
        let known = chain.readable.read(&self.memory, 0, &mut command);
        let ack = match self.execute(&command[..known], chain.readable.length()) {
            Ok(()) => VIRTIO_NET_OK,
            Err(Refused) => VIRTIO_NET_ERR,
        };
        // There is room, as was just seen.
        chain
            .writable
            .write(&self.memory, 0, &ack.to_le_bytes()[..1]);
        let (head, length) = (chain.head, 1);
        ring::publish(
            &mut self.active.queue,
            &self.memory,
            &[Used { head, length }],
        )
        .map_err(broken)?;
        Ok(true)
    }

    /// Executes a command of `length` bytes, of which `command` are the first.
    fn execute(&self, command: &[u8], length: u64) -> Result<(), Refused> {
        let &[class, command, ref data @ ..] = command else {
            return Err(Refused);
        };
        match (u32::from(class), u32::from(command)) {
            (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC | VIRTIO_NET_CTRL_RX_ALLMULTI)
            | (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
                self.needs(VIRTIO_NET_F_CTRL_RX)
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
                self.needs(VIRTIO_NET_F_CTRL_MAC_ADDR)?;
                self.shared.set_mac(exact(data, length)?);
                Ok(())
            }
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                self.needs(VIRTIO_NET_F_MQ)?;
                self.set_pairs(u16::from_le_bytes(exact(data, length)?))
            }
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                self.needs(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)?;
                self.set_offloads(u64::from_le_bytes(exact(data, length)?))
            }
            _ => Err(Refused),
        }
    }

    fn needs(&self, feature: u32) -> Result<(), Refused> {
        let accepted = self.features & (1 << feature) != 0;
        accepted.then_some(()).ok_or(Refused)
    }

    fn set_pairs(&self, pairs: u16) -> Result<(), Refused> {
        let most = self.shared.tap.queues().len();
        if pairs == 0 || usize::from(pairs) > most {
            return Err(Refused);
        }
        let set = self.shared.tap.set_pairs(pairs);
        set.map_err(|error| self.refuse("use so many of its queues", &error))?;
        lock(&self.shared.settings)
            .get_or_insert_with(|| super::persist::Settings::initial(self.features))
            .pairs = pairs;
        for kick in &self.wake {
            // Refused only when the counter is full, and then the event is there already.
            let _ = kick.write(1);
        }
        Ok(())
    }

    fn set_offloads(&self, offloads: u64) -> Result<(), Refused> {
        if offloads & !(self.features & super::device::GUEST_OFFLOADS) != 0 {
            return Err(Refused);
        }
        let set = self.shared.tap.set_offloads(offloads);
        set.map_err(|error| self.refuse("set its offloads", &error))?;
        lock(&self.shared.settings)
            .get_or_insert_with(|| super::persist::Settings::initial(self.features))
            .offloads = offloads;
        Ok(())
    }

    fn refuse(&self, operation: &str, error: &io::Error) -> Refused {
        self.shared.complaint.call_once(|| {
            tracing::warn!(device = self.device, %error, "the kernel does not {operation}");
        });
        Refused
    }

    fn broken(&self, source: Error) -> Problem {
        let queue = self.active.index;
        Problem::Queue { queue, source }
    }

    fn fail(&self, problem: Problem, ops: &mut EventOps<'_>) {
        // One that could not be added is not there to be removed.
        let _ = ops.remove(Events::new(&self.active.kick, EventSet::IN));
        let device = self.device.clone();
        self.notices.tell(Notice::Fault(Fault { device, problem }));
    }
}

/// The data of a command of `length` bytes, class and command counted, if it is `N` bytes.
fn exact<const N: usize>(data: &[u8], length: u64) -> Result<[u8; N], Refused> {
    if length != 2 + N as u64 {
        return Err(Refused);
    }
    data.try_into().map_err(|_| Refused)
}

impl MutEventSubscriber for Control {
    fn process(&mut self, _events: Events, ops: &mut EventOps<'_>) {
        if let Err(problem) = self.work() {
            self.fail(problem, ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let kick = self.active.kick.as_raw_fd();
        if let Err(problem) = add(ops, kick, 0, EventSet::IN) {
            self.fail(problem, ops);
        }
    }
}

impl QueueHandler for Control {
    fn quiesce(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn queues(&self) -> Vec<(u16, QueueState)> {
        vec![(self.active.index, self.active.queue.state())]
    }
}
