use vm_memory::{Bytes, GuestAddress};

use super::super::{FRAMES_PER_EVENT, MAX_FRAME, Pause};
use super::*;

fn put(fixture: &Fixture, at: u64, bytes: &[u8]) {
    fixture.memory.write_slice(bytes, GuestAddress(at)).unwrap();
}

/// All that came out of the wire.
fn sent(fixture: &Fixture) -> Vec<Vec<u8>> {
    let mut buffer = vec![0; 1 << 17];
    std::iter::from_fn(|| {
        let length = fixture.wire.recv(&mut buffer).ok()?;
        Some(buffer[..length].to_vec())
    })
    .collect()
}

#[test]
fn frames_go_out_whole_however_they_are_cut_and_no_other_length_does() {
    for (length, sends) in [
        (0, false),
        (25, false),
        (26, true),
        (1526, true),
        (MAX_FRAME, true),
        (MAX_FRAME + 1, false),
        (1 << 20, false),
    ] {
        for pieces in [1, 3, 17] {
            let mut fixture = Fixture::new(32);
            let mut sender = fixture.sender();
            let bytes = frame(length, 5);
            put(&fixture, HEAP, &bytes);
            let length = u32::try_from(length).unwrap();
            let cuts: Vec<_> = (0..=pieces).map(|i| length * i / pieces).collect();
            let chain: Vec<_> = cuts
                .windows(2)
                .map(|cut| readable(HEAP + u64::from(cut[0]), cut[1] - cut[0]))
                .collect();
            fixture.ring.offer(&chain);
            assert_eq!(sender.work().unwrap(), Pause::Idle);
            assert_eq!(fixture.used(), [0], "{length} bytes are given back");
            assert_eq!(fixture.interrupts(), 1);
            let expected = if sends { vec![bytes] } else { vec![] };
            assert!(sent(&fixture) == expected, "{length} in {pieces}");
        }
    }
}

#[test]
fn a_wire_that_is_cut_or_full_loses_frames_and_stops_nothing() {
    let mut fixture = Fixture::new(128);
    let mut sender = fixture.sender();
    put(&fixture, HEAP, &frame(60, 0));
    for _ in 0..FRAMES_PER_EVENT + 1 {
        fixture.ring.offer(&[readable(HEAP, 60)]);
    }
    assert_eq!(sender.work().unwrap(), Pause::Share);
    assert_eq!(fixture.used(), [0; FRAMES_PER_EVENT]);
    assert_eq!(sender.work().unwrap(), Pause::Idle);
    assert_eq!(fixture.used(), [0]);
    fixture.wire.shutdown(std::net::Shutdown::Both).unwrap();
    fixture.ring.offer(&[readable(HEAP, 60)]);
    assert_eq!(sender.work().unwrap(), Pause::Idle);
    assert_eq!(fixture.used(), [0]);
}

#[test]
fn hostile_frames_are_faults() {
    const NO_RAM: u64 = crate::micro::virtio::fixture::NO_RAM;
    for (chain, what) in [
        (vec![writable(HEAP, 60)], "to send that is to be written"),
        (
            vec![readable(HEAP, 60), writable(HEAP, 60)],
            "to send that is to be written",
        ),
        (vec![readable(NO_RAM - 8, 60)], "outside of its memory"),
        (vec![readable(HEAP, 1 << 21)], "that is too long"),
    ] {
        let mut fixture = Fixture::new(8);
        let mut sender = fixture.sender();
        fixture.ring.offer(&chain);
        assert_eq!(said(sender.work()), what);
        assert_eq!(sent(&fixture), Vec::<Vec<u8>>::new());
    }
    let mut fixture = Fixture::new(8);
    let mut sender = fixture.sender();
    fixture
        .ring
        .offer_indirect(0x9000, &[readable(HEAP, 1); 513]);
    assert_eq!(said(sender.work()), "of too many pieces");
    let fixture = Fixture::new(8);
    fixture.ring.set_available(9);
    let problem = fixture.sender().work().unwrap_err();
    assert!(matches!(problem, Problem::Queue { queue: 1, .. }));
}
