//! TAP devices: the Ethernet side of the kernel's TUN/TAP driver (Documentation/networking/tuntap).
//!
//! Invariant: a device made here is persistent, so it outlives the file by which it was made and
//! waits for the VMM, which attaches to it by name with the same flags.
#![expect(unsafe_code, reason = "TUN/TAP devices are made by ioctl")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// The driver's control file.
const DEVICE: &str = "/dev/net/tun";

mod ioctl {
    nix::ioctl_readwrite_bad!(
        /// Makes the file a queue of the interface that the request names.
        set_interface, libc::TUNSETIFF, libc::ifreq
    );
    nix::ioctl_write_int_bad!(
        /// Keeps the file's interface when its last queue is closed (1), or not (0).
        set_persistent, libc::TUNSETPERSIST
    );
}

/// Makes a persistent TAP device in the network namespace of the calling thread: bare Ethernet
/// frames (`IFF_NO_PI`), each behind a virtio-net header (`IFF_VNET_HDR`).
///
/// A device of more than one queue pair has `IFF_MULTI_QUEUE`, one of a single pair has not: the
/// kernel lets a VMM attach only with the same flag, and Cloud Hypervisor chooses it by this rule.
///
/// # Errors
/// The driver is missing, the name is longer than 15 bytes or taken, or the kernel refuses.
pub fn create(name: &str, queue_pairs: u16) -> io::Result<()> {
    let device = attach(name, queue_pairs)?;
    // SAFETY: the descriptor is open for the length of the call, and the argument is a plain int.
    unsafe { ioctl::set_persistent(device.as_raw_fd(), 1) }?;
    Ok(())
}

/// Opens one queue of the TAP device `name`, making it if there is none; one that is made here goes
/// away with the file. Reads of the file do not block.
///
/// # Errors
/// As [`create`]; or an existing device has other flags.
pub fn attach(name: &str, queue_pairs: u16) -> io::Result<File> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if queue_pairs > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = request(name, flags)?;
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE)?;
    // SAFETY: the descriptor is open and `request` is a whole `ifreq`, both for the length of the
    // call; TUNSETIFF reads and writes one `ifreq` and keeps no pointer to it.
    unsafe { ioctl::set_interface(device.as_raw_fd(), &raw mut request) }?;
    Ok(device)
}

/// The `ifreq` that asks for interface `name` with `flags`.
fn request(name: &str, flags: libc::c_int) -> io::Result<libc::ifreq> {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    // The last byte stays the terminating zero.
    if name.is_empty() || name.len() >= ifr_name.len() || name.bytes().any(|b| b == 0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // The flags of TUN/TAP devices fill 16 bits without a sign: the bit pattern is what counts.
    let ifru_flags = u16::try_from(flags)
        .map_err(|_| io::ErrorKind::InvalidInput)?
        .cast_signed();
    Ok(libc::ifreq {
        ifr_name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns::testing::in_private_host;

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        for name in ["", "sixteen-bytes-xx", "a\0b"] {
            let error = attach(name, 1).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
    }

    #[test]
    fn root_a_device_takes_as_many_queues_as_it_has_pairs_and_no_other_flags() {
        in_private_host(|| {
            create("tap0", 1).unwrap();
            create("tap1", 4).unwrap();
            let one = attach("tap0", 1).unwrap();
            assert!(attach("tap0", 1).is_err(), "a second queue of a single one");
            drop(one);
            assert!(attach("tap0", 2).is_err(), "multi-queue on a single queue");
            assert!(attach("tap1", 1).is_err(), "single queue on a multi-queue");
            let queues: Vec<_> = (0..4).map(|_| attach("tap1", 4).unwrap()).collect();
            drop(queues);
            let again = attach("tap1", 4).unwrap();
            drop(again);
        });
    }
}
