//! Where fuzz targets enter: one function each, which takes any bytes.
//!
//! ```text
//! fuzz/fuzz_targets/<name>.rs ─▶ fuzzing::<name>(bytes) ─▶ what a guest, or a file, can reach
//!
//! a device's bytes:  0        8      16
//!                    ├features┼ how many chains queue i has (1 byte each, up to 8) ┼ guest RAM from 0 …
//!  guest RAM:        queue i: 512 bytes at 512 i: 8 descriptors, available ring, used ring │ the rest
//! ```
//! The device, its handlers and what they do to descriptors are the real ones; only the thread is the
//! fuzzer's own, so that nothing happens at another time when an input is tried again.
//!
//! Random descriptors would seldom point to RAM: their addresses and lengths are cut to twice its size,
//! unless their upper two flags, which virtio does not use, say that they are meant so.

use std::cell::RefCell;
use std::os::fd::AsRawFd;
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};

use event_manager::{EventManager, SubscriberOps};
use virtio_queue::{Queue, QueueState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::bus::Region;
use super::devices::balloon::device::Balloon;
use super::devices::block::device::Block;
use super::devices::net::device::Net;
use super::devices::rng::device::Rng;
use super::devices::vsock::device::Vsock;
use super::lane::{Handler, Lanes};
use super::notice::Notices;
use super::snapshot::{file, saved::Saved};
use super::virtio::device::{Activation, ActiveQueue, Device};
use super::virtio::interrupt::Interrupt;
use super::virtio::mmio::Transport;
use crate::units::ByteSize;
use crate::vm::spec::{Disk, DiskFormat, Nic};

/// Bytes of guest RAM.
const RAM: usize = 64 << 10;
/// Descriptors of each queue.
const QUEUE: u16 = 8;
/// Bytes from one queue to the next.
const ROOM: u64 = 512;
/// Bytes before what is guest RAM.
const HEADER: usize = 16;
/// Rounds of events after which a handler has had its turn.
const ROUNDS: usize = 8;

/// The state file of a snapshot: `data` is a whole file, and the payload of one that is well-formed.
pub fn state(data: &[u8]) {
    let _ = file::decode::<Saved>(data);
    if let Ok(state) = file::unsealed::<Saved>(data) {
        let bytes = file::encode(&state).expect("what was read can be written");
        file::decode::<Saved>(&bytes).expect("what was written can be read");
    }
}

/// A disk of 1 MiB, in memory.
pub fn block(data: &[u8]) {
    thread_local! {
        static DEVICE: RefCell<Block> = RefCell::new(disk());
    }
    DEVICE.with_borrow_mut(|device| drive(device, data));
}

/// The random number generator.
pub fn rng(data: &[u8]) {
    drive(&mut Rng, data);
}

/// The memory balloon.
pub fn balloon(data: &[u8]) {
    drive(&mut Balloon::new(ByteSize::from_mib(1), false, None), data);
}

/// vsock, on a socket that nobody connects to.
pub fn vsock(data: &[u8]) {
    thread_local! {
        static FOLDER: tempfile::TempDir = tempfile::tempdir().expect("a folder");
    }
    FOLDER.with(|folder| {
        let path = folder.path().join("vsock");
        drive(&mut Vsock::new(3, &path, None).expect("a socket"), data);
    });
}

/// A network interface: what it sends, and its control queue. Its TAP device is down. Root only.
pub fn net(data: &[u8]) {
    thread_local! {
        static DEVICE: RefCell<Net> = RefCell::new(nic());
    }
    DEVICE.with_borrow_mut(|device| drive(device, data));
}

/// The registers of a transport, with the random number generator behind them: each 8 bytes are an
/// access (offset, width, whether it writes, value).
pub fn transport(data: &[u8]) {
    static LANES: OnceLock<Arc<Lanes>> = OnceLock::new();
    let lanes = LANES.get_or_init(|| {
        let lanes = Lanes::start(1, &(Arc::new(|| Ok(())) as _)).expect("a thread");
        Arc::new(lanes)
    });
    let (sender, _notices) = channel();
    let mut transport = Transport::new(
        Box::new(Rng),
        ram(&[]),
        Arc::clone(lanes),
        event(),
        Notices::new(sender),
    )
    .expect("a transport");
    for access in data.as_chunks::<8>().0 {
        let [low, high, how, _, value @ ..] = *access;
        let offset = u64::from(u16::from_le_bytes([low, high]) & 0xfff);
        let width = [1, 2, 4, 8][usize::from(how & 3)];
        if how & 4 == 0 {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&value);
            transport.write(offset, &bytes[..width]);
        } else {
            transport.read(offset, &mut [0; 8][..width]);
        }
    }
    let saved = transport
        .save()
        .expect("what a driver brought about can be saved");
    transport.reset();
    drop(saved);
}

