//! How libc hands out memory in the process of a VM, whose threads run under filters.
//!
//! ```text
//! main arena         grows and shrinks by brk                    asks nobody
//! any other arena    a heap of its own; where it shrinks, and    opens /proc/sys/vm/overcommit_memory,
//!                    where it would be the ninth                 /sys/devices/system/cpu/online
//! ```
//! A thread that may open nothing would die of it, with its VM: an I/O thread whose vsock connection has let go of
//! its buffers, for example.

/// From now on no thread gets an arena of its own. To be called before the process has a second thread.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "no safe interface has mallopt")]
pub fn keep_to_one_arena() {
    // SAFETY: it takes two numbers. It fails only for parameters that it does not know.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// This libc has no arenas.
#[cfg(not(target_env = "gnu"))]
pub fn keep_to_one_arena() {}
