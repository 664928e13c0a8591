//! A pair of queues on its lane: which event lets which of them work.
//!
//! ```text
//! TAP readable (an edge) ─┬─▶ Receiver ─┐
//! receive kicked ─────────┘             ├─ had its share: kicks itself, after the others of its lane
//! transmit kicked ──────────▶ Sender ───┘
//! ```
//! The TAP queue is watched for edges: frames that wait while the driver has no room are no event;
//! the driver's next chain is.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_queue::QueueState;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::Pause;
use super::receive::Receiver;
use super::tap::TapQueue;
use super::transmit::Sender;
use crate::micro::notice::{Fault, Notice, Notices, Problem};
use crate::micro::virtio::device::QueueHandler;

/// What an event is about.
const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const TAP: u32 = 2;

/// A pair of queues, as far as the driver has made them ready.
#[derive(Debug)]
pub(super) struct Pair {
    device: String,
    receiver: Option<Receiver>,
    sender: Option<Sender>,
    tap: Arc<TapQueue>,
    notices: Notices,
    /// Whether the TAP queue is among the events.
    watching: bool,
}

impl Pair {
    pub(super) fn new(
        device: String,
        receiver: Option<Receiver>,
        sender: Option<Sender>,
        tap: Arc<TapQueue>,
        notices: Notices,
    ) -> Self {
        Self {
            device,
            receiver,
            sender,
            tap,
            notices,
            watching: false,
        }
    }

    fn receive(&mut self, kicked: bool, ops: &mut EventOps<'_>) -> Result<(), Problem> {
        self.watch(ops)?;
        if let Some(receiver) = &mut self.receiver {
            if kicked {
                // Empty when it is another event that has taken it.
                let _ = receiver.kick().read();
            }
            go_on(receiver.work()?, receiver.kick());
        }
        Ok(())
    }

    fn transmit(&mut self) -> Result<(), Problem> {
        if let Some(sender) = &mut self.sender {
            // As above.
            let _ = sender.kick().read();
            go_on(sender.work()?, sender.kick());
        }
        Ok(())
    }

    /// Watches the TAP queue from the first time on that it is found attached: the kernel lets
    /// nobody wait for one that is not.
    fn watch(&mut self, ops: &mut EventOps<'_>) -> Result<(), Problem> {
        let tap = self.tap.hold();
        if self.watching || self.receiver.is_none() || !tap.is_attached() {
            return Ok(());
        }
        add(ops, self.tap.as_raw_fd(), TAP, edge())?;
        self.watching = true;
        Ok(())
    }

    fn begin(&mut self, ops: &mut EventOps<'_>) -> Result<(), Problem> {
        for (kick, data) in self.kicks() {
            add(ops, kick.as_raw_fd(), data, EventSet::IN)?;
        }
        self.watch(ops)
    }

    fn kicks(&self) -> impl Iterator<Item = (&EventFd, u32)> {
        let receive = self.receiver.iter().map(|r| (r.kick(), RECEIVE));
        receive.chain(self.sender.iter().map(|s| (s.kick(), TRANSMIT)))
    }

    fn fail(&mut self, problem: Problem, ops: &mut EventOps<'_>) {
        for (kick, data) in self.kicks() {
            // One that could not be added is not there to be removed.
            let _ = ops.remove(Events::with_data(kick, data, EventSet::IN));
        }
        if self.watching {
            let _ = ops.remove(Events::with_data_raw(self.tap.as_raw_fd(), TAP, edge()));
        }
        let device = self.device.clone();
        self.notices.tell(Notice::Fault(Fault { device, problem }));
    }
}

impl MutEventSubscriber for Pair {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let done = match events.data() {
            RECEIVE => self.receive(true, ops),
            TAP => self.receive(false, ops),
            _ => self.transmit(),
        };
        if let Err(problem) = done {
            self.fail(problem, ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(problem) = self.begin(ops) {
            self.fail(problem, ops);
        }
    }
}

impl QueueHandler for Pair {
    fn quiesce(&mut self) -> Result<(), Fault> {
        if let Some(receiver) = &mut self.receiver {
            receiver.give_back();
        }
        Ok(())
    }

    fn queues(&self) -> Vec<(u16, QueueState)> {
        let receiver = self.receiver.iter().map(Receiver::state);
        let sender = self.sender.iter().map(Sender::state);
        receiver.chain(sender).collect()
    }
}

/// A queue that had its share goes on at its next event, which this is.
fn go_on(pause: Pause, kick: &EventFd) {
    if pause == Pause::Share {
        // Refused only when the counter is full, and then the event is there already.
        let _ = kick.write(1);
    }
}

fn edge() -> EventSet {
    EventSet::IN | EventSet::EDGE_TRIGGERED
}

/// Watches `fd`.
pub(super) fn add(
    ops: &mut EventOps<'_>,
    fd: std::os::fd::RawFd,
    data: u32,
    events: EventSet,
) -> Result<(), Problem> {
    ops.add(Events::with_data_raw(fd, data, events))
        .map_err(|error| Problem::Host {
            operation: "watch the queues of a network interface",
            source: std::io::Error::other(error),
        })
}
