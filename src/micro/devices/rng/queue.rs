//! The requests: each a writable chain to be filled.

use std::io;
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use rustix::rand::{GetRandomFlags, getrandom};
use virtio_queue::{QueueState, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::device::NAME;
use crate::micro::notice::{Fault, Notice, Notices, Problem};
use crate::micro::virtio::chain::{Buffers, Chain, Limits};
use crate::micro::virtio::device::{ActiveQueue, QueueHandler};
use crate::micro::virtio::interrupt::Interrupt;

/// Most bytes that one request gets: Linux asks for 64 or so.
pub(super) const MOST_BYTES: u64 = 64 << 10;

/// Requests served before others on the lane have their turn; getrandom makes about 400 MB/s.
const REQUESTS_AT_ONCE: usize = 4;

/// Its only queue, on its lane.
#[derive(Debug)]
pub(super) struct RngQueue {
    pub(super) active: ActiveQueue,
    pub(super) memory: GuestMemoryMmap,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) notices: Notices,
}

impl RngQueue {
    /// Serves some requests; whether there are more.
    fn serve(&mut self) -> Result<bool, Problem> {
        let ActiveQueue { index, queue, .. } = &mut self.active;
        let index = *index;
        let broken = |source| Problem::Queue {
            queue: index,
            source,
        };
        let limits = Limits {
            pieces: usize::from(queue.size()),
            bytes: u32::MAX,
        };
        let (mut more, mut served) = (true, false);
        for _ in 0..REQUESTS_AT_ONCE {
            let Some(chain) = Chain::next(queue, &self.memory, index, limits)? else {
                more = queue.enable_notification(&self.memory).map_err(broken)?;
                if !more {
                    break;
                }
                continue;
            };
            let written = fill(&chain.writable, &self.memory)?;
            let used = queue.add_used(&self.memory, chain.head, written);
            used.map_err(broken)?;
            served = true;
        }
        if served && queue.needs_notification(&self.memory).map_err(broken)? {
            self.interrupt.used();
        }
        Ok(more)
    }
}

/// Fills at most [`MOST_BYTES`]; how many.
fn fill(room: &Buffers, memory: &GuestMemoryMmap) -> Result<u32, Problem> {
    let wanted = room.length().min(MOST_BYTES);
    let mut written = 0;
    let mut random = [0; 4096];
    while written < wanted {
        let got = match getrandom(&mut random, GetRandomFlags::empty()) {
            Ok(got) => got,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => {
                return Err(Problem::Host {
                    operation: "make random numbers",
                    source: io::Error::from(error),
                });
            }
        };
        let left = usize::try_from(wanted - written).unwrap_or(usize::MAX);
        let put = room.write(memory, written, &random[..got.min(left)]);
        if put == 0 {
            break;
        }
        written += put as u64;
    }
    // No more than `MOST_BYTES`.
    Ok(u32::try_from(written).unwrap_or(0))
}

impl MutEventSubscriber for RngQueue {
    fn process(&mut self, _events: Events, ops: &mut EventOps<'_>) {
        // Empty when something else read it, which nothing does.
        let _ = self.active.kick.read();
        match self.serve() {
            Ok(true) => {
                // Refused only when the counter is full, and then the kick is there already.
                let _ = self.active.kick.write(1);
            }
            Ok(false) => {}
            Err(problem) => {
                self.notices.tell(Notice::Fault(Fault {
                    device: NAME.to_owned(),
                    problem,
                }));
                // It is watched, so it can be removed.
                let _ = ops.remove(Events::empty(&self.active.kick));
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.active.kick, EventSet::IN)) {
            self.notices.tell(Notice::Fault(Fault {
                device: NAME.to_owned(),
                problem: Problem::Host {
                    operation: "watch its queue",
                    source: io::Error::other(error.to_string()),
                },
            }));
        }
    }
}

impl QueueHandler for RngQueue {
    /// Nothing is ever under way between two events.
    fn quiesce(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn queues(&self) -> Vec<(u16, QueueState)> {
        vec![(self.active.index, self.active.queue.state())]
    }
}
