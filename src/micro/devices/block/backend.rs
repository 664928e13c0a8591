//! Effects of requests on a disk's file: by io_uring where the kernel has it, else one by one.
//!
//! ```text
//! start ─▶ Ring: queued ─ submit ─▶ kernel ─ eventfd, reap ─▶ done ─▶ next_done
//!      └─▶ no ring: perform, at once ─────────────────────────▶ done
//! ```
//! Invariants: `start` is called only between `attach` and `detach`; pointers of jobs under way are
//! into the memory that was attached, which is kept until the last of them is done.

#![expect(
    unsafe_code,
    reason = "preadv and pwritev go between a file and guest memory"
)]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Once};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::ring::Ring;
use crate::micro::notice::Problem;
use crate::micro::virtio::chain::{Buffers, IoVecs};

/// Most pieces of one system call (`UIO_MAXIOV` of Linux).
const MOST_PIECES: usize = 1024;

/// What is done to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Read,
    Write,
    /// Data written before is made to last.
    Flush,
    /// The range loses its blocks, if the file system can do that.
    Discard,
    /// The range reads as zeroes, without blocks if `unmap`.
    Zero {
        unmap: bool,
    },
}

/// One effect, or what is left of it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) effect: Effect,
    /// In bytes.
    pub(super) offset: u64,
    /// In bytes.
    pub(super) length: u64,
    pub(super) pieces: IoVecs,
}

/// A job's request, given back when it is done.
#[derive(Debug)]
pub(super) struct Tag {
    /// The chain.
    pub(super) head: u16,
    /// What the device writes, the status byte last.
    pub(super) writable: Buffers,
    pub(super) effect: Effect,
}

/// A job that is done.
pub(super) type Done = (Tag, io::Result<()>);

/// A disk's file as one queue works on it.
#[derive(Debug)]
pub(super) struct Backend {
    file: Arc<File>,
    ring: Option<Ring>,
    memory: GuestMemoryMmap,
    done: VecDeque<Done>,
    /// That the host failed it: a guest on a full file system tries again and again.
    pub(super) complaint: Once,
}

impl Backend {
    /// Works on `file`, by io_uring if `ring` and if the kernel allows it, with at most `depth` jobs
    /// under way.
    pub(super) fn new(file: Arc<File>, depth: u16, ring: bool) -> Self {
        let made = ring.then(|| Ring::new(&file, depth));
        let ring = made.and_then(|ring| {
            ring.inspect_err(|error| tracing::debug!(%error, "no io_uring for a disk"))
                .ok()
        });
        Self {
            file,
            ring,
            memory: GuestMemoryMmap::default(),
            done: VecDeque::new(),
            complaint: Once::new(),
        }
    }

