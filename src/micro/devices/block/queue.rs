//! The life of a disk's requests, from available to used.
//!
//! ```text
//! available ─ parse ─┬▶ refused, answered ────────────────────────────┬▶ status byte ─▶ used
//!                    └▶ Backend::start … next_done, in any order ─────┘
//! ```
//! Invariants: each chain taken is used exactly once, unless the driver broke the queue; no more are
//! under way than the queue is long. [`Requests`] needs no KVM and no thread: `process` is what fuzz
//! targets drive.

use std::io;
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::backend::{Backend, Effect, Tag};
use super::request::{ID_BYTES, Request, Shape};
use crate::micro::bus::{Shared, lock};
use crate::micro::notice::{Fault, Notice, Notices, Problem};
use crate::micro::virtio::chain::{Buffers, Chain, Limits};
use crate::micro::virtio::device::QueueHandler;
use crate::micro::virtio::interrupt::Interrupt;

/// Most bytes of one request: what Linux reads or writes in one system call.
const MOST_BYTES: u32 = 0x7fff_f000;

/// What came of serving a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// The driver wants to know of used buffers.
    pub(super) notify: bool,
    /// There are more requests, but others have their turn first.
    pub(super) more: bool,
}

/// One queue and its requests.
#[derive(Debug)]
pub(super) struct Requests {
    pub(super) index: u16,
    pub(super) queue: Queue,
    pub(super) memory: GuestMemoryMmap,
    pub(super) shape: Shape,
    pub(super) id: [u8; ID_BYTES],
    /// The device keeps it from one activation to the next.
    pub(super) backend: Shared<Backend>,
}

impl Requests {
    /// Takes what is available, as much as there is room for, and gives back what is done.
    ///
    /// # Errors
    /// The driver broke the queue or the host the backend; nothing more can be served.
    pub(super) fn process(&mut self) -> Result<Progress, Problem> {
        let backend = Arc::clone(&self.backend);
        let mut backend = lock(&backend);
        let mut used = self.give_back(&mut backend)?;
        let limits = Limits {
            pieces: usize::from(self.queue.size()),
            bytes: MOST_BYTES,
        };
        // A driver that always adds more must not keep the lane to itself.
        let mut left = self.queue.size();
        while left > 0 && backend.has_room() {
            left -= 1;
            match Chain::next(&mut self.queue, &self.memory, self.index, limits)? {
                Some(chain) => used |= self.begin(chain, &mut backend)?,
                None => {
                    let enabled = self.queue.enable_notification(&self.memory);
                    if !enabled.map_err(|source| self.broken(source))? {
                        break;
                    }
                }
            }
        }
        backend.submit()?;
        used |= self.give_back(&mut backend)?;
        Ok(Progress {
            notify: used && self.wants_interrupt()?,
            more: left == 0,
        })
    }

    /// Waits for all that is under way.
    ///
    /// # Errors
    /// As [`Requests::process`].
    pub(super) fn finish(&mut self) -> Result<Progress, Problem> {
        let backend = Arc::clone(&self.backend);
        let mut backend = lock(&backend);
        backend.wait()?;
        let used = self.give_back(&mut backend)?;
        Ok(Progress {
            notify: used && self.wants_interrupt()?,
            more: false,
        })
    }

    /// Begins one request; whether it, or another one, is used already.
    fn begin(&mut self, chain: Chain, backend: &mut Backend) -> Result<bool, Problem> {
        if chain.writable.length() == 0 {
            return Err(Problem::Request {
                queue: self.index,
                what: "without a status byte",
            });
        }
        let none = Buffers::default();
        let (effect, range, data) = match Request::parse(&chain, &self.memory, &self.shape) {
            Ok(Request::Read { offset, room }) => (Effect::Read, (offset, room.length()), room),
            Ok(Request::Write { offset, data }) => (Effect::Write, (offset, data.length()), data),
            Ok(Request::Flush) => (Effect::Flush, (0, 0), none),
            Ok(Request::Discard { offset, length }) => (Effect::Discard, (offset, length), none),
            Ok(Request::WriteZeroes {
                offset,
                length,
                unmap,
            }) => (Effect::Zero { unmap }, (offset, length), none),
            Ok(Request::GetId { room }) => {
                room.write(&self.memory, 0, &self.id);
                let written = room.length().min(ID_BYTES as u64);
                self.answer(
                    chain.head,
                    &chain.writable,
                    status(VIRTIO_BLK_S_OK),
                    written,
                )?;
                return Ok(true);
            }
            Err(refusal) => {
                self.answer(chain.head, &chain.writable, refusal.status(), 0)?;
                return Ok(true);
            }
        };
        let tag = Tag {
            head: chain.head,
            writable: chain.writable,
            effect,
        };
        backend.start(tag, range, &data)?;
        self.give_back(backend)
    }