/// Activates `device` with the rings in `data`, serves what they ask for, and resets it.
fn drive(device: &mut dyn Device, data: &[u8]) {
    let Some((header, content)) = data.split_at_checked(HEADER) else {
        return;
    };
    let (features, chains) = header.split_at(8);
    let features = features.try_into().map_or(0, u64::from_le_bytes) & device.features();
    let memory = ram(content);
    let count = device.queue_sizes().len().min(8);
    let kicks: Vec<_> = (0..count).map(|_| event()).collect();
    let mut queues = Vec::new();
    for ((index, kick), &chains) in (0_u16..).zip(&kicks).zip(chains) {
        let kick = kick.try_clone().expect("a descriptor");
        let queue = queue(&memory, index, chains, features);
        queues.push(ActiveQueue { index, queue, kick });
    }
    let (sender, _notices) = channel();
    let activation = Activation {
        memory,
        features,
        queues,
        interrupt: Arc::new(Interrupt::new(event(), 0)),
        notices: Notices::new(sender),
    };
    if let Ok(placed) = device.activate(activation) {
        serve(placed.into_iter().map(|placed| placed.handler), &kicks);
    }
    device.reset();
}

fn serve(handlers: impl Iterator<Item = Handler>, kicks: &[EventFd]) {
    let mut manager = EventManager::<Handler>::new().expect("an epoll");
    let ids: Vec<_> = handlers
        .map(|handler| manager.add_subscriber(handler))
        .collect();
    for kick in kicks {
        kick.write(1).expect("a kick");
    }
    for _ in 0..ROUNDS {
        if manager.run_with_timeout(0).map_or(0, |events| events) == 0 {
            break;
        }
    }
    for id in ids {
        let mut handler = manager.remove_subscriber(id).expect("it was added");
        let _ = handler.quiesce();
        let _ = handler.queues();
    }
}

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).expect("a descriptor")
}

/// Guest RAM that begins with `content`.
fn ram(content: &[u8]) -> GuestMemoryMmap {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).expect("memory");
    let content = &content[..content.len().min(RAM)];
    memory
        .write_slice(content, GuestAddress(0))
        .expect("it fits");
    memory
}

/// Queue `index` as the picture has it.
fn queue(memory: &GuestMemoryMmap, index: u16, chains: u8, features: u64) -> Queue {
    let at = ROOM * u64::from(index);
    let (avail, used) = (at + 16 * u64::from(QUEUE), at + 256);
    for descriptor in 0..u64::from(QUEUE) {
        tame(memory, GuestAddress(at + 16 * descriptor));
    }
    let number = u16::from(chains).to_le();
    memory
        .write_obj(number, GuestAddress(avail + 2))
        .expect("in RAM");
    Queue::try_from(QueueState {
        max_size: QUEUE,
        size: QUEUE,
        ready: true,
        desc_table: at,
        avail_ring: avail,
        used_ring: used,
        event_idx_enabled: features & 1 << 29 != 0,
        ..QueueState::default()
    })
    .expect("a queue")
}

/// Cuts a descriptor's address and length, unless its flags say otherwise.
fn tame(memory: &GuestMemoryMmap, at: GuestAddress) {
    let mut descriptor = [0_u8; 16];
    memory.read_slice(&mut descriptor, at).expect("in RAM");
    if descriptor[13] & 0x80 == 0 {
        descriptor[2] &= 1;
        descriptor[3..8].fill(0);
    }
    if descriptor[13] & 0x40 == 0 {
        descriptor[10] &= 1;
        descriptor[11] = 0;
    }
    memory.write_slice(&descriptor, at).expect("in RAM");
}

fn disk() -> Block {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = rustix::fs::memfd_create("disk", flags).expect("memory");
    rustix::fs::ftruncate(&file, 1 << 20).expect("room");
    let disk = Disk {
        path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
        readonly: false,
        format: DiskFormat::Raw,
        serial: "fuzz".to_owned(),
        queues: 1,
    };
    Block::open(&disk, None).expect("a disk")
}

/// On a TAP device in a namespace of this thread's own, which goes away with it.
fn nic() -> Net {
    let tap = "fuzz0".to_owned();
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this target needs root");
    crate::sys::tun::create(&tap, 1).expect("a TAP device");
    let nic = Nic {
        tap,
        mac: "02:00:00:00:00:01".parse().expect("an address"),
        queue_pairs: 1,
        mtu: 1500,
    };
    Net::open(&nic, None).expect("the TAP device")
}

/// So that the entries stay alive where nobody fuzzes.
#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Any features, some chains, mostly descriptors that lead to memory.
    fn inputs() -> impl Strategy<Value = Vec<u8>> {
        let header = (any::<[u8; 8]>(), prop::array::uniform8(0..=8_u8));
        let content = prop::collection::vec(prop_oneof![Just(0), 0..8_u8, any::<u8>()], 0..2048);
        (header, content)
            .prop_map(|((features, chains), content)| [&features[..], &chains, &content].concat())
    }

    proptest! {
        // A look, not a search.
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn no_bytes_harm_a_device(data in inputs()) {
            block(&data);
            rng(&data);
            balloon(&data);
            vsock(&data);
        }

        #[test]
        fn no_bytes_harm_a_transport_or_a_reader(data in any::<Vec<u8>>()) {
            transport(&data);
            state(&data);
        }
    }
}