    /// For the log.
    pub(super) fn kind(&self) -> &'static str {
        match self.ring {
            Some(_) => "io_uring",
            None => "preadv",
        }
    }

    /// Works on this memory from now on.
    pub(super) fn attach(&mut self, memory: GuestMemoryMmap) {
        self.memory = memory;
    }

    /// Waits for all jobs, forgets them, and lets go of the memory.
    pub(super) fn detach(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        if let Err(error) = self.wait() {
            tracing::error!(%error, "requests of a disk may still be under way");
            // The kernel may yet write to it: it must stay mapped.
            std::mem::forget(memory);
        }
        self.done.clear();
    }

    /// Readable when jobs are done.
    pub(super) fn event(&self) -> Option<&Arc<EventFd>> {
        self.ring.as_ref().map(Ring::event)
    }

    /// Whether another job may be started.
    pub(super) fn has_room(&self) -> bool {
        self.ring.as_ref().is_none_or(Ring::has_room)
    }

    /// Begins a job on `data`, which is of the attached memory.
    pub(super) fn start(
        &mut self,
        tag: Tag,
        (offset, length): (u64, u64),
        data: &Buffers,
    ) -> Result<(), Problem> {
        let mut job = Job {
            effect: tag.effect,
            offset,
            length,
            pieces: data.iovecs(&self.memory),
        };
        match &mut self.ring {
            Some(ring) => ring.push(tag, job),
            None => {
                let result = perform(&self.file, &mut job);
                self.done.push_back((tag, result));
                Ok(())
            }
        }
    }

    /// Hands what was started to the kernel.
    pub(super) fn submit(&mut self) -> Result<(), Problem> {
        self.ring.as_mut().map_or(Ok(()), Ring::submit)
    }

    /// The next job that is done.
    pub(super) fn next_done(&mut self) -> Option<Done> {
        if let Some(ring) = &mut self.ring {
            ring.reap(&self.file, &mut self.done);
        }
        self.done.pop_front()
    }

    /// Waits until all jobs are done.
    pub(super) fn wait(&mut self) -> Result<(), Problem> {
        let Some(ring) = &mut self.ring else {
            return Ok(());
        };
        while ring.under_way() > 0 {
            ring.wait()?;
            ring.reap(&self.file, &mut self.done);
        }
        Ok(())
    }

    /// Makes what was written last, now.
    pub(super) fn flush(&self) -> io::Result<()> {
        retry(|| rustix::fs::fdatasync(&*self.file))
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Does all that is left of a job.
pub(super) fn perform(file: &File, job: &mut Job) -> io::Result<()> {
    match job.effect {
        Effect::Read | Effect::Write => transfer(file, job),
        Effect::Flush => retry(|| rustix::fs::fdatasync(file)),
        // Freeing blocks is a favour: where it is impossible nothing is lost.
        Effect::Discard => punch(file, job).map(|_| ()),
        Effect::Zero { unmap } => zero(file, job, unmap),
    }
}

fn transfer(file: &File, job: &mut Job) -> io::Result<()> {
    while job.length > 0 {
        let pieces = job.pieces.as_slice();
        let count = pieces.len().min(MOST_PIECES);
        // At most 1024.
        let count = libc::c_int::try_from(count).unwrap_or(0);
        let offset = libc::off_t::try_from(job.offset).map_err(io::Error::other)?;
        let done = if job.effect == Effect::Read {
            // SAFETY: `count` of the pieces are there, in guest memory, which the backend keeps
            // mapped and of which no reference is made.
            unsafe { libc::preadv(file.as_raw_fd(), pieces.as_ptr(), count, offset) }
        } else {
            // SAFETY: as above.
            unsafe { libc::pwritev(file.as_raw_fd(), pieces.as_ptr(), count, offset) }
        };
        match u64::try_from(done) {
            // The file has become shorter.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(done) => job.advance(done),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

impl Job {
    /// Leaves out the first `bytes`, which are done.
    pub(super) fn advance(&mut self, bytes: u64) {
        self.pieces.advance(bytes);
        self.offset += bytes;
        self.length = self.length.saturating_sub(bytes);
    }
}

/// Whether the file system could.
fn punch(file: &File, job: &Job) -> io::Result<bool> {
    allocate(
        file,
        job,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
    )
}

fn zero(file: &File, job: &mut Job, unmap: bool) -> io::Result<()> {
    let keep = FallocateFlags::KEEP_SIZE;
    let zeroed = match unmap {
        true => punch(file, job)?,
        false => allocate(file, job, FallocateFlags::ZERO_RANGE | keep)? || punch(file, job)?,
    };
    if zeroed {
        return Ok(());
    }
    use std::os::unix::fs::FileExt;
    let zeroes = [0; 64 << 10];
    while job.length > 0 {
        let left = usize::try_from(job.length).unwrap_or(usize::MAX);
        let next = &zeroes[..left.min(zeroes.len())];
        file.write_all_at(next, job.offset)?;
        job.advance(next.len() as u64);
    }
    Ok(())
}

/// Whether the file system could.
fn allocate(file: &File, job: &Job, flags: FallocateFlags) -> io::Result<bool> {
    if job.length == 0 {
        return Ok(true);
    }
    match retry(|| rustix::fs::fallocate(file, flags, job.offset, job.length)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
        Err(error) => Err(error),
    }
}

fn retry(mut call: impl FnMut() -> Result<(), Errno>) -> io::Result<()> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::Bytes;

    use super::*;
    use crate::micro::virtio::chain::{Chain, Limits};
    use crate::micro::virtio::fixture::{Buffer, Ring as Rings, memory};

    /// One piece of `length` bytes at `at`, for the device to write.
    fn room(memory: &GuestMemoryMmap, at: u64, length: u32) -> Buffers {
        let writable = true;
        let mut ring = Rings::new(memory, 0, 8);
        ring.offer(&[Buffer {
            at,
            length,
            writable,
        }]);
        let limits = Limits {
            pieces: 8,
            bytes: u32::MAX,
        };
        let chain = Chain::next(&mut ring.queue(), memory, 0, limits);
        chain.unwrap().unwrap().writable
    }

    fn tag(head: u16) -> Tag {
        Tag {
            head,
            writable: Buffers::default(),
            effect: Effect::Read,
        }
    }

    fn file() -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        for block in 0..128_u8 {
            file.write_all(&[block; 4096]).unwrap();
        }
        Arc::new(file)
    }

    #[test]
    fn waiting_completes_all_that_is_under_way() {
        let memory = memory();
        let mut backend = Backend::new(file(), 128, true);
        if backend.kind() != "io_uring" {
            println!("SKIPPED: this kernel has no io_uring for us");
            return;
        }
        backend.attach(memory.clone());
        for block in 0..128 {
            assert!(backend.has_room());
            let at = 0x10_0000 + 4096 * u64::from(block);
            let range = (4096 * u64::from(block), 4096);
            let data = room(&memory, at, 4096);
            backend.start(tag(block), range, &data).unwrap();
        }
        assert!(!backend.has_room(), "no more than its depth");
        backend.wait().unwrap();
        let mut heads: Vec<_> = std::iter::from_fn(|| backend.next_done())
            .map(|(tag, result)| result.map(|()| tag.head).unwrap())
            .collect();
        heads.sort_unstable();
        assert_eq!(heads, (0..128).collect::<Vec<_>>());
        let mut read = vec![0; 128 * 4096];
        let at = vm_memory::GuestAddress(0x10_0000);
        memory.read_slice(&mut read, at).unwrap();
        assert!((0..).zip(read.chunks(4096)).all(|(n, b)| b == [n; 4096]));
        assert!(backend.event().unwrap().read().is_ok(), "it was told");
    }

    #[test]
    fn detaching_waits_and_forgets() {
        let memory = memory();
        for ring in [true, false] {
            let mut backend = Backend::new(file(), 8, ring);
            backend.attach(memory.clone());
            let data = room(&memory, 0x10_0000, 4096);
            backend.start(tag(0), (4096, 4096), &data).unwrap();
            backend.detach();
            let mut read = [0; 4096];
            let at = vm_memory::GuestAddress(0x10_0000);
            memory.read_slice(&mut read, at).unwrap();
            assert_eq!(read, [1; 4096]);
            assert!(backend.next_done().is_none() && backend.has_room());
        }
    }

    #[test]
    fn a_lane_may_write_zeroes_where_no_range_can_be_zeroed() {
        let zeroed = std::thread::spawn(|| {
            // Like a file of ramfs, NFS or FAT it has no ranges; it takes no bytes at a place, either.
            let comm = File::options().write(true).open("/proc/thread-self/comm");
            let mut backend = Backend::new(Arc::new(comm.unwrap()), 8, false);
            crate::micro::seccomp::lane().unwrap()().unwrap();
            let effect = Effect::Zero { unmap: false };
            let tag = Tag { effect, ..tag(0) };
            let none = Buffers::default();
            backend.start(tag, (0, 512), &none).unwrap();
            backend.next_done().unwrap().1
        });
        let error = zeroed.join().unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESPIPE), "{error}");
    }

    #[test]
    fn more_pieces_than_one_call_takes_are_moved_in_turns() {
        // A piece of a chain becomes as many as it has regions of RAM below it.
        let regions = (0..2000).map(|n| (vm_memory::GuestAddress(4096 * n), 4096));
        let regions: Vec<_> = regions.collect();
        let memory = GuestMemoryMmap::<()>::from_ranges(&regions).unwrap();
        for ring in [true, false] {
            let file = tempfile::tempfile().unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, b"z", 1900 * 4096 - 1).unwrap();
            let mut backend = Backend::new(Arc::new(file), 8, ring);
            backend.attach(memory.clone());
            let data = room(&memory, 0x2_0000, 1900 * 4096);
            assert_eq!(data.iovecs(&memory).as_slice().len(), 1900);
            let length = data.length();
            backend.start(tag(3), (0, length), &data).unwrap();
            backend.wait().unwrap();
            let (tag, result) = backend.next_done().unwrap();
            result.unwrap();
            assert_eq!(tag.head, 3);
            let mut last = [1];
            assert_eq!(data.read(&memory, length - 1, &mut last), 1);
            assert_eq!(last, *b"z");
        }
    }
}
