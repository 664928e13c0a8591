//! The balloon's queues: what the guest gives up, from page numbers to the host's memory.
//!
//! ```text
//! inflate    le32 page numbers in any order ─▶ sorted, joined to runs ─┐ whole pages of the
//! reporting  writable buffers, which are the memory themselves ────────┴─ host within RAM ─▶ madvise
//! ```
#![expect(unsafe_code, reason = "madvise drops pages of guest memory")]

use std::ops::Range;
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use rustix::mm::{Advice, madvise};
use virtio_queue::{QueueState, QueueT};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::PAGE;
use crate::micro::notice::{Fault, Notice, Notices, Problem};
use crate::micro::virtio::chain::{Chain, Limits};
use crate::micro::virtio::device::{ActiveQueue, QueueHandler};
use crate::micro::virtio::interrupt::Interrupt;

/// Requests at one event before the others of the lane have their turn. Linux inflates by 1 MiB and
/// reports at most 128 MiB at a time, for which the kernel needs some 30 ms.
const REQUESTS_PER_EVENT: usize = 4;

/// A request for some of 16,384 pages; Linux sends 256 page numbers at most.
const PAGE_NUMBERS: Limits = Limits {
    pieces: 128,
    bytes: 64 << 10,
};

/// A request for ranges: of any length, as they are checked against RAM.
const RANGES: Limits = Limits {
    pieces: 128,
    bytes: u32::MAX,
};

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Pages for the balloon.
    Inflate,
    /// Pages out of it.
    Deflate,
    /// Pages that are free for now.
    Report,
}

/// A queue.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) active: ActiveQueue,
    pub(super) role: Role,
}

/// Serves all queues.
#[derive(Debug)]
pub(super) struct Balloon {
    pub(super) queues: Vec<Served>,
    pub(super) memory: GuestMemoryMmap,
    /// Bytes of the host's pages.
    pub(super) page: u64,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) notices: Notices,
    /// The host did not take pages back, and that was logged.
    pub(super) refused: bool,
}

impl Balloon {
    /// Serves queue `place` of those that are ready.
    fn serve(&mut self, place: usize) -> Result<(), Problem> {
        let Some(Served { active, role }) = self.queues.get_mut(place) else {
            return Ok(());
        };
        let (index, role) = (active.index, *role);
        let queue = &mut active.queue;
        let broken = |source| Problem::Queue {
            queue: index,
            source,
        };
        // Empty when another event has taken it.
        let _ = active.kick.read();
        queue.disable_notification(&self.memory).map_err(broken)?;
        let limits = if role == Role::Report {
            RANGES
        } else {
            PAGE_NUMBERS
        };
        let (mut idle, mut served) = (false, false);
        for _ in 0..REQUESTS_PER_EVENT {
            let Some(chain) = Chain::next(queue, &self.memory, index, limits)? else {
                idle = !queue.enable_notification(&self.memory).map_err(broken)?;
                if idle {
                    break;
                }
                continue;
            };
            let ranges = ranges(&chain, role, &self.memory);
            let ranges = ranges.map_err(|what| Problem::Request { queue: index, what })?;
            for range in ranges {
                let given = give_up(&self.memory, &range, self.page);
                if let Err(error) = given
                    && !std::mem::replace(&mut self.refused, true)
                {
                    tracing::warn!(%error, "the host does not take the guest's memory back");
                }
            }
            let added = queue.add_used(&self.memory, chain.head, 0);
            added.map_err(broken)?;
            served = true;
        }
        if !idle {
            // The rest has its turn after the others of this lane; a full counter is an event, too.
            let _ = active.kick.write(1);
        }
        if served && queue.needs_notification(&self.memory).map_err(broken)? {
            self.interrupt.used();
        }
        Ok(())
    }

    fn fail(&mut self, problem: Problem, ops: &mut EventOps<'_>) {
        for served in &self.queues {
            // One that could not be added is not there to be removed.
            let _ = ops.remove(Events::new(&served.active.kick, EventSet::IN));
        }
        self.notices.tell(Notice::Fault(Fault {
            device: "balloon".to_owned(),
            problem,
        }));
    }
}

