//! Frames through the queues: with a pair of sockets in the TAP device's place, which anyone may
//! have, and on a real one (`root_`), in a network of the test's own.

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::receive::{Receiver, Room};
use super::tap::{Tap, TapQueue};
use super::transmit::Sender;
use crate::micro::notice::Problem;
use crate::micro::virtio::device::ActiveQueue;
use crate::micro::virtio::fixture::{Buffer, Ring, memory};
use crate::micro::virtio::interrupt::Interrupt;

mod device;
mod hostile;
mod lanes;
mod receive;
mod ring;
mod transmit;
mod wire;

/// Where the ring of a test stands.
const RING: u64 = 1 << 20;

/// Where its buffers begin.
const HEAP: u64 = 2 << 20;

/// A queue with a socket in the TAP device's place.
struct Fixture {
    memory: GuestMemoryMmap,
    ring: Ring,
    /// What is at the other end of the wire.
    wire: UnixDatagram,
    tap: Arc<TapQueue>,
    line: EventFd,
}

impl Fixture {
    fn new(size: u16) -> Self {
        let memory = memory();
        // Of all sockets those that keep frames apart and take many of them.
        let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let (wire, tap) = socketpair(family, kind, None, flags).unwrap();
        let wire = UnixDatagram::from(wire);
        let tap = Tap::new(vec![File::from(tap)]);
        Self {
            ring: Ring::new(&memory, RING, size),
            memory,
            wire,
            tap: Arc::clone(&tap.queues()[0]),
            line: event(),
        }
    }

    fn active(&self, index: u16) -> ActiveQueue {
        ActiveQueue {
            index,
            queue: self.ring.queue(),
            kick: event(),
        }
    }

    fn interrupt(&self) -> Arc<Interrupt> {
        Arc::new(Interrupt::new(self.line.try_clone().unwrap(), 0))
    }

    fn receiver(&self, room: Room) -> Receiver {
        let (memory, tap) = (self.memory.clone(), Arc::clone(&self.tap));
        Receiver::new(self.active(0), memory, self.interrupt(), tap, room)
    }

    fn sender(&self) -> Sender {
        let (memory, tap) = (self.memory.clone(), Arc::clone(&self.tap));
        Sender::new(self.active(1), memory, self.interrupt(), tap)
    }

    /// Makes chains available, each of one buffer, and all of them in one row.
    fn offer(&mut self, lengths: &[u32]) -> Vec<Buffer> {
        let mut at = HEAP;
        let buffer = |&length| {
            let buffer = writable(at, length);
            at += u64::from(length);
            buffer
        };
        let buffers: Vec<_> = lengths.iter().map(buffer).collect();
        for buffer in &buffers {
            self.ring.offer(&[*buffer]);
        }
        buffers
    }

    /// Lengths of all chains that were used since the last time.
    fn used(&mut self) -> Vec<u32> {
        std::iter::from_fn(|| self.ring.take())
            .map(|(_, length)| length)
            .collect()
    }

    fn interrupts(&self) -> u64 {
        self.line.read().unwrap_or(0)
    }
}

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap()
}

fn writable(at: u64, length: u32) -> Buffer {
    let writable = true;
    Buffer {
        at,
        length,
        writable,
    }
}

fn readable(at: u64, length: u32) -> Buffer {
    let writable = false;
    Buffer {
        at,
        length,
        writable,
    }
}

/// A frame of `length` bytes, header included, that differs from others by `seed`.
fn frame(length: usize, seed: u8) -> Vec<u8> {
    let body = (0..251).map(|place| place ^ seed).cycle();
    [0; super::HEADER]
        .into_iter()
        .chain(body)
        .take(length)
        .collect()
}

/// What a `Request` problem says of the request.
fn said<T: std::fmt::Debug>(result: Result<T, Problem>) -> &'static str {
    match result {
        Err(Problem::Request { what, .. }) => what,
        other => panic!("no refused request, but {other:?}"),
    }
}
