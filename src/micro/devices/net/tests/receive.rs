use vm_memory::{Bytes, GuestAddress};

use super::super::{FRAMES_PER_EVENT, MAX_FRAME, Pause};
use super::*;

const MERGEABLE: Room = Room::Bytes(MAX_FRAME);

/// What stands in `length` bytes from the first buffer on, and the number of buffers in its header.
fn received(fixture: &Fixture, at: u64, length: usize) -> (Vec<u8>, u16) {
    let mut bytes = vec![0; length];
    let at = GuestAddress(at);
    fixture.memory.read_slice(&mut bytes, at).unwrap();
    let count = u16::from_le_bytes([bytes[10], bytes[11]]);
    bytes[10..12].fill(0);
    (bytes, count)
}

#[test]
fn a_frame_fills_as_many_buffers_as_it_needs() {
    for (lengths, length, expected) in [
        (vec![2048], 60, vec![60]),
        (vec![60, 60], 60, vec![60]),
        (vec![59, 60], 60, vec![59, 1]),
        (vec![12, 12, 12, 100], 61, vec![12, 12, 12, 25]),
        (
            vec![1536; 64],
            MAX_FRAME,
            [vec![1536; 42], vec![1050]].concat(),
        ),
        (vec![4096; 16], 65_536, vec![4096; 16]),
    ] {
        let mut fixture = Fixture::new(64);
        let mut receiver = fixture.receiver(MERGEABLE);
        let buffers = fixture.offer(&lengths);
        let sent = frame(length, 7);
        fixture.wire.send(&sent).unwrap();
        assert_eq!(receiver.work().unwrap(), Pause::Idle);
        assert_eq!(fixture.used(), expected, "{length} bytes");
        assert_eq!(fixture.interrupts(), 1);
        let (bytes, count) = received(&fixture, buffers[0].at, length);
        assert_eq!(usize::from(count), expected.len());
        assert!(bytes == sent, "{length} bytes arrive as they were");
    }
}

#[test]
fn without_mergeable_buffers_a_frame_takes_one_and_what_is_larger_is_dropped() {
    let mut fixture = Fixture::new(8);
    let mut receiver = fixture.receiver(Room::OneChain);
    let buffers = fixture.offer(&[100, 200]);
    for length in [101, 100, 200] {
        fixture.wire.send(&frame(length, 1)).unwrap();
    }
    assert_eq!(receiver.work().unwrap(), Pause::Idle);
    assert_eq!(fixture.used(), [100, 200]);
    for (buffer, length) in buffers.iter().zip([100, 200]) {
        assert_eq!(received(&fixture, buffer.at, length), (frame(length, 1), 1));
    }
}

#[test]
fn a_frame_may_lie_over_several_descriptors_of_a_chain() {
    let mut fixture = Fixture::new(8);
    let mut receiver = fixture.receiver(Room::OneChain);
    // The last two bytes of the header, the number of buffers, stand in two pieces.
    let pieces = [(HEAP, 11), (HEAP + 11, 40), (HEAP + 51, 100)];
    let chain = pieces.map(|(at, length)| writable(at, length));
    fixture.ring.offer_indirect(0x9000, &chain);
    fixture.wire.send(&frame(90, 3)).unwrap();
    receiver.work().unwrap();
    assert_eq!(fixture.used(), [90]);
    assert_eq!(received(&fixture, HEAP, 90), (frame(90, 3), 1));
}

#[test]
fn a_frame_waits_for_the_buffers_that_it_still_needs() {
    let mut fixture = Fixture::new(8);
    let mut receiver = fixture.receiver(MERGEABLE);
    fixture.offer(&[64, 64]);
    let sent = frame(300, 9);
    fixture.wire.send(&sent).unwrap();
    fixture.wire.send(&frame(40, 8)).unwrap();
    let more = [128, 168, 208].map(|from| writable(HEAP + from, 40));
    for more in more {
        assert_eq!(receiver.work().unwrap(), Pause::Idle);
        assert_eq!(fixture.used(), [0; 0]);
        assert_eq!(fixture.interrupts(), 0);
        fixture.ring.offer(&[more]);
    }
    fixture.ring.offer(&[writable(HEAP + 248, 100)]);
    fixture.ring.offer(&[writable(HEAP + 400, 100)]);
    assert_eq!(receiver.work().unwrap(), Pause::Idle);
    assert_eq!(fixture.used(), [64, 64, 40, 40, 40, 52, 40]);
    assert_eq!(received(&fixture, HEAP, 300), (sent, 6));
    assert_eq!(received(&fixture, HEAP + 400, 40), (frame(40, 8), 1));
}

