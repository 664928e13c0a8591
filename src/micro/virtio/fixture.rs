//! For tests: a driver that finds a device behind its transport and works it through real memory,
//! real lanes and real descriptors, as a guest's would.
//!
//! ```text
//! 0          1 MiB     2 MiB                 16 MiB      32 MiB        48 MiB
//! │          │ rings   │ heap: put, room  ▶  │  no RAM   │ RAM         │ no RAM
//! ```

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::Device;
use super::mmio::state::TransportState;
use super::mmio::{QUEUE_NOTIFY, Transport, TransportError};
use crate::micro::bus::Region;
use crate::micro::lane::Lanes;
use crate::micro::notice::{Fault, Notice, Notices};
use crate::micro::seccomp;

/// An address without RAM, after [`MEMORY_END`].
pub(crate) const NO_RAM: u64 = 16 << 20;
/// End of the lower part of RAM.
pub(crate) const MEMORY_END: u64 = 16 << 20;

const RINGS: u64 = 1 << 20;
const RING_ROOM: u64 = 64 << 10;
const HEAP: u64 = 2 << 20;
/// A device that has not answered after this time never will.
const PATIENCE: Duration = Duration::from_secs(20);

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;

/// RAM as in the picture.
pub(crate) fn memory() -> GuestMemoryMmap {
    let ranges = [0, 32 << 20].map(|start| (GuestAddress(start), 16 << 20));
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

/// A piece of guest memory for the device to read or to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buffer {
    pub(crate) at: u64,
    pub(crate) length: u32,
    pub(crate) writable: bool,
}

/// The driver's side of one queue.
#[derive(Debug)]
pub(crate) struct Ring {
    memory: GuestMemoryMmap,
    pub(crate) state: QueueState,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
    offered: u16,
    taken: u16,
}

impl Ring {
    /// An empty queue of `size` whose rings begin at `at`.
    pub(crate) fn new(memory: &GuestMemoryMmap, at: u64, size: u16) -> Self {
        let table = 16 * u64::from(size);
        let zeroes = vec![0; usize::try_from(RING_ROOM).unwrap()];
        memory.write_slice(&zeroes, GuestAddress(at)).unwrap();
        Self {
            memory: memory.clone(),
            state: QueueState {
                max_size: size,
                size,
                ready: true,
                desc_table: at,
                avail_ring: at + table,
                used_ring: (at + table + 6 + 2 * u64::from(size)).next_multiple_of(4),
                ..QueueState::default()
            },
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
            offered: 0,
            taken: 0,
        }
    }

    /// The device's side, for tests without a transport.
    pub(crate) fn queue(&self) -> Queue {
        Queue::try_from(self.state).unwrap()
    }

    /// Writes a descriptor, right or wrong.
    pub(crate) fn describe(&self, index: u16, descriptor: Descriptor) {
        self.describe_at(self.state.desc_table + 16 * u64::from(index), descriptor);
    }

    fn describe_at(&self, at: u64, descriptor: Descriptor) {
        let at = GuestAddress(at);
        self.memory.write_obj(descriptor, at).unwrap();
    }

    /// Makes the chain at `head` available.
    pub(crate) fn make_available(&mut self, head: u16) {
        let slot = u64::from(self.offered % self.state.size);
        let at = GuestAddress(self.state.avail_ring + 4 + 2 * slot);
        self.memory.write_obj(head.to_le(), at).unwrap();
        self.offered = self.offered.wrapping_add(1);
        self.set_available(self.offered);
    }

    /// Says how many chains were made available, true or not.
    pub(crate) fn set_available(&self, index: u16) {
        let at = GuestAddress(self.state.avail_ring + 2);
        let order = std::sync::atomic::Ordering::SeqCst;
        self.memory.store(index.to_le(), at, order).unwrap();
    }

    /// Makes `buffers` available as one chain; its head.
    pub(crate) fn offer(&mut self, buffers: &[Buffer]) -> u16 {
        let from = self.free.len() - buffers.len();
        let mut chain = self.free.split_off(from);
        chain.reverse();
        for (place, buffer) in buffers.iter().enumerate() {
            let next = chain.get(place + 1).copied();
            self.describe(chain[place], described(buffer, next));
        }
        let head = chain[0];
        self.chains.insert(head, chain);
        self.make_available(head);
        head
    }

