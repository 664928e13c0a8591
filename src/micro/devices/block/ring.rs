//! io_uring for one queue of one disk.
//!
//! ```text
//! push ─▶ slot, entry ─ submit ─▶ kernel ─▶ completion (slot) ─ reap ─▶ done, slot free
//!                                              └─▶ eventfd
//! ```
//! Invariant: a job stays in its slot from `push` to `reap`, so that the kernel finds its pieces.
//! A job that the kernel does by half, or not this way, is finished by system calls.

#![expect(unsafe_code, reason = "the kernel is given pointers into guest memory")]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::squeue::Entry;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, Probe, opcode};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::backend::{Done, Effect, Job, Tag, perform};
use crate::micro::notice::Problem;

/// Entries before they must be submitted: what a guest has queued when it notifies is rarely more,
/// and each takes 64 bytes of the host.
const MOST_ENTRIES: u16 = 64;

/// The file, by its number in the ring.
const FILE: Fixed = Fixed(0);

/// An io_uring and what is under way in it.
pub(super) struct Ring {
    ring: IoUring,
    event: Arc<EventFd>,
    slots: Vec<Option<(Tag, Job)>>,
    free: Vec<usize>,
    depth: usize,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("under_way", &self.under_way())
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring for `file` with at most `depth` jobs under way.
    ///
    /// # Errors
    /// The kernel has none, forbids it, or cannot do all that a disk needs.
    pub(super) fn new(file: &File, depth: u16) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_cqsize(u32::from(depth))
            .build(u32::from(depth.min(MOST_ENTRIES)))?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        if !needed.into_iter().all(|code| probe.is_supported(code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let event = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Self {
            ring,
            event,
            slots: Vec::new(),
            free: Vec::new(),
            depth: usize::from(depth),
        })
    }

    /// Readable when jobs are done.
    pub(super) fn event(&self) -> &Arc<EventFd> {
        &self.event
    }

    /// Jobs that were pushed and not reaped.
    pub(super) fn under_way(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether another job may be pushed.
    pub(super) fn has_room(&self) -> bool {
        self.under_way() < self.depth
    }

    /// Begins a job, whose pieces are of memory that stays mapped until it is reaped.
    pub(super) fn push(&mut self, tag: Tag, job: Job) -> Result<(), Problem> {
        if self.ring.submission().is_full() {
            self.submit()?;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let entry = entry(&job).user_data(slot as u64);
        self.slots[slot] = Some((tag, job));
        // SAFETY: the slot keeps the pieces, and the backend the memory they point to, until the
        // entry is reaped; the file is registered.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        // Room was made above, so this does not fail; if it does, nothing is under way.
        pushed.map_err(|_| {
            self.slots[slot] = None;
            self.free.push(slot);
            failed(io::ErrorKind::OutOfMemory.into())
        })
    }

    /// Hands all entries to the kernel.
    pub(super) fn submit(&mut self) -> Result<(), Problem> {
        while !self.ring.submission().is_empty() {
            submitted(self.ring.submit())?;
        }
        Ok(())
    }

    /// Waits until something is done.
    pub(super) fn wait(&mut self) -> Result<(), Problem> {
        submitted(self.ring.submit_and_wait(1))
    }

    /// Moves what is done to `done`.
    pub(super) fn reap(&mut self, file: &File, done: &mut VecDeque<Done>) {
        for completion in self.ring.completion() {
            let slot = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
            let Some((tag, job)) = self.slots.get_mut(slot).and_then(Option::take) else {
                continue;
            };
            self.free.push(slot);
            done.push_back((tag, finish(file, job, completion.result())));
        }
    }
}

fn entry(job: &Job) -> Entry {
    let pieces = job.pieces.as_slice();
    // More than a thousand are refused by the kernel, and then done in turns.
    let count = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
    let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let zero = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    let allocate = |mode| {
        opcode::Fallocate::new(FILE, job.length)
            .offset(job.offset)
            .mode(mode)
            .build()
    };
    match job.effect {
        Effect::Read => opcode::Readv::new(FILE, pieces.as_ptr(), count)
            .offset(job.offset)
            .build(),
        Effect::Write => opcode::Writev::new(FILE, pieces.as_ptr(), count)
            .offset(job.offset)
            .build(),
        Effect::Flush => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
        Effect::Discard | Effect::Zero { unmap: true } => allocate(hole),
        Effect::Zero { unmap: false } => allocate(zero),
    }
}

/// What the kernel's result means, and the rest of the job.
fn finish(file: &File, mut job: Job, result: i32) -> io::Result<()> {
    match u64::try_from(result) {
        Ok(done) => {
            let moves = matches!(job.effect, Effect::Read | Effect::Write);
            if !moves || done == job.length {
                return Ok(());
            }
            job.advance(done);
        }
        Err(_)
            if ![libc::EAGAIN, libc::EINTR, libc::EOPNOTSUPP, libc::EINVAL]
                .contains(&result.saturating_neg()) =>
        {
            return Err(io::Error::from_raw_os_error(-result));
        }
        Err(_) => {}
    }
    perform(file, &mut job)
}

fn submitted(result: io::Result<usize>) -> Result<(), Problem> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(failed(error)),
        _ => Ok(()),
    }
}

fn failed(source: io::Error) -> Problem {
    Problem::Host {
        operation: "hand requests of a disk to io_uring",
        source,
    }
}