    /// Gives back all that is done; whether there was anything.
    fn give_back(&mut self, backend: &mut Backend) -> Result<bool, Problem> {
        let mut any = false;
        while let Some((tag, result)) = backend.next_done() {
            let result = match tag.effect {
                Effect::Write | Effect::Zero { .. } if !self.writes_back() => {
                    result.and_then(|()| backend.flush())
                }
                _ => result,
            };
            let (status, written) = match result {
                Ok(()) if tag.effect == Effect::Read => {
                    (status(VIRTIO_BLK_S_OK), tag.writable.length() - 1)
                }
                Ok(()) => (status(VIRTIO_BLK_S_OK), 0),
                Err(error) => {
                    backend.complaint.call_once(|| {
                        let disk = String::from_utf8_lossy(&self.id);
                        let disk = disk.trim_end_matches('\0');
                        tracing::warn!(disk, effect = ?tag.effect, %error, "the host failed a disk");
                    });
                    (status(VIRTIO_BLK_S_IOERR), 0)
                }
            };
            self.answer(tag.head, &tag.writable, status, written)?;
            any = true;
        }
        Ok(any)
    }

    /// A driver without `VIRTIO_BLK_F_FLUSH` never asks for what it wrote to last: it always does.
    fn writes_back(&self) -> bool {
        self.shape.features & 1 << VIRTIO_BLK_F_FLUSH != 0
    }

    fn answer(
        &mut self,
        head: u16,
        writable: &Buffers,
        status: u8,
        written: u64,
    ) -> Result<(), Problem> {
        let last = writable.length().saturating_sub(1);
        writable.write(&self.memory, last, &[status]);
        // A chain is no longer than `MOST_BYTES`.
        let written = u32::try_from(written + 1).unwrap_or(u32::MAX);
        let added = self.queue.add_used(&self.memory, head, written);
        added.map_err(|source| self.broken(source))
    }

    fn wants_interrupt(&mut self) -> Result<bool, Problem> {
        let wants = self.queue.needs_notification(&self.memory);
        wants.map_err(|source| self.broken(source))
    }

    fn broken(&self, source: virtio_queue::Error) -> Problem {
        Problem::Queue {
            queue: self.index,
            source,
        }
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        lock(&self.backend).detach();
    }
}

fn status(status: u32) -> u8 {
    // 0 to 2.
    u8::try_from(status).unwrap_or(u8::MAX)
}

/// A queue on its lane.
#[derive(Debug)]
pub(super) struct BlockQueue {
    pub(super) device: String,
    pub(super) requests: Requests,
    pub(super) kick: EventFd,
    /// The backend's.
    pub(super) done: Option<Arc<EventFd>>,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) notices: Notices,
    pub(super) over: bool,
}

impl BlockQueue {
    fn told(&mut self, progress: Progress) {
        if progress.notify {
            self.interrupt.used();
        }
        if progress.more {
            // Refused only when the counter is full, and then the kick is there already.
            let _ = self.kick.write(1);
        }
    }

    fn fault(&mut self, problem: Problem) -> Fault {
        self.over = true;
        Fault {
            device: self.device.clone(),
            problem,
        }
    }

    fn events(&self) -> impl Iterator<Item = &EventFd> {
        [Some(&self.kick), self.done.as_deref()]
            .into_iter()
            .flatten()
    }
}

impl MutEventSubscriber for BlockQueue {
    fn process(&mut self, _events: Events, ops: &mut EventOps<'_>) {
        for event in self.events() {
            // Empty when the other one called.
            let _ = event.read();
        }
        match self.requests.process() {
            Ok(progress) => self.told(progress),
            Err(problem) => {
                let fault = self.fault(problem);
                self.notices.tell(Notice::Fault(fault));
                for event in self.events() {
                    // They are watched, so they can be removed.
                    let _ = ops.remove(Events::empty(event));
                }
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let watched: Result<(), _> = self
            .events()
            .try_for_each(|event| ops.add(Events::new(event, EventSet::IN)));
        if let Err(error) = watched {
            let fault = self.fault(Problem::Host {
                operation: "watch its queue",
                source: io::Error::other(error.to_string()),
            });
            self.notices.tell(Notice::Fault(fault));
        }
    }
}

impl QueueHandler for BlockQueue {
    fn quiesce(&mut self) -> Result<(), Fault> {
        if self.over {
            // The queue cannot take what is done, but nothing may be under way.
            let waited = lock(&self.requests.backend).wait();
            return waited.map_err(|problem| self.fault(problem));
        }
        match self.requests.finish() {
            Ok(progress) => {
                self.told(progress);
                Ok(())
            }
            Err(problem) => Err(self.fault(problem)),
        }
    }

    fn queues(&self) -> Vec<(u16, QueueState)> {
        vec![(self.requests.index, self.requests.queue.state())]
    }
}