#[test]
fn a_frame_that_no_ring_could_take_does_not_stop_the_next() {
    let mut fixture = Fixture::new(4);
    let mut receiver = fixture.receiver(MERGEABLE);
    fixture.offer(&[64; 4]);
    fixture.wire.send(&frame(257, 9)).unwrap();
    fixture.wire.send(&frame(256, 8)).unwrap();
    assert_eq!(receiver.work().unwrap(), Pause::Idle);
    assert_eq!(fixture.used(), [64; 4]);
    assert_eq!(received(&fixture, HEAP, 256), (frame(256, 8), 4));
}

#[test]
fn a_queue_moves_its_share_and_then_lets_others_work() {
    let mut fixture = Fixture::new(256);
    let mut receiver = fixture.receiver(MERGEABLE);
    fixture.offer(&[100; 256]);
    for _ in 0..FRAMES_PER_EVENT + 1 {
        fixture.wire.send(&frame(60, 0)).unwrap();
    }
    assert_eq!(receiver.work().unwrap(), Pause::Share);
    assert_eq!(fixture.used(), [60; FRAMES_PER_EVENT]);
    assert_eq!(receiver.work().unwrap(), Pause::Idle);
    assert_eq!(fixture.used(), [60]);
}

#[test]
fn what_no_frame_has_filled_goes_back_to_the_ring() {
    let mut fixture = Fixture::new(8);
    let mut receiver = fixture.receiver(MERGEABLE);
    fixture.offer(&[64, 64, 64]);
    fixture.wire.send(&frame(100, 1)).unwrap();
    // This one is held: it has begun to fill the third chain.
    fixture.wire.send(&frame(100, 2)).unwrap();
    receiver.work().unwrap();
    assert_eq!(fixture.used(), [64, 36]);
    let before = receiver.state().1;
    receiver.give_back();
    let after = receiver.state().1;
    assert_eq!(before, after);
    assert_eq!((after.next_avail, after.next_used), (2, 2));
    fixture.wire.send(&frame(64, 3)).unwrap();
    receiver.work().unwrap();
    assert_eq!(fixture.used(), [64]);
    assert_eq!(received(&fixture, HEAP + 128, 64), (frame(64, 3), 1));
}

#[test]
fn runts_are_dropped() {
    let mut fixture = Fixture::new(8);
    let mut receiver = fixture.receiver(MERGEABLE);
    fixture.offer(&[64; 2]);
    for length in [1, 12, 25, 26] {
        fixture.wire.send(&frame(length, 1)).unwrap();
    }
    receiver.work().unwrap();
    assert_eq!(fixture.used(), [26]);
}

#[test]
fn hostile_buffers_are_faults() {
    const NO_RAM: u64 = crate::micro::virtio::fixture::NO_RAM;
    for (chain, what) in [
        (vec![writable(HEAP, 11)], "without room for a header"),
        (vec![writable(HEAP, 0)], "without room for a header"),
        (
            vec![readable(HEAP, 12), writable(HEAP, 2048)],
            "to receive that is to be read",
        ),
        (vec![writable(NO_RAM - 8, 2048)], "outside of its memory"),
        (vec![writable(u64::MAX - 8, 2048)], "outside of its memory"),
        (vec![writable(HEAP, 1 << 21)], "that is too long"),
    ] {
        let mut fixture = Fixture::new(8);
        let mut receiver = fixture.receiver(MERGEABLE);
        fixture.ring.offer(&chain);
        assert_eq!(said(receiver.work()), what);
        assert_eq!(fixture.used(), [0; 0]);
    }
    let fixture = Fixture::new(8);
    fixture.ring.set_available(9);
    let problem = fixture.receiver(MERGEABLE).work().unwrap_err();
    assert!(matches!(problem, Problem::Queue { queue: 0, .. }));
}
