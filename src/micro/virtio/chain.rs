//! Descriptor chains, read within bounds.
//!
//! ```text
//!  available ring ─ next ─▶ Chain { head, readable, writable }
//!                                          │         │
//!             Buffers: pieces of RAM ──────┴─────────┘  read, write, iovecs for readv and writev
//! ```
//! Source: virtio 1.2, sections 2.7.4 and 2.7.5 (split rings).
//! Invariants: every piece of a [`Chain`] lies in RAM when it is read; readable pieces come before
//! writable ones; there are at most as many as asked for, so a loop ends. Descriptors are read once:
//! what the driver changes afterwards is not seen.

#![expect(
    unsafe_code,
    reason = "pointers into guest memory go from thread to thread"
)]

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

use crate::micro::notice::Problem;

/// How large a chain a device takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Pieces. A driver may not use more than the queue is long, indirect tables included.
    pub(crate) pieces: usize,
    /// Bytes, readable and writable each.
    pub(crate) bytes: u32,
}

/// What the driver gave for one request.
#[derive(Debug)]
pub(crate) struct Chain {
    /// By which it is given back.
    pub(crate) head: u16,
    /// What the device reads.
    pub(crate) readable: Buffers,
    /// What the device writes.
    pub(crate) writable: Buffers,
}

impl Chain {
    /// Takes the next available chain of queue number `index`.
    ///
    /// # Errors
    /// The ring or the chain is broken.
    pub(crate) fn next(
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
        index: u16,
        limits: Limits,
    ) -> Result<Option<Self>, Problem> {
        let broken = |source| Problem::Queue {
            queue: index,
            source,
        };
        match queue.iter(memory).map_err(broken)?.next() {
            Some(chain) => Self::read(chain, index, limits).map(Some),
            None => Ok(None),
        }
    }

    /// Reads a chain of queue number `index`.
    ///
    /// # Errors
    /// The chain is broken.
    pub(crate) fn read(
        mut chain: DescriptorChain<&GuestMemoryMmap>,
        index: u16,
        limits: Limits,
    ) -> Result<Self, Problem> {
        let broken = |what| Problem::Request { queue: index, what };
        let mut read = Self {
            head: chain.head_index(),
            readable: Buffers::default(),
            writable: Buffers::default(),
        };
        let mut pieces = 0;
        // The iterator ends at the chain's end as at whatever it cannot follow.
        let mut ended = false;
        while let Some(descriptor) = chain.next() {
            ended = !descriptor.has_next();
            pieces += 1;
            if pieces > limits.pieces {
                return Err(broken("of too many pieces"));
            }
            let (at, length) = (descriptor.addr(), descriptor.len());
            if !chain.memory().check_range(at, length as usize) {
                return Err(broken("outside of its memory"));
            }
            if !descriptor.is_write_only() && !read.writable.0.is_empty() {
                return Err(broken("whose buffers are out of order"));
            }
            let part = match descriptor.is_write_only() {
                true => &mut read.writable,
                false => &mut read.readable,
            };
            part.0.push((at, length));
            if part.length() > u64::from(limits.bytes) {
                return Err(broken("that is too long"));
            }
        }
        if !ended {
            return Err(broken("whose descriptors lead nowhere"));
        }
        Ok(read)
    }
}

/// Pieces of RAM, one after the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers(Vec<(GuestAddress, u32)>);

impl Buffers {
    /// Bytes in total.
    pub(crate) fn length(&self) -> u64 {
        self.0.iter().map(|(_, length)| u64::from(*length)).sum()
    }

    /// Address and length of each piece.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (GuestAddress, u32)> {
        self.0.iter().copied()
    }

    /// The part `from..from + length` of it, or as much of that as there is.
    pub(crate) fn part(&self, from: u64, length: u64) -> Self {
        let (mut skip, mut take) = (from, length);
        let mut part = Vec::with_capacity(self.0.len());
        for &(at, length) in &self.0 {
            let skipped = skip.min(u64::from(length));
            let taken = take.min(u64::from(length) - skipped);
            skip -= skipped;
            take -= taken;
            // Within a piece that was checked, and no longer than it.
            if let (Ok(length @ 1..), Some(at)) = (u32::try_from(taken), at.0.checked_add(skipped))
            {
                part.push((GuestAddress(at), length));
            }
        }
        Self(part)
    }

    /// Copies from the byte `from` on; how many bytes there were.
    pub(crate) fn read(&self, memory: &GuestMemoryMmap, from: u64, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        for (at, length) in self.part(from, bytes.len() as u64).0 {
            let next = &mut bytes[done..done + length as usize];
            if memory.read_slice(next, at).is_err() {
                break;
            }
            done += length as usize;
        }
        done
    }

    /// Copies to the byte `from` and on; for how many bytes there was room.
    pub(crate) fn write(&self, memory: &GuestMemoryMmap, from: u64, bytes: &[u8]) -> usize {
        let mut done = 0;
        for (at, length) in self.part(from, bytes.len() as u64).0 {
            let next = &bytes[done..done + length as usize];
            if memory.write_slice(next, at).is_err() {
                break;
            }
            done += length as usize;
        }
        done
    }

    /// Where it stands in this process.
    pub(crate) fn iovecs(&self, memory: &GuestMemoryMmap) -> IoVecs {
        let pieces = self.0.iter();
        let slices = pieces.flat_map(|&(at, length)| memory.get_slices(at, length as usize));
        let iovecs = slices.flatten().map(|slice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        });
        IoVecs(iovecs.collect())
    }
}

