//! The lists of system calls, each with why it is there.
//!
//! Where an argument says what a call can do, only the values that are needed are listed.

use libc::c_long;

/// A system call that may be made.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) number: c_long,
    /// Only with one of these; any arguments where there is none.
    pub(super) only: Option<Only>,
}

/// What one argument, of 32 bits, may be.
#[derive(Debug)]
pub(super) struct Only {
    /// Which, from 0.
    pub(super) argument: u8,
    /// The bits that are looked at.
    pub(super) mask: u32,
    /// What they may be.
    pub(super) values: &'static [u32],
}

const fn any(number: c_long) -> Call {
    Call { number, only: None }
}

const fn only(number: c_long, argument: u8, mask: u32, values: &'static [u32]) -> Call {
    let only = Only {
        argument,
        mask,
        values,
    };
    Call {
        number,
        only: Some(only),
    }
}

/// All bits of an argument.
const ALL: u32 = u32::MAX;

/// The type and number of an ioctl, without direction and size (asm-generic/ioctl.h).
const IOCTL: u32 = 0xffff;

const EXECUTABLE: u32 = libc::PROT_EXEC.cast_unsigned();

const OWN_END: &[u32] = &[libc::SIGABRT.cast_unsigned(), libc::SIGSYS.cast_unsigned()];

/// For every thread.
pub(super) const EVERY: &[Call] = &[
    // Memory: malloc, stacks of threads that end.
    any(libc::SYS_brk),
    any(libc::SYS_madvise),
    any(libc::SYS_mremap),
    any(libc::SYS_munmap),
    only(libc::SYS_mmap, 2, EXECUTABLE, &[0]),
    only(libc::SYS_mprotect, 2, EXECUTABLE, &[0]),
    // malloc asks how many arenas are worth it.
    any(libc::SYS_sched_getaffinity),
    // Locks and channels, and the signal that wakes them.
    any(libc::SYS_futex),
    any(libc::SYS_restart_syscall),
    any(libc::SYS_rt_sigreturn),
    any(libc::SYS_sched_yield),
    // Time, where the clock is not read without a call; random numbers for hash tables.
    any(libc::SYS_clock_gettime),
    any(libc::SYS_getrandom),
    // Events (eventfd), messages on standard error. A debug build looks at a descriptor before it
    // closes it.
    any(libc::SYS_close),
    only(libc::SYS_fcntl, 1, ALL, &[libc::F_GETFD.cast_unsigned()]),
    any(libc::SYS_read),
    any(libc::SYS_write),
    any(libc::SYS_writev),
    // The end, also by panic, abort and forbidden call.
    any(libc::SYS_exit),
    any(libc::SYS_exit_group),
    any(libc::SYS_getpid),
    any(libc::SYS_gettid),
    any(libc::SYS_rt_sigprocmask),
    any(libc::SYS_sigaltstack),
    only(libc::SYS_rt_sigaction, 0, ALL, OWN_END),
    only(libc::SYS_tgkill, 2, ALL, OWN_END),
];

/// For vCPUs, which also activate and reset devices.
pub(super) const VCPU: &[Call] = &[
    only(libc::SYS_ioctl, 1, IOCTL, VCPU_REQUESTS),
    // Descriptors that a device's handlers share with the device.
    any(libc::SYS_dup),
    only(
        libc::SYS_fcntl,
        1,
        ALL,
        &[libc::F_DUPFD_CLOEXEC.cast_unsigned()],
    ),
    // A console that takes no more bytes is waited for, for a moment.
    any(libc::SYS_ppoll),
    // A disk that is reset waits for its requests.
    any(libc::SYS_io_uring_enter),
    // A vsock socket listens when its device is activated.
    any(libc::SYS_listen),
    // What vsock watches its connections with, and its clock; the watchdog's.
    any(libc::SYS_epoll_create1),
    any(libc::SYS_epoll_ctl),
    any(libc::SYS_timerfd_create),
    any(libc::SYS_timerfd_settime),
];

/// KVM's requests of a vCPU that runs or is saved (linux/kvm.h, type 0xae); what sets one up is made
/// before its thread begins. And TUN's of a device that is activated or reset (linux/if_tun.h, type
/// `T`).
const VCPU_REQUESTS: &[u32] = &[
    0xae80, // RUN
    0xae81, // GET_REGS
    0xae83, // GET_SREGS
    0xae88, // GET_MSRS
    0xae8e, // GET_LAPIC
    0xae91, // GET_CPUID2
    0xae98, // GET_MP_STATE
    0xae9f, // GET_VCPU_EVENTS
    0xaea1, // GET_DEBUGREGS
    0xaea3, // GET_TSC_KHZ
    0xaea4, // GET_XSAVE
    0xaea6, // GET_XCRS
    0xaead, // KVMCLOCK_CTRL
    0xaecf, // GET_XSAVE2
    0x54d0, // TUNSETOFFLOAD
    0x54d8, // TUNSETVNETHDRSZ
    0x54d9, // TUNSETQUEUE
];

/// For I/O threads.
pub(super) const LANE: &[Call] = &[
    any(libc::SYS_epoll_ctl),
    any(libc::SYS_epoll_pwait),
    any(libc::SYS_epoll_wait),
    // Disks.
    any(libc::SYS_fallocate),
    any(libc::SYS_fdatasync),
    any(libc::SYS_io_uring_enter),
    any(libc::SYS_preadv),
    any(libc::SYS_pwritev),
    // Zeroes, on a file system that has no ranges of them.
    any(libc::SYS_pwrite64),
    // Frames.
    any(libc::SYS_readv),
    only(libc::SYS_ioctl, 1, IOCTL, &[0x54d0, 0x54d9]),
    // vsock: connections to and from sockets of the host, which have names, but no network.
    any(libc::SYS_accept4),
    any(libc::SYS_connect),
    any(libc::SYS_recvfrom),
    any(libc::SYS_recvmsg),
    any(libc::SYS_sendmsg),
    any(libc::SYS_sendto),
    any(libc::SYS_shutdown),
    only(libc::SYS_socket, 0, ALL, &[libc::AF_UNIX.cast_unsigned()]),
    // The last who holds the socket that the host connects to removes its file.
    any(libc::SYS_unlinkat),
    // Timers.
    any(libc::SYS_timerfd_settime),
];
