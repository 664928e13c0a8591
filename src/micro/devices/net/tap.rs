//! The host's side of a network interface: the queues of a TAP device.
//!
//! ```text
//! queue 0   attached always     ┐ the kernel chooses among the attached ones, by the queue on
//! queue i   attached while the  │ which the guest last sent for the same flow
//!           guest uses pair i   ┘
//! ```
//! Invariant: whoever moves frames of a queue that may be detached holds its lock, so that no frame
//! is under way when a command of the guest to stop using a pair is answered.
#![expect(
    unsafe_code,
    reason = "TUN/TAP devices are set by ioctl, frames move by readv and writev"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
};

use super::segments::Segments;
use crate::micro::bus::lock;
use crate::sys::tun;

mod ioctl {
    nix::ioctl_write_int_bad!(
        /// What may be left undone in frames for the guest (`TUN_F_*`).
        set_offload, libc::TUNSETOFFLOAD
    );
    nix::ioctl_write_ptr_bad!(
        /// Length of the header before each frame.
        set_header_size, libc::TUNSETVNETHDRSZ, libc::c_int
    );
    nix::ioctl_write_ptr_bad!(
        /// Attaches or detaches a queue.
        set_queue, libc::TUNSETQUEUE, libc::ifreq
    );
}

/// A network interface that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetError {
    /// There is none of this name: TUNSETIFF would make one that leads nowhere.
    #[error("there is no TAP device {tap} in the VM's network namespace")]
    Missing {
        /// The device.
        tap: String,
        /// What the kernel says of the name.
        #[source]
        source: io::Error,
    },
    /// No such device, or it has other flags, or too few queues are free.
    #[error("cannot attach to queue {queue} of TAP {tap}")]
    Attach {
        /// The device.
        tap: String,
        /// Which queue.
        queue: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel does not let it be used as it must.
    #[error("cannot set up TAP {tap}")]
    SetUp {
        /// The device.
        tap: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was saved is not of this interface.
    #[error("the saved state of TAP {tap} has {saved} pairs of queues, the interface {pairs}")]
    Saved {
        /// The device.
        tap: String,
        /// Pairs in use when it was saved.
        saved: u16,
        /// Pairs of the interface.
        pairs: u16,
    },
}

/// [`super::HEADER`], as the kernel takes it.
static HEADER_SIZE: libc::c_int = 12;

/// A TAP device.
#[derive(Debug)]
pub(super) struct Tap {
    queues: Vec<Arc<TapQueue>>,
}

/// One queue of a TAP device.
#[derive(Debug)]
pub(super) struct TapQueue {
    file: File,
    attached: Mutex<bool>,
}

/// A queue that stays attached, or detached, while this is held.
#[derive(Debug)]
pub(super) struct Attachment<'a> {
    file: &'a File,
    attached: MutexGuard<'a, bool>,
}

/// Whether the thread's network namespace has an interface `name`.
fn exists(name: &str) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketType, netdevice, socket};
    let any = socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    netdevice::name_to_index(any, name)?;
    Ok(())
}

impl Tap {
    /// Opens the device `name` for `pairs` pairs of queues; the first one is attached.
    pub(super) fn open(name: &str, pairs: u16) -> Result<Self, NetError> {
        exists(name).map_err(|source| NetError::Missing {
            tap: name.to_owned(),
            source,
        })?;
        let open = |queue| {
            tun::attach(name, pairs).map_err(|source| NetError::Attach {
                tap: name.to_owned(),
                queue,
                source,
            })
        };
        let files = (0..pairs).map(open).collect::<Result<_, _>>()?;
        let tap = Self::new(files);
        tap.set_up().map_err(|source| NetError::SetUp {
            tap: name.to_owned(),
            source,
        })?;
        Ok(tap)
    }

    /// The device of which `files` are the queues, all attached.
    pub(super) fn new(files: Vec<File>) -> Self {
        let queue = |file| {
            let attached = Mutex::new(true);
            Arc::new(TapQueue { file, attached })
        };
        let queues = files.into_iter().map(queue).collect();
        Self { queues }
    }