/// Pieces of guest RAM for system calls: valid while the memory that they were made of is mapped.
#[derive(Debug, Default)]
pub(crate) struct IoVecs(Vec<libc::iovec>);

// SAFETY: the pointers are into guest RAM, which every thread may touch; all that is done with them
// here is to hand them to system calls, whose callers answer for the mapping.
unsafe impl Send for IoVecs {}

impl IoVecs {
    /// For `readv` and its kin, with their count.
    pub(crate) fn as_slice(&self) -> &[libc::iovec] {
        &self.0
    }

    /// Leaves out the first `bytes`, which are done.
    pub(crate) fn advance(&mut self, mut bytes: u64) {
        self.0.retain_mut(|iovec| {
            let done = usize::try_from(bytes).map_or(iovec.iov_len, |left| left.min(iovec.iov_len));
            bytes -= done as u64;
            iovec.iov_base = iovec.iov_base.wrapping_byte_add(done);
            iovec.iov_len -= done;
            iovec.iov_len != 0
        });
    }
}

#[cfg(test)]
mod tests {
    use virtio_queue::desc::split::Descriptor;

    use super::*;
    use crate::micro::virtio::fixture::{Buffer, NO_RAM, Ring, memory};

    const LIMITS: Limits = Limits {
        pieces: 8,
        bytes: 0x10_0000,
    };
    const AT: u64 = 0x10_0000;

    fn read(at: u64, length: u32) -> Buffer {
        let writable = false;
        Buffer {
            at,
            length,
            writable,
        }
    }

    fn write(at: u64, length: u32) -> Buffer {
        let writable = true;
        Buffer {
            at,
            length,
            writable,
        }
    }

    fn next(ring: &Ring, memory: &GuestMemoryMmap) -> Result<Option<Chain>, Problem> {
        Chain::next(&mut ring.queue(), memory, 3, LIMITS)
    }

    #[test]
    fn a_chain_is_split_into_what_is_read_and_what_is_written() {
        let memory = memory();
        let buffers = [
            read(0x1000, 3),
            read(0x2000, 0),
            read(0x3000, 5),
            write(0x4000, 7),
            write(0x5000, 2),
        ];
        for indirect in [false, true] {
            let mut ring = Ring::new(&memory, AT, 8);
            assert!(next(&ring, &memory).unwrap().is_none());
            let head = match indirect {
                true => ring.offer_indirect(0x9000, &buffers),
                false => ring.offer(&buffers),
            };
            let chain = next(&ring, &memory).unwrap().unwrap();
            assert_eq!(chain.head, head);
            assert_eq!((chain.readable.length(), chain.writable.length()), (8, 9));
            assert_eq!(chain.writable.write(&memory, 5, b"abcdef"), 4);
            let mut written = [0; 9];
            assert_eq!(chain.writable.read(&memory, 0, &mut written), 9);
            assert_eq!(&written, b"\0\0\0\0\0abcd");
            let mut last = [0; 2];
            memory.read_slice(&mut last, GuestAddress(0x5000)).unwrap();
            assert_eq!(&last, b"cd");
        }
    }

    #[test]
    fn a_part_begins_and_ends_within_pieces() {
        let all = Buffers(vec![(GuestAddress(0x10), 4), (GuestAddress(0x20), 4)]);
        for (from, length, expected) in [
            (0, 8, vec![(0x10, 4), (0x20, 4)]),
            (1, 2, vec![(0x11, 2)]),
            (3, 2, vec![(0x13, 1), (0x20, 1)]),
            (4, 99, vec![(0x20, 4)]),
            (8, 1, vec![]),
            (u64::MAX, u64::MAX, vec![]),
            (0, 0, vec![]),
        ] {
            let part = all.part(from, length).0;
            let part: Vec<_> = part.iter().map(|(at, length)| (at.0, *length)).collect();
            assert_eq!(part, expected, "{from}, {length}");
        }
    }

