//! Threads of the process of a VM, which shall be small.

/// Stack of such a thread; none of them recurses or keeps buffers there. With the usual 2 MiB, a
/// stack that happens to be aligned (the first one is) becomes a huge page as soon as a byte of it is
/// touched, where the host makes huge pages of everything.
pub const STACK_BYTES: usize = 512 << 10;
