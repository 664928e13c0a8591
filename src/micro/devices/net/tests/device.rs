use super::super::device::{Net, check};
use super::super::persist::Settings;
use super::super::tap::NetError;
use super::super::{HEADER, persist::State};
use super::wire::{WIRE_HEADER, Wire};
use super::*;
use crate::micro::devices::DeviceState;
use crate::micro::virtio::device::Device;
use crate::micro::virtio::fixture::Driver;
use crate::micro::virtio::mmio::state::TransportState;
use crate::sys::netns::testing::in_private_host;
use crate::sys::tun;
use crate::units::Mac;
use crate::vm::spec::Nic;

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const EVENT_IDX: u64 = 1 << 29;
const INDIRECT: u64 = 1 << 28;
const MQ: u64 = 1 << 22;
const MERGEABLE_FEATURE: u64 = 1 << 15;
const CONTROL: u64 = 1 << 17;

pub(super) fn nic(tap: &str, queue_pairs: u16) -> Nic {
    Nic {
        tap: tap.to_owned(),
        mac: Mac::new(MAC),
        queue_pairs,
        mtu: 1500,
    }
}

/// A guest on a new TAP device, and what is at its other end.
fn guest(pairs: u16, features: u64) -> (Driver, Wire) {
    tun::create("tap0", pairs).unwrap();
    let net = Net::open(&nic("tap0", pairs), None).unwrap();
    let wire = Wire::on("tap0");
    (Driver::start(Box::new(net), features), wire)
}