    fn set_up(&self) -> io::Result<()> {
        let first = self.queues[0].file.as_raw_fd();
        // SAFETY: the descriptor is open and `HEADER_SIZE` is an int, both for the length of the call.
        unsafe { ioctl::set_header_size(first, &raw const HEADER_SIZE) }?;
        self.set_offloads(0)?;
        self.set_pairs(1)
    }

    /// Its queues: as many as the interface has pairs.
    pub(super) fn queues(&self) -> &[Arc<TapQueue>] {
        &self.queues
    }

    /// Lets the kernel leave undone in frames for the guest what the features `offloads` say.
    pub(super) fn set_offloads(&self, offloads: u64) -> io::Result<()> {
        let flags = [
            (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
            (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
            (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
        ];
        let mut wanted = 0;
        // Segments need checksums: without those the kernel refuses the rest.
        if offloads & (1 << VIRTIO_NET_F_GUEST_CSUM) != 0 {
            wanted = libc::TUN_F_CSUM;
            for (feature, flag) in flags {
                if offloads & (1 << feature) != 0 {
                    wanted |= flag;
                }
            }
        }
        let first = self.queues[0].file.as_raw_fd();
        // SAFETY: the descriptor is open for the length of the call, and the argument is a plain int.
        unsafe { ioctl::set_offload(first, wanted.cast_signed()) }?;
        Ok(())
    }

    /// Attaches the first `pairs` queues and detaches the others. What it could do stays done.
    pub(super) fn set_pairs(&self, pairs: u16) -> io::Result<()> {
        let (wanted, rest) = self.queues.split_at(usize::from(pairs));
        // The kernel puts the last queue in the place of one that goes: from the end, none moves.
        for queue in rest.iter().rev() {
            queue.attach(false)?;
        }
        wanted.iter().try_for_each(|queue| queue.attach(true))
    }
}

impl TapQueue {
    /// For epoll. A queue must be attached when it is added, or it never becomes readable.
    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Keeps the queue as it is.
    pub(super) fn hold(&self) -> Attachment<'_> {
        Attachment {
            file: &self.file,
            attached: lock(&self.attached),
        }
    }

    fn attach(&self, wanted: bool) -> io::Result<()> {
        let mut attached = lock(&self.attached);
        if *attached == wanted {
            return Ok(());
        }
        let flag = if wanted {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        };
        let flags = u16::try_from(flag).map_err(|_| io::ErrorKind::InvalidInput)?;
        let request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_flags: flags.cast_signed(),
            },
        };
        // SAFETY: the descriptor is open and `request` is a whole `ifreq`, both for the length of
        // the call; the kernel keeps no pointer to it.
        unsafe { ioctl::set_queue(self.file.as_raw_fd(), &raw const request) }?;
        *attached = wanted;
        Ok(())
    }
}

impl Attachment<'_> {
    /// Whether the queue is attached.
    pub(super) fn is_attached(&self) -> bool {
        *self.attached
    }

    /// Takes one frame with its header; what does not fit is lost. Does not wait.
    pub(super) fn receive(&self, into: &Segments) -> io::Result<usize> {
        let (pieces, count) = raw(into);
        retried(|| {
            // SAFETY: the descriptor is open; `pieces` are `count` iovecs to memory that stays
            // mapped and may be written at any time (see `Segments`).
            unsafe { libc::readv(self.file.as_raw_fd(), pieces, count) }
        })
    }

    /// Gives the kernel one frame with its header. Does not wait.
    pub(super) fn send(&self, from: &Segments) -> io::Result<usize> {
        let (pieces, count) = raw(from);
        retried(|| {
            // SAFETY: as in `receive`, only that the memory is read.
            unsafe { libc::writev(self.file.as_raw_fd(), pieces, count) }
        })
    }
}

fn raw(segments: &Segments) -> (*const libc::iovec, libc::c_int) {
    let pieces = segments.as_slice();
    // A longer list than the kernel takes is one that it refuses.
    let count = libc::c_int::try_from(pieces.len()).unwrap_or(libc::c_int::MAX);
    (pieces.as_ptr(), count)
}

fn retried(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