    /// Makes `buffers` available as one chain whose table stands at `table`; its head.
    pub(crate) fn offer_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        for (place, buffer) in (0..).zip(buffers) {
            let more = usize::from(place) + 1 < buffers.len();
            let next = more.then_some(place + 1);
            self.describe_at(table + 16 * u64::from(place), described(buffer, next));
        }
        let head = self.free.pop().unwrap();
        let bytes = 16 * u32::try_from(buffers.len()).unwrap();
        self.describe(head, Descriptor::new(table, bytes, F_INDIRECT, 0));
        self.chains.insert(head, vec![head]);
        self.make_available(head);
        head
    }

    /// How many chains the device has used.
    pub(crate) fn used(&self) -> u16 {
        let at = GuestAddress(self.state.used_ring + 2);
        let order = std::sync::atomic::Ordering::SeqCst;
        u16::from_le(self.memory.load(at, order).unwrap())
    }

    /// The next used chain: head, and bytes that the device says it has written.
    pub(crate) fn take(&mut self) -> Option<(u16, u32)> {
        if self.used() == self.taken {
            return None;
        }
        let slot = u64::from(self.taken % self.state.size);
        let at = GuestAddress(self.state.used_ring + 4 + 8 * slot);
        let [head, length]: [u32; 2] = self.memory.read_obj(at).unwrap();
        let head = u16::try_from(u32::from_le(head)).unwrap();
        self.taken = self.taken.wrapping_add(1);
        self.free
            .extend(self.chains.remove(&head).unwrap_or_default());
        Some((head, u32::from_le(length)))
    }

    /// Asks for an interrupt once more than `index` chains are used (`VIRTIO_RING_F_EVENT_IDX`).
    pub(crate) fn set_used_event(&self, index: u16) {
        let at = self.state.avail_ring + 4 + 2 * u64::from(self.state.size);
        let at = GuestAddress(at);
        let order = std::sync::atomic::Ordering::SeqCst;
        self.memory.store(index.to_le(), at, order).unwrap();
    }

    /// When the device wants to be notified (`VIRTIO_RING_F_EVENT_IDX`).
    pub(crate) fn avail_event(&self) -> u16 {
        let at = self.state.used_ring + 4 + 8 * u64::from(self.state.size);
        let at = GuestAddress(at);
        u16::from_le(self.memory.read_obj(at).unwrap())
    }
}

fn described(buffer: &Buffer, next: Option<u16>) -> Descriptor {
    let write = if buffer.writable { F_WRITE } else { 0 };
    let more = if next.is_some() { F_NEXT } else { 0 };
    Descriptor::new(
        buffer.at,
        buffer.length,
        write | more,
        next.unwrap_or_default(),
    )
}

/// A guest with one device.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) transport: Transport,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) rings: Vec<Ring>,
    line: EventFd,
    notices: Receiver<Notice>,
    heap: u64,
}

impl Driver {
    /// A guest before its driver has touched the device.
    pub(crate) fn find(device: Box<dyn Device>) -> Self {
        let lanes = Arc::new(Lanes::start(2, &seccomp::lane().unwrap()).unwrap());
        let (memory, line) = (memory(), line());
        let (tell, notices) = channel();
        let transport = Transport::new(
            device,
            memory.clone(),
            Arc::clone(&lanes),
            line.try_clone().unwrap(),
            Notices::new(tell),
        );
        Self {
            memory,
            transport: transport.unwrap(),
            lanes,
            rings: Vec::new(),
            line,
            notices,
            heap: HEAP,
        }
    }

    /// A guest whose driver took those of `features` that are offered, and all queues.
    pub(crate) fn start(device: Box<dyn Device>, features: u64) -> Self {
        let mut driver = Self::find(device);
        driver.begin(features);
        driver
    }

    /// Initialises the device (virtio 1.2, 3.1.1), with all queues at their largest.
    pub(crate) fn begin(&mut self, features: u64) {
        let features = self.offered() & (features | 1 << 32);
        assert!(self.negotiate(features), "the device takes its features");
        for index in 0.. {
            self.write(0x30, index);
            let Ok(size @ 1..) = u16::try_from(self.read(0x34)) else {
                break;
            };
            self.set_up_queue(index, size);
        }
        self.write(0x70, 15);
        assert_eq!(self.read(0x70), 15, "the device is ready");
    }

    /// Up to `FEATURES_OK`; whether the device agreed.
    pub(crate) fn negotiate(&mut self, features: u64) -> bool {
        self.write(0x70, 0);
        self.rings.clear();
        self.write(0x70, 1);
        self.write(0x70, 3);
        for (half, value) in [(0, features), (1, features >> 32)] {
            self.write(0x24, half);
            self.write(0x20, u32::try_from(value & 0xffff_ffff).unwrap());
        }
        self.write(0x70, 11);
        self.read(0x70) == 11
    }

    /// What the device offers.
    pub(crate) fn offered(&mut self) -> u64 {
        let [low, high] = [0, 1].map(|half| {
            self.write(0x14, half);
            u64::from(self.read(0x10))
        });
        high << 32 | low
    }

    /// Sets up the next queue and tells the device.
    pub(crate) fn set_up_queue(&mut self, index: u32, size: u16) {
        let ring = Ring::new(
            &self.memory,
            RINGS + RING_ROOM * self.rings.len() as u64,
            size,
        );
        self.tell_queue(index, &ring.state);
        self.rings.push(ring);
    }