/// A UDP packet in a frame between two ports, or a TCP segment of `payload` bytes.
fn packet(protocol: u8, from: u16, to: u16, payload: usize) -> Vec<u8> {
    let transport = if protocol == 6 { 20 } else { 8 };
    let length = u16::try_from(20 + transport + payload).unwrap();
    let mut frame = [&MAC[..], &[0x52, 0x54, 0, 9, 9, 9], &[8, 0]].concat();
    let [high, low] = length.to_be_bytes();
    frame.extend([0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
    let hosts = [from, to].map(|port| [10, 0, 0, port.to_le_bytes()[0]]);
    frame.extend(hosts.concat());
    let sum: u32 = frame[14..]
        .chunks(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
        .sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend([from.to_be_bytes(), to.to_be_bytes()].concat());
    if protocol == 6 {
        frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    } else {
        frame.extend((length - 20).to_be_bytes());
        frame.extend([0, 0]);
    }
    frame.extend((0..253).cycle().take(payload));
    frame
}

/// The header of a frame that is to be cut into segments: checksum missing, TCP over IPv4.
fn segments(size: u16) -> [u8; WIRE_HEADER] {
    let [low, high] = size.to_le_bytes();
    [1, 1, 54, 0, low, high, 34, 0, 16, 0]
}

/// Sends a frame from the guest on transmit queue `queue` and waits until it is given back.
fn send(driver: &mut Driver, queue: usize, header: [u8; WIRE_HEADER], frame: &[u8]) {
    let bytes = [&header, &[0, 0][..], frame].concat();
    let buffer = driver.put(&bytes);
    let head = driver.send(queue, &[buffer]);
    assert_eq!(driver.wait(queue), (head, 0));
}

/// Gives a receive queue so many buffers of 2048 bytes.
fn give(driver: &mut Driver, queue: usize, count: usize) -> Vec<Buffer> {
    (0..count)
        .map(|_| {
            let buffer = driver.room(2048);
            driver.rings[queue].offer(&[buffer]);
            buffer
        })
        .collect()
}

/// Waits for the next frame on a receive queue that was given `buffers`; header and frame.
fn receive(
    driver: &mut Driver,
    queue: usize,
    buffers: &mut impl Iterator<Item = Buffer>,
) -> (Vec<u8>, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut left = 1;
    while left > 0 {
        let (_, length) = driver.wait(queue);
        let buffer = buffers.next().unwrap();
        let part = driver.bytes(buffer);
        if bytes.is_empty() {
            left = u16::from_le_bytes([part[10], part[11]]);
        }
        bytes.extend(&part[..length as usize]);
        left -= 1;
    }
    let frame = bytes.split_off(HEADER);
    (bytes, frame)
}

/// Gives the control queue a command; what it answers.
fn control(driver: &mut Driver, command: &[u8]) -> u8 {
    let queue = driver.rings.len() - 1;
    let (request, answer) = (driver.put(command), driver.room(1));
    let head = driver.send(queue, &[request, answer]);
    assert_eq!(driver.wait(queue), (head, 1));
    driver.bytes(answer)[0]
}

#[test]
fn what_the_engine_cannot_have_is_refused() {
    for (queue_pairs, mtu, expected) in [
        (1, 68, Ok(())),
        (256, 65_535, Ok(())),
        (
            0,
            1500,
            Err("tap0 has 0 pairs of queues, which must be 1 to 256"),
        ),
        (
            257,
            1500,
            Err("tap0 has 257 pairs of queues, which must be 1 to 256"),
        ),
        (
            1,
            67,
            Err("tap0 has an MTU of 67, which must be 68 or more"),
        ),
    ] {
        let nic = Nic {
            mtu,
            ..nic("tap0", queue_pairs)
        };
        assert_eq!(check(&nic), expected.map_err(str::to_owned));
    }
}

#[test]
fn the_configuration_tells_address_link_pairs_and_mtu() {
    for (pairs, several) in [(1, 0), (4, MQ)] {
        let net = Net::new(&nic("tap0", pairs), Tap::new(Vec::new()), None);
        let expected = [&MAC[..], &[1, 0], &pairs.to_le_bytes(), &[220, 5]].concat();
        assert_eq!(net.config(), expected);
        assert_eq!(net.features() & MQ, several);
        assert_eq!(net.queue_sizes().len(), 2 * usize::from(pairs) + 1);
    }
}

#[test]
fn a_saved_state_with_other_pairs_is_refused_before_anything_is_opened() {
    for pairs in [0, 3] {
        let saved = State(Some(Settings { pairs, offloads: 0 }));
        let error = Net::open(&nic("no such device", 2), Some(&saved)).unwrap_err();
        assert!(matches!(error, NetError::Saved { .. }), "{error}");
    }
}

#[test]
fn root_frames_cross_both_ways_whatever_the_driver_accepts() {
    for features in [
        0,
        MERGEABLE_FEATURE,
        EVENT_IDX,
        CONTROL | EVENT_IDX | INDIRECT | MERGEABLE_FEATURE,
        u64::MAX,
    ] {
        in_private_host(move || {
            let (mut driver, wire) = guest(1, features);
            let mut buffers = give(&mut driver, 0, 8).into_iter();
            driver.notify(0);
            for payload in [18, 1472, 100] {
                let frame = packet(17, 1, 2, payload);
                wire.send([0; WIRE_HEADER], &frame);
                let (header, received) = receive(&mut driver, 0, &mut buffers);
                assert_eq!(header[..HEADER - 2], [0; HEADER - 2]);
                assert!(received == frame, "{payload}");
                send(&mut driver, 1, [0; WIRE_HEADER], &frame);
                assert!(wire.receive().1 == frame, "{payload}");
            }
        });
    }
}

#[test]
fn root_frames_that_wait_for_the_driver_arrive_in_order() {
    in_private_host(|| {
        let (mut driver, wire) = guest(1, u64::MAX);
        let frames: Vec<_> = (1..=100).map(|from| packet(17, from, 200, 50)).collect();
        for frame in &frames {
            wire.send([0; WIRE_HEADER], frame);
        }
        let mut buffers = give(&mut driver, 0, 100).into_iter();
        driver.notify(0);
        for frame in &frames {
            assert!(receive(&mut driver, 0, &mut buffers).1 == *frame);
        }
    });
}

#[test]
fn root_segments_cross_uncut_as_far_as_the_driver_takes_them() {
    in_private_host(|| {
        let (mut driver, wire) = guest(1, u64::MAX);
        let mut buffers = give(&mut driver, 0, 120).into_iter();
        driver.notify(0);
        let large = packet(6, 1, 2, 60_000);
        wire.send(segments(1448), &large);
        let (header, frame) = receive(&mut driver, 0, &mut buffers);
        assert_eq!(header[..WIRE_HEADER], segments(1448));
        assert_eq!(u16::from_le_bytes([header[10], header[11]]), 30);
        assert!(frame == large);
        send(&mut driver, 1, segments(1000), &large);
        let (header, frame) = wire.receive();
        assert_eq!(header, segments(1000));
        assert!(frame == large);
        // From now on the kernel cuts them itself.
        let none = [[5, 0], [0; 2], [0; 2], [0; 2], [0; 2]].concat();
        assert_eq!(control(&mut driver, &none), 0);
        wire.send(segments(1000), &packet(6, 1, 2, 2500));
        for payload in [1000, 1000, 500] {
            let (header, frame) = receive(&mut driver, 0, &mut buffers);
            assert_eq!(
                header[..2],
                [0, 0],
                "neither checksum nor cut is left to do"
            );
            assert_eq!(frame.len(), 54 + payload);
        }
    });
}

#[test]
fn root_the_driver_chooses_the_pairs_that_are_used() {
    in_private_host(|| {
        let (mut driver, wire) = guest(4, u64::MAX);
        let mut buffers: Vec<_> = (0..4)
            .map(|pair| give(&mut driver, 2 * pair, 8).into_iter())
            .collect();
        for pair in 0..4 {
            driver.notify(2 * pair);
        }
        // A pair that is not in use sends nothing.
        send(&mut driver, 5, [0; WIRE_HEADER], &packet(17, 7, 8, 1));
        for (pairs, expected) in [(1, 0), (4, 2), (3, 2), (2, 0), (1, 0), (4, 2)] {
            assert_eq!(control(&mut driver, &[4, 0, pairs, 0]), 0);
            // The kernel answers a flow on the queue that sent it.
            let sender = if expected == 2 { 5 } else { 1 };
            let (out, back) = (packet(17, 1, 2, 60), packet(17, 2, 1, 60));
            send(&mut driver, sender, [0; WIRE_HEADER], &out);
            assert!(wire.receive().1 == out, "{pairs}");
            wire.send([0; WIRE_HEADER], &back);
            let (_, frame) = receive(&mut driver, 2 * expected, &mut buffers[expected]);
            assert!(frame == back, "{pairs}");
        }
    });
}

#[test]
fn root_commands_that_make_no_sense_are_refused() {
    in_private_host(|| {
        let (mut driver, _wire) = guest(2, u64::MAX);
        let table = [&[1, 0][..], &[0; 8]].concat();
        let address = [&[1, 1][..], &[2, 0, 0, 0, 0, 9]].concat();
        for (command, answer) in [
            (&[0, 0, 1][..], 0),
            (&[0, 1, 1], 0),
            (&[0, 2, 1], 1),
            (&table, 0),
            (&address, 0),
            (&address[..7], 1),
            (&[4, 0, 0, 0], 1),
            (&[4, 0, 2, 0], 0),
            (&[4, 0, 3, 0], 1),
            (&[4, 0, 1], 1),
            (&[4, 0, 1, 0, 0], 1),
            (&[4, 1, 1, 0], 1),
            (&[5, 0, 0xff, 0, 0, 0, 0, 0, 0, 0], 1),
            (&[3, 0], 1),
            (&[0], 1),
            (&[], 1),
        ] {
            assert_eq!(control(&mut driver, command), answer, "{command:?}");
        }
        assert_eq!(driver.config(0, 6), [2, 0, 0, 0, 0, 9]);
        driver.begin(0);
        assert_eq!(driver.config(0, 6), MAC);
    });
}

#[test]
fn root_a_restored_interface_goes_on_as_its_driver_had_set_it() {
    in_private_host(|| {
        let (mut driver, _wire) = guest(2, u64::MAX);
        let mut buffers = give(&mut driver, 0, 16).into_iter();
        driver.notify(0);
        assert_eq!(control(&mut driver, &[4, 0, 2, 0]), 0);
        assert_eq!(control(&mut driver, &[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]), 0);
        let saved = driver.save();
        let state: TransportState = postcard::from_bytes(&saved).unwrap();
        let DeviceState::Net(state) = state.device else {
            panic!("{state:?}");
        };
        let (pairs, offloads) = (2, 2);
        assert_eq!(state, State(Some(Settings { pairs, offloads })));
        // A clone has a TAP device of its own.
        tun::create("tap1", 2).unwrap();
        let net = Net::open(&nic("tap1", 2), Some(&state)).unwrap();
        let wire = Wire::on("tap1");
        driver.restore(Box::new(net), &saved).unwrap();
        assert_eq!(driver.save(), saved);
        driver.lanes.unpark();
        driver.transport.resume();
        let (out, back) = (packet(6, 1, 2, 2000), packet(6, 2, 1, 2000));
        send(&mut driver, 3, segments(1000), &out);
        assert!(wire.receive().1 == out);
        send(&mut driver, 1, segments(1000), &out);
        assert!(wire.receive().1 == out);
        wire.send(segments(1000), &back);
        for _ in 0..2 {
            let (header, frame) = receive(&mut driver, 0, &mut buffers);
            assert_eq!((header[1], frame.len()), (0, 1054));
        }
    });
}

#[test]
fn root_a_broken_ring_is_told_once_and_a_reset_begins_anew() {
    in_private_host(|| {
        let (mut driver, wire) = guest(1, 0);
        for queue in [0, 1] {
            driver.begin(0);
            let buffer = driver.room(8);
            driver.send(queue, &[buffer]);
            assert_eq!(driver.fault().device, "nic tap0");
            driver.notify(queue);
            driver.notify(1 - queue);
            wire.send([0; WIRE_HEADER], &packet(17, 1, 2, 60));
            // All that the lanes had to do is done.
            driver.lanes.park().unwrap();
            driver.lanes.unpark();
            assert!(driver.told().is_none());
        }
        driver.begin(0);
        let mut buffers = give(&mut driver, 0, 2).into_iter();
        driver.notify(0);
        for _ in 0..2 {
            let (_, frame) = receive(&mut driver, 0, &mut buffers);
            assert!(frame == packet(17, 1, 2, 60));
        }
        // Without a control queue's feature nobody asks for it.
        driver.begin(CONTROL);
        let request = driver.put(&[0, 0, 1]);
        driver.send(2, &[request]);
        let Problem::Request { queue: 2, what } = driver.fault().problem else {
            panic!("another problem");
        };
        assert_eq!(what, "without room for its answer");
    });
}
