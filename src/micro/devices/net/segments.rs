//! Buffers of the driver as one list of pieces of host memory, for `readv` and `writev`.
//!
//! Invariant: each piece is guest RAM, which stays mapped as long as the list is used: whoever holds
//! the list holds the guest memory, too.
#![expect(
    unsafe_code,
    reason = "pointers into guest memory go from thread to thread"
)]

use crate::micro::virtio::chain::{IoVecs, Limits};

/// Of a chain: the largest frame has a page each of 17 pieces, a queue is 256 long. More bytes than
/// that frame are of no use, but no harm.
pub(super) const LIMITS: Limits = Limits {
    pieces: 512,
    bytes: 1 << 20,
};

/// What one system call takes (`IOV_MAX`).
const MAX_PIECES: usize = 1024;

/// Pieces of guest memory, in the order of the bytes.
#[derive(Debug, Default)]
pub(super) struct Segments(Vec<libc::iovec>);

// SAFETY: the pointers are into guest RAM, which every thread may touch; nothing in them belongs to
// the thread that made them.
unsafe impl Send for Segments {}

impl Segments {
    /// Whether one more chain fits, and one piece of other memory.
    pub(super) fn has_room(&self) -> bool {
        self.0.len() + LIMITS.pieces < MAX_PIECES
    }

    /// For system calls.
    pub(super) fn as_slice(&self) -> &[libc::iovec] {
        &self.0
    }

    /// Adds `pieces` at the end; how many they are.
    pub(super) fn add(&mut self, pieces: &IoVecs) -> usize {
        self.0.extend_from_slice(pieces.as_slice());
        pieces.as_slice().len()
    }

    /// Forgets the first `count`.
    pub(super) fn remove_first(&mut self, count: usize) {
        self.0.drain(..count);
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Runs `call` with `overflow` as the last piece.
    pub(super) fn with_overflow<T>(
        &mut self,
        overflow: &mut [u8],
        call: impl FnOnce(&Self) -> T,
    ) -> T {
        self.0.push(libc::iovec {
            iov_base: overflow.as_mut_ptr().cast(),
            iov_len: overflow.len(),
        });
        let result = call(self);
        self.0.pop();
        result
    }
}