impl MutEventSubscriber for Balloon {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if let Err(problem) = self.serve(events.data() as usize) {
            self.fail(problem, ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let added = (0..).zip(&self.queues).try_for_each(|(place, served)| {
            let kick = &served.active.kick;
            ops.add(Events::with_data(kick, place, EventSet::IN))
        });
        if let Err(error) = added {
            let problem = Problem::Host {
                operation: "watch the queues of a balloon",
                source: std::io::Error::other(error),
            };
            self.fail(problem, ops);
        }
    }
}

impl QueueHandler for Balloon {
    fn quiesce(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn queues(&self) -> Vec<(u16, QueueState)> {
        self.queues
            .iter()
            .map(|served| (served.active.index, served.active.queue.state()))
            .collect()
    }
}

/// What a request gives up: addresses in the guest, which lie in RAM.
fn ranges(
    chain: &Chain,
    role: Role,
    memory: &GuestMemoryMmap,
) -> Result<Vec<Range<u64>>, &'static str> {
    let (readable, writable) = (chain.readable.length(), chain.writable.length());
    let ranges = match role {
        Role::Report if readable != 0 => return Err("to report memory that is to be read"),
        Role::Report => chain
            .writable
            .pieces()
            .map(|(at, length)| at.0..at.0 + u64::from(length))
            .collect(),
        _ if writable != 0 => return Err("for pages that is to be written"),
        _ if readable % 4 != 0 => return Err("with half of a page number"),
        // What comes out of the balloon is the guest's own again: nothing is to be done.
        Role::Deflate => Vec::new(),
        Role::Inflate => {
            // No more than the limit.
            let mut bytes = vec![0; usize::try_from(readable).unwrap_or(0)];
            chain.readable.read(memory, 0, &mut bytes);
            let (numbers, _) = bytes.as_chunks();
            runs(numbers.iter().map(|number| u32::from_le_bytes(*number)))
        }
    };
    for range in &ranges {
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        if !memory.check_range(GuestAddress(range.start), length) {
            return Err("for pages outside of its memory");
        }
    }
    Ok(ranges)
}

/// Joins pages to runs of addresses, ascending.
pub(super) fn runs(numbers: impl Iterator<Item = u32>) -> Vec<Range<u64>> {
    let mut numbers: Vec<_> = numbers.map(u64::from).collect();
    numbers.sort_unstable();
    let mut runs: Vec<Range<u64>> = Vec::new();
    for number in numbers {
        let page = number * PAGE..(number + 1) * PAGE;
        match runs.last_mut() {
            Some(run) if run.end >= page.start => run.end = page.end,
            _ => runs.push(page),
        }
    }
    runs
}

/// The whole pages of `page` bytes within `range`.
pub(super) fn whole(range: &Range<u64>, page: u64) -> Range<u64> {
    let end = range.end / page * page;
    let start = range.start.checked_next_multiple_of(page);
    start.map_or(end, |start| start.min(end))..end
}

/// Drops the whole pages of a range of RAM.
fn give_up(memory: &GuestMemoryMmap, range: &Range<u64>, page: u64) -> std::io::Result<()> {
    let range = whole(range, page);
    // Within RAM, which fits into this machine's.
    let length = usize::try_from(range.end - range.start).unwrap_or(0);
    for slice in memory.get_slices(GuestAddress(range.start), length) {
        let slice = slice.map_err(std::io::Error::other)?;
        let start = slice.ptr_guard_mut().as_ptr();
        // SAFETY: the pages are guest RAM, mapped as long as `memory` is, of which this process holds
        // nothing that could change under it: all of it is accessed as what the guest may change at
        // any time.
        unsafe { madvise(start.cast(), slice.len(), Advice::LinuxDontNeed) }?;
    }
    Ok(())
}
