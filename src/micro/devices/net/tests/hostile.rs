//! Rings that no driver would make: nothing panics, hangs, or is used that was not available.

use proptest::prelude::*;
use proptest::sample::select;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::super::control::Control;
use super::super::device::Net;
use super::super::{MAX_FRAME, Pause};
use super::device::nic;
use super::*;
use crate::micro::fixture::logged;
use crate::micro::notice::Notices;
use crate::micro::virtio::fixture::NO_RAM;

/// A table for indirect descriptors.
const TABLE: u64 = 0x9000;

const SIZE: u16 = 8;

fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let at = select(vec![HEAP, TABLE, RING, NO_RAM - 40, NO_RAM, u64::MAX - 9]);
    let length = select(vec![0, 1, 12, 16, 26, 60, 128, 4096, 1 << 20, u32::MAX]);
    (at, length, 0..8_u16, 0..10_u16)
}

fn describe(memory: &GuestMemoryMmap, table: u64, descriptors: &[(u64, u32, u16, u16)]) {
    for (place, (at, length, flags, next)) in (0..).zip(descriptors) {
        let descriptor = Descriptor::new(*at, *length, *flags, *next);
        let place = GuestAddress(table + 16 * place);
        memory.write_obj(descriptor, place).unwrap();
    }
}

proptest! {
    #[test]
    fn any_ring_is_served_or_refused(
        direct in prop::collection::vec(descriptor(), usize::from(SIZE)),
        indirect in prop::collection::vec(descriptor(), 8),
        heads in prop::collection::vec(0..10_u16, usize::from(SIZE)),
        start in select(vec![0, 3, u16::MAX]),
        available in 0..10_u16,
        frames in prop::collection::vec(select(vec![1_usize, 26, 60, 3000, MAX_FRAME]), 0..6),
        mergeable: bool,
        event_idx: bool,
    ) {
        let mut fixture = Fixture::new(SIZE);
        describe(&fixture.memory, fixture.ring.state.desc_table, &direct);
        describe(&fixture.memory, TABLE, &indirect);
        for (slot, head) in (0..).zip(heads) {
            let at = GuestAddress(fixture.ring.state.avail_ring + 4 + 2 * slot);
            fixture.memory.write_obj(head, at).unwrap();
        }
        fixture.ring.set_available(start.wrapping_add(available));
        fixture.ring.state.next_avail = start;
        fixture.ring.state.next_used = start;
        fixture.ring.state.event_idx_enabled = event_idx;
        for (length, seed) in frames.into_iter().zip(0..) {
            // The socket has room for three of the longest.
            if fixture.wire.send(&frame(length, seed)).is_err() {
                break;
            }
        }
        let room = if mergeable { Room::Bytes(MAX_FRAME) } else { Room::OneChain };
        let mut receiver = fixture.receiver(room);
        let mut sender = fixture.sender();
        let most = available.min(SIZE);
        for _ in 0..3 {
            if matches!(receiver.work(), Ok(pause) if pause != Pause::Idle) {
                prop_assert!(false, "six frames are no share");
            }
            let _ = sender.work();
            receiver.give_back();
            // A frame may have been written over the ring itself, which then offers what it likes.
            let index = GuestAddress(fixture.ring.state.avail_ring + 2);
            let index: u16 = fixture.memory.read_obj(index).unwrap();
            if index != start.wrapping_add(available) {
                break;
            }
            for (_, state) in [receiver.state(), sender.state()] {
                prop_assert!(state.next_used.wrapping_sub(start) <= most);
                prop_assert!(state.next_avail.wrapping_sub(start) <= most);
            }
        }
    }
}

#[test]
fn commands_that_the_kernel_refuses_for_ever_fill_no_log() {
    let mut fixture = Fixture::new(SIZE);
    // No TAP device at all.
    let (_wire, tap) = std::os::unix::net::UnixStream::pair().unwrap();
    let tap = Tap::new(vec![File::from(std::os::fd::OwnedFd::from(tap))]);
    let net = Net::new(&nic("tap0", 1), tap, None);
    let mut control = Control {
        device: "nic tap0".to_owned(),
        active: fixture.active(2),
        memory: fixture.memory.clone(),
        features: u64::MAX,
        shared: Arc::clone(&net.shared),
        wake: vec![],
        interrupt: fixture.interrupt(),
        notices: Notices::new(std::sync::mpsc::channel().0),
        told: 0,
    };
    let (command, ack) = (readable(HEAP, 10), writable(HEAP + 10, 1));
    let no_offloads = [&[5, 0][..], &[0; 8]].concat();
    fixture
        .memory
        .write_slice(&no_offloads, GuestAddress(command.at))
        .unwrap();
    let said = logged(|| {
        for _ in 0..3 {
            fixture.ring.offer(&[command, ack]);
            control.work().unwrap();
            assert_eq!(fixture.used(), [1]);
            let refused: u8 = fixture.memory.read_obj(GuestAddress(ack.at)).unwrap();
            assert_eq!(refused, 1);
        }
    });
    assert_eq!(said.matches("nic tap0").count(), 1, "{said}");
}
