//! The other end of a real TAP device: a packet socket on it, with headers (`PACKET_VNET_HDR`).
#![expect(
    unsafe_code,
    reason = "packet sockets and interface flags, which no crate here knows"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A frame that has not come after this time never will.
const PATIENCE: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};

/// `virtio_net_hdr`, of packet sockets.
pub(super) const WIRE_HEADER: usize = 10;

/// The host's side of a TAP device, which is up as long as this is there.
pub(super) struct Wire {
    socket: OwnedFd,
    device: libc::c_int,
}

impl Wire {
    /// Sets the device up, after its VMM has attached to it: then it carries frames at once.
    pub(super) fn on(tap: &str) -> Self {
        // What the kernel itself would say on a new link.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{tap}/disable_ipv6"), "1");
        // SAFETY: no pointers.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
        assert!(socket >= 0, "{}", io::Error::last_os_error());
        // SAFETY: it was just opened, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: all zeroes are an `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(tap.bytes()) {
            *to = from.cast_signed();
        }
        // SAFETY: `request` is an `ifreq`, which the kernel fills.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request) });
        // SAFETY: SIOCGIFINDEX has set it.
        let device = unsafe { request.ifr_ifru.ifru_ifindex };
        let up = libc::IFF_UP | libc::IFF_RUNNING;
        request.ifr_ifru.ifru_flags = i16::try_from(up).unwrap();
        // SAFETY: as above, but read only.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) });
        let wire = Self { socket, device };
        wire.option(libc::PACKET_VNET_HDR);
        wire.option(libc::PACKET_IGNORE_OUTGOING);
        // SAFETY: all zeroes are a `sockaddr_ll`.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        address.sll_protocol = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
        address.sll_ifindex = wire.device;
        let length = u32::try_from(size_of_val(&address)).unwrap();
        // SAFETY: `address` is a `sockaddr_ll` of that length.
        check(unsafe { libc::bind(wire.socket.as_raw_fd(), (&raw const address).cast(), length) });
        wire
    }

    fn option(&self, name: libc::c_int) {
        let on: libc::c_int = 1;
        let length = u32::try_from(size_of_val(&on)).unwrap();
        let (fd, value) = (self.socket.as_raw_fd(), (&raw const on).cast());
        // SAFETY: `value` is an int of that length.
        check(unsafe { libc::setsockopt(fd, libc::SOL_PACKET, name, value, length) });
    }

    /// Sends a frame to the guest.
    pub(super) fn send(&self, header: [u8; WIRE_HEADER], frame: &[u8]) {
        let bytes = [&header, frame].concat();
        assert_eq!(
            rustix::io::write(&self.socket, &bytes).unwrap(),
            bytes.len()
        );
    }

    /// Waits for a frame of the guest: header and frame.
    pub(super) fn receive(&self) -> (Vec<u8>, Vec<u8>) {
        let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
        let count = poll(&mut ready, Some(&PATIENCE)).unwrap();
        assert_eq!(count, 1, "no frame came");
        let mut bytes = vec![0; 1 << 17];
        let length = rustix::io::read(self.socket.as_fd(), &mut bytes).unwrap();
        bytes.truncate(length);
        let frame = bytes.split_off(WIRE_HEADER);
        (bytes, frame)
    }
}

fn check(result: libc::c_int) {
    assert!(result >= 0, "{}", io::Error::last_os_error());
}
