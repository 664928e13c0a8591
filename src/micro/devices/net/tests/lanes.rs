//! A pair among its events.

use std::sync::mpsc::{Receiver as Notified, channel};

use event_manager::{EventManager, SubscriberOps};

use super::super::MAX_FRAME;
use super::super::queue::Pair;
use super::*;
use crate::micro::notice::{Notice, Notices};
use crate::micro::virtio::device::QueueHandler;

const MERGEABLE: Room = Room::Bytes(MAX_FRAME);

type Manager = EventManager<Box<dyn QueueHandler>>;

fn manager(fixture: &Fixture, receiver: Receiver) -> (Manager, Notified<Notice>) {
    let (tell, notices) = channel();
    let tap = Arc::clone(&fixture.tap);
    let name = "nic test".to_owned();
    let pair = Pair::new(name, Some(receiver), None, tap, Notices::new(tell));
    let mut manager = Manager::new().unwrap();
    manager.add_subscriber(Box::new(pair));
    (manager, notices)
}

/// Lets the lane work until nothing is to be done; how many events there were.
fn settle(manager: &mut Manager) -> usize {
    let events = std::iter::from_fn(|| match manager.run_with_timeout(0).unwrap() {
        0 => None,
        count => Some(count),
    });
    // A lane that spins would never end.
    events.take(1000).sum()
}

#[test]
fn frames_that_wait_for_room_are_no_event_and_room_is() {
    let mut fixture = Fixture::new(8);
    let receiver = fixture.receiver(MERGEABLE);
    let kick = receiver.kick().try_clone().unwrap();
    let (mut manager, _notices) = manager(&fixture, receiver);
    for seed in 0..3 {
        fixture.wire.send(&frame(60, seed)).unwrap();
    }
    assert!((1..=3).contains(&settle(&mut manager)));
    assert_eq!(settle(&mut manager), 0);
    fixture.offer(&[100, 100]);
    kick.write(1).unwrap();
    settle(&mut manager);
    assert_eq!(fixture.used(), [60, 60]);
    // The frame that is left waits for the driver; one more is one more edge, and no more.
    fixture.wire.send(&frame(61, 0)).unwrap();
    assert!((0..=2).contains(&settle(&mut manager)));
    fixture.offer(&[100; 2]);
    kick.write(1).unwrap();
    settle(&mut manager);
    assert_eq!(fixture.used(), [60, 61]);
}
