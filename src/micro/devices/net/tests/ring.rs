use std::num::Wrapping;

use vm_memory::{Bytes, GuestAddress};

use super::super::ring::{Used, publish, wants_interrupt};
use super::*;

fn used(count: u16) -> Vec<Used> {
    (0..count)
        .map(|head| Used {
            head,
            length: 100 + u32::from(head),
        })
        .collect()
}

#[test]
fn many_buffers_are_published_in_order_also_around_the_end() {
    for start in [0, 5, u16::MAX - 2] {
        let memory = memory();
        let mut ring = Ring::new(&memory, RING, 8);
        ring.state.next_used = start;
        let mut queue = ring.queue();
        publish(&mut queue, &memory, &[]).unwrap();
        publish(&mut queue, &memory, &used(6)).unwrap();
        assert_eq!(ring.used(), start.wrapping_add(6));
        for (place, expected) in (0..).zip(used(6)) {
            let slot = (Wrapping(start) + Wrapping(place)).0 % 8;
            let at = GuestAddress(ring.state.used_ring + 4 + 8 * u64::from(slot));
            let [head, length]: [u32; 2] = memory.read_obj(at).unwrap();
            assert_eq!((head, length), (u32::from(expected.head), expected.length));
        }
    }
}

#[test]
fn the_driver_is_interrupted_as_it_asked() {
    // The used event of the driver, what was published before and is now, and whether it is told.
    for (event, before, now, expected) in [
        (0, 0, 1, true),
        (0, 0, 0, false),
        (1, 0, 1, false),
        (1, 0, 2, true),
        (5, 0, 3, false),
        (2, 0, 3, true),
        (0, 1, 4, false),
        (u16::MAX, u16::MAX, 1, true),
        (0, u16::MAX, 1, true),
        (1, u16::MAX, 1, false),
    ] {
        let memory = memory();
        let mut ring = Ring::new(&memory, RING, 8);
        ring.state.event_idx_enabled = true;
        ring.state.next_used = now;
        ring.set_used_event(event);
        let mut told = before;
        let wanted = wants_interrupt(&ring.queue(), &memory, &mut told).unwrap();
        assert_eq!(wanted, expected, "{event}: {before} to {now}");
        assert_eq!(told, now);
    }
    // Without the feature: a flag (virtio 1.2, 2.7.7).
    for (flags, expected) in [(0_u16, true), (1, false)] {
        let memory = memory();
        let mut ring = Ring::new(&memory, RING, 8);
        ring.state.next_used = 1;
        let at = GuestAddress(ring.state.avail_ring);
        memory.write_obj(flags, at).unwrap();
        let wanted = wants_interrupt(&ring.queue(), &memory, &mut 0).unwrap();
        assert_eq!(wanted, expected);
    }
}