    /// Tells the device about a queue, right or wrong.
    pub(crate) fn tell_queue(&mut self, index: u32, state: &QueueState) {
        self.write(0x30, index);
        self.write(0x38, u32::from(state.size));
        for (register, address) in [
            (0x80, state.desc_table),
            (0x90, state.avail_ring),
            (0xa0, state.used_ring),
        ] {
            let low = u32::try_from(address & 0xffff_ffff).unwrap();
            self.write(register, low);
            self.write(register + 4, u32::try_from(address >> 32).unwrap());
        }
        self.write(0x44, u32::from(state.ready));
    }

    /// Reads a register.
    pub(crate) fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub(crate) fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// Reads `length` bytes of the configuration.
    pub(crate) fn config(&mut self, offset: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0xaa; length];
        self.transport.read(0x100 + offset, &mut data);
        data
    }

    /// Memory with `bytes` in it, for the device to read.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Buffer {
        let mut buffer = self.room(u32::try_from(bytes.len()).unwrap());
        let at = GuestAddress(buffer.at);
        self.memory.write_slice(bytes, at).unwrap();
        buffer.writable = false;
        buffer
    }

    /// Memory for the device to write. It comes around again after 14 MiB.
    pub(crate) fn room(&mut self, length: u32) -> Buffer {
        let room = u64::from(length).next_multiple_of(64);
        if self.heap + room > MEMORY_END {
            self.heap = HEAP;
        }
        let at = self.heap;
        self.heap += room;
        let stale = vec![0xaa; length as usize];
        self.memory.write_slice(&stale, GuestAddress(at)).unwrap();
        Buffer {
            at,
            length,
            writable: true,
        }
    }

    /// What stands in a buffer.
    pub(crate) fn bytes(&self, buffer: Buffer) -> Vec<u8> {
        let mut bytes = vec![0; buffer.length as usize];
        let at = GuestAddress(buffer.at);
        self.memory.read_slice(&mut bytes, at).unwrap();
        bytes
    }

    /// Makes a chain available and notifies; its head.
    pub(crate) fn send(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let head = self.rings[queue].offer(buffers);
        self.notify(queue);
        head
    }

    /// Notifies.
    pub(crate) fn notify(&mut self, queue: usize) {
        self.write(QUEUE_NOTIFY, u32::try_from(queue).unwrap());
    }

    /// Waits for the interrupt that says that a chain was used: its head and length.
    pub(crate) fn wait(&mut self, queue: usize) -> (u16, u32) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ring = &mut self.rings[queue];
            ring.set_used_event(ring.taken);
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            if let Some(used) = ring.take() {
                return used;
            }
            if !self.interrupted(deadline.saturating_duration_since(Instant::now())) {
                let told = self.notices.try_recv();
                panic!("no interrupt for queue {queue}; notices: {told:?}");
            }
        }
    }

    /// Waits for an interrupt and acknowledges it; whether there was one.
    pub(crate) fn interrupted(&mut self, patience: Duration) -> bool {
        let epoll = Epoll::new().unwrap();
        let watch = EpollEvent::new(EventSet::IN, 0);
        epoll
            .ctl(ControlOperation::Add, self.line.as_raw_fd(), watch)
            .unwrap();
        let milliseconds = i32::try_from(patience.as_millis()).unwrap();
        let mut ready = [EpollEvent::default()];
        match epoll.wait(milliseconds, &mut ready) {
            Ok(0) => return false,
            Ok(_) => {}
            // io_uring's cleaning up after itself interrupts system calls.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {
                return self.interrupted(patience);
            }
            Err(error) => panic!("epoll: {error}"),
        }
        self.line.read().unwrap();
        let status = self.read(0x60);
        self.write(0x64, status);
        true
    }

    /// Waits for the fault that ends the VM.
    pub(crate) fn fault(&self) -> Fault {
        match self.notices.recv_timeout(PATIENCE) {
            Ok(Notice::Fault(fault)) => fault,
            other => panic!("no fault, but {other:?}"),
        }
    }

    /// A fault that was told already.
    pub(crate) fn told(&self) -> Option<Notice> {
        self.notices.try_recv().ok()
    }

    /// Saves as a snapshot does: parked, in a form that can be written to a file.
    pub(crate) fn save(&self) -> Vec<u8> {
        self.lanes.park().unwrap();
        let state = self.transport.save().unwrap();
        postcard::to_stdvec(&state).unwrap()
    }

    /// Puts a device that was saved in the place of this one, in the same memory.
    pub(crate) fn restore(
        &mut self,
        device: Box<dyn Device>,
        saved: &[u8],
    ) -> Result<(), TransportError> {
        let state: TransportState = postcard::from_bytes(saved).unwrap();
        let lanes = Arc::new(Lanes::start(2, &seccomp::lane().unwrap()).unwrap());
        let (tell, notices) = channel();
        let line = line();
        self.transport = Transport::restore(
            device,
            self.memory.clone(),
            Arc::clone(&lanes),
            line.try_clone().unwrap(),
            Notices::new(tell),
            &state,
        )?;
        self.transport.resume();
        (self.lanes, self.line, self.notices) = (lanes, line, notices);
        Ok(())
    }
}

fn line() -> EventFd {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap()
}