    #[test]
    fn iovecs_point_into_ram_and_advance_over_pieces() {
        let memory = memory();
        memory.write_slice(b"abcdefgh", GuestAddress(0x10)).unwrap();
        let buffers = Buffers(vec![(GuestAddress(0x10), 3), (GuestAddress(0x13), 5)]);
        let mut iovecs = buffers.iovecs(&memory);
        let lengths = |iovecs: &IoVecs| -> Vec<_> {
            let pieces = iovecs.as_slice().iter();
            pieces.map(|piece| piece.iov_len).collect()
        };
        assert_eq!(lengths(&iovecs), [3, 5]);
        let host = memory.get_host_address(GuestAddress(0x10)).unwrap();
        assert_eq!(iovecs.as_slice()[0].iov_base.cast(), host);
        for (done, left) in [
            (0, vec![3, 5]),
            (2, vec![1, 5]),
            (1, vec![5]),
            (4, vec![1]),
            (9, vec![]),
        ] {
            iovecs.advance(done);
            assert_eq!(lengths(&iovecs), left);
        }
    }

    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;

    fn one(at: u64, length: u32, flags: u16, next: u16) -> Vec<Descriptor> {
        vec![Descriptor::new(at, length, flags, next)]
    }

    /// What is said of the chain at `head` of these descriptors.
    fn said(descriptors: Vec<Descriptor>, head: u16) -> &'static str {
        let memory = memory();
        let mut ring = Ring::new(&memory, AT, 8);
        for (index, descriptor) in (0..).zip(descriptors) {
            ring.describe(index, descriptor);
        }
        ring.make_available(head);
        match next(&ring, &memory).unwrap_err() {
            Problem::Request { queue: 3, what } => what,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn chains_without_an_end_are_refused() {
        let loops: Vec<_> = (0..8)
            .map(|index| Descriptor::new(0x1000, 1, NEXT, (index + 1) % 8))
            .collect();
        for (case, descriptors, head) in [
            ("a loop", loops, 0),
            ("to itself", one(0x1000, 1, NEXT, 0), 0),
            ("next outside", one(0x1000, 1, NEXT, 8), 0),
            ("head outside", vec![], 8),
            ("head far outside", vec![], u16::MAX),
            ("table outside", one(NO_RAM, 16, INDIRECT, 0), 0),
            ("table half one", one(0x1000, 15, INDIRECT, 0), 0),
            ("empty table", one(0x1000, 0, INDIRECT, 0), 0),
            ("table in table", one(AT, 16, INDIRECT, 0), 0),
            ("table too large", one(0x1000, u32::MAX, INDIRECT, 0), 0),
        ] {
            let what = said(descriptors, head);
            assert_eq!(what, "whose descriptors lead nowhere", "{case}");
        }
    }

    #[test]
    fn chains_beyond_their_bounds_are_refused() {
        let unordered = vec![
            Descriptor::new(0x1000, 1, WRITE | NEXT, 1),
            Descriptor::new(0x1000, 1, 0, 0),
        ];
        let long = vec![
            Descriptor::new(0x1000, 0x8_0000, WRITE | NEXT, 1),
            Descriptor::new(0x1000, 0x8_0001, WRITE, 0),
        ];
        let outside = "outside of its memory";
        for (case, descriptors, what) in [
            ("outside RAM", one(NO_RAM, 1, 0, 0), outside),
            ("half outside", one(NO_RAM - 1, 2, WRITE, 0), outside),
            ("around the end", one(u64::MAX, 2, 0, 0), outside),
            ("out of order", unordered, "whose buffers are out of order"),
            ("too long", long, "that is too long"),
        ] {
            assert_eq!(said(descriptors, 0), what, "{case}");
        }
    }

    #[test]
    fn a_long_indirect_chain_and_a_false_index_are_refused() {
        let memory = memory();
        let mut ring = Ring::new(&memory, AT, 8);
        ring.offer_indirect(0x9000, &[read(0x1000, 1); 9]);
        let Err(Problem::Request { what, .. }) = next(&ring, &memory) else {
            panic!("taken");
        };
        assert_eq!(what, "of too many pieces");

        let ring = Ring::new(&memory, AT, 8);
        ring.set_available(9);
        let source = virtio_queue::Error::InvalidAvailRingIndex;
        let problem = next(&ring, &memory).unwrap_err();
        let expected = Problem::Queue { queue: 3, source };
        assert_eq!(format!("{problem:?}"), format!("{expected:?}"));
    }
}
