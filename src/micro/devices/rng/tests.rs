//! The device behind its transport, on a lane.

use super::device::Rng;
use crate::micro::notice::Problem;
use crate::micro::virtio::fixture::{Buffer, Driver, NO_RAM};

const ALL: u64 = u64::MAX;

#[test]
fn requests_are_filled_with_what_differs() {
    let mut driver = Driver::start(Box::new(Rng), ALL);
    assert_eq!(driver.read(0x08), 4);
    let rooms = [driver.room(1000), driver.room(10_000)];
    let head = driver.send(0, &rooms);
    assert_eq!(driver.wait(0), (head, 11_000));
    let bytes: Vec<u8> = rooms.iter().flat_map(|room| driver.bytes(*room)).collect();
    for value in 0..=u8::MAX {
        let count = bytes.iter().filter(|byte| **byte == value).count();
        // 43 are expected; 120 is beyond eleven standard deviations.
        assert!(count < 120, "{count} bytes of value {value}");
    }
}

#[test]
fn one_request_gets_at_most_64_kib_and_many_get_all() {
    let mut driver = Driver::start(Box::new(Rng), 0);
    let large = driver.room(100_000);
    let head = driver.send(0, &[large]);
    assert_eq!(driver.wait(0), (head, 64 << 10));
    assert!(driver.bytes(large)[64 << 10..].iter().all(|b| *b == 0xaa));

    let small = driver.room(8);
    for _ in 0..16 {
        driver.rings[0].offer(&[small]);
    }
    driver.notify(0);
    for _ in 0..16 {
        assert_eq!(driver.wait(0).1, 8);
    }
}

#[test]
fn a_request_without_room_is_used_empty() {
    let mut driver = Driver::start(Box::new(Rng), ALL);
    let buffer = driver.put(b"read me");
    let head = driver.send(0, &[buffer]);
    assert_eq!(driver.wait(0), (head, 0));
    assert_eq!(driver.bytes(buffer), b"read me");
}

#[test]
fn a_broken_request_is_a_fault_told_once() {
    let mut driver = Driver::start(Box::new(Rng), ALL);
    let outside = Buffer {
        at: NO_RAM,
        length: 8,
        writable: true,
    };
    driver.send(0, &[outside]);
    let fault = driver.fault();
    assert!(matches!(fault.problem, Problem::Request { queue: 0, .. }));
    driver.send(0, &[outside]);
    driver.write(0x70, 0);
    assert!(driver.told().is_none());
}

#[test]
fn requests_go_on_after_save_and_restore() {
    let mut driver = Driver::start(Box::new(Rng), ALL);
    let room = driver.room(8);
    let head = driver.send(0, &[room]);
    assert_eq!(driver.wait(0), (head, 8));
    let saved = driver.save();
    driver.restore(Box::new(Rng), &saved).unwrap();
    let head = driver.send(0, &[room]);
    assert_eq!(driver.wait(0), (head, 8));
}
