//! The whole device behind its transport: a guest's driver at one end, real sockets at the other.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::micro::devices::DeviceState;
use crate::micro::devices::vsock::device::Vsock;

const GUEST_CID: u64 = 3;
use crate::micro::devices::vsock::packet::{HOST, NEITHER, NO_SEND, STREAM};
use crate::micro::virtio::fixture::{Buffer, Driver};

const RX: usize = 0;
const TX: usize = 1;
const EVENTS: usize = 2;

/// What each end sends in the tests of content: much more than all buffers on the way.
const MUCH: usize = 10 << 20;

/// The guest's buffer for one connection.
const ALLOCATED: u32 = 128 << 10;

struct Guest {
    driver: Driver,
    path: PathBuf,
    taking: HashMap<u16, Buffer>,
    sending: HashMap<u16, Buffer>,
    free: Vec<Buffer>,
    _folder: tempfile::TempDir,
}

impl Guest {
    /// A guest whose driver is ready and gave the device no buffers yet.
    fn new(saved: Option<&DeviceState>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v");
        let device = Vsock::new(GUEST_CID, &path, saved).unwrap();
        let mut driver = Driver::start(Box::new(device), 0);
        let free = (0..32).map(|_| driver.room(8192)).collect();
        Self {
            driver,
            path,
            taking: HashMap::new(),
            sending: HashMap::new(),
            free,
            _folder: folder,
        }
    }

    /// A guest that takes packets of up to 4 KiB, in two pieces each.
    fn ready() -> Self {
        let mut guest = Self::new(None);
        for _ in 0..64 {
            let buffer = guest.driver.room(4096);
            guest.give(buffer);
        }
        guest
    }

    /// The device has done what it was told until now: the lane takes events in their order, and
    /// a parked lane has taken one more.
    fn has_settled(&self) {
        for _ in 0..2 {
            self.driver.lanes.park().unwrap();
            self.driver.lanes.unpark();
        }
    }

    fn give(&mut self, buffer: Buffer) {
        let head = Buffer {
            length: 100,
            ..buffer
        };
        let rest = Buffer {
            at: buffer.at + 100,
            length: buffer.length - 100,
            ..buffer
        };
        let head = self.driver.send(RX, &[head, rest]);
        self.taking.insert(head, buffer);
    }

    fn header(ports: (u32, u32), op: u16) -> Header {
        Header {
            src_cid: GUEST_CID,
            dst_cid: HOST,
            src_port: ports.1,
            dst_port: ports.0,
            kind: STREAM,
            op,
            buf_alloc: ALLOCATED,
            ..Header::default()
        }
    }

    /// Sends a packet, whose payload lies apart from its header and in two pieces.
    fn send(&mut self, header: Header, payload: &[u8]) {
        while let Some((head, written)) = self.driver.rings[TX].take() {
            assert_eq!(written, 0);
            self.free.push(self.sending.remove(&head).unwrap());
        }
        let buffer = match self.free.pop() {
            Some(buffer) => buffer,
            None => {
                let (head, _) = self.driver.wait(TX);
                self.sending.remove(&head).unwrap()
            }
        };
        let mut bytes = header.bytes().to_vec();
        bytes.extend_from_slice(payload);
        self.driver
            .memory
            .write_slice(&bytes, GuestAddress(buffer.at))
            .unwrap();
        let mut pieces = Vec::new();
        let mut at = 0;
        for length in [HEADER, payload.len() / 2, payload.len() - payload.len() / 2] {
            if length > 0 {
                pieces.push(Buffer {
                    at: buffer.at + at,
                    length: u32::try_from(length).unwrap(),
                    writable: false,
                });
            }
            at += length as u64;
        }
        let head = self.driver.send(TX, &pieces);
        self.sending.insert(head, buffer);
    }

    fn taken(&mut self, (head, written): (u16, u32)) -> (Header, Vec<u8>) {
        let buffer = self.taking.remove(&head).unwrap();
        let bytes = self.driver.bytes(buffer);
        let header = Header::parse(bytes[..HEADER].try_into().unwrap());
        assert_eq!(written as usize, HEADER + header.len as usize);
        self.give(buffer);
        (header, bytes[HEADER..written as usize].to_vec())
    }

    /// Waits for the next packet.
    fn packet(&mut self) -> (Header, Vec<u8>) {
        let used = self.driver.wait(RX);
        self.taken(used)
    }

    /// A service in the guest that sends back what it gets, until the host has ended.
    fn echo(&mut self) {
        let mut pending: VecDeque<u8> = VecDeque::new();
        let (mut sent, mut forwarded, mut allocated, mut taken) = (0_u32, 0, 0, 0_u32);
        let mut ended = false;
        let mut ports = (0, 0);
        while !(ended && pending.is_empty()) {
            let room = allocated - (sent - forwarded);
            let next = pending.len().min(room as usize).min(8000);
            if next > 0 {
                let piece: Vec<u8> = pending.drain(..next).collect();
                sent += u32::try_from(next).unwrap();
                let header = Header {
                    len: u32::try_from(next).unwrap(),
                    fwd_cnt: taken - u32::try_from(pending.len()).unwrap(),
                    ..Self::header(ports, op::DATA)
                };
                self.send(header, &piece);
                continue;
            }
            let (header, payload) = self.packet();
            (allocated, forwarded) = (header.buf_alloc, header.fwd_cnt);
            match header.op {
                op::REQUEST => {
                    ports = (header.src_port, header.dst_port);
                    self.send(Self::header(ports, op::RESPONSE), &[]);
                }
                op::DATA => {
                    taken += header.len;
                    pending.extend(payload);
                    assert!(
                        pending.len() <= ALLOCATED as usize,
                        "beyond the guest's buffer"
                    );
                }
                op::SHUTDOWN => ended = header.flags & NO_SEND != 0,
                op::CREDIT_REQUEST => {
                    let header = Header {
                        fwd_cnt: taken - u32::try_from(pending.len()).unwrap(),
                        ..Self::header(ports, op::CREDIT_UPDATE)
                    };
                    self.send(header, &[]);
                }
                op::CREDIT_UPDATE => {}
                other => panic!("op {other}"),
            }
        }
        let header = Header {
            flags: NEITHER,
            fwd_cnt: taken,
            ..Self::header(ports, op::SHUTDOWN)
        };
        self.send(header, &[]);
        while self.packet().0.op != op::RESET {}
    }
}

/// Bytes that are the same nowhere near.
fn pattern() -> Vec<u8> {
    let mut state = 1_u32;
    let words = (0..MUCH / 4).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state
    });
    words.flat_map(u32::to_le_bytes).collect()
}

/// Sends all of `bytes` and ends, while it checks that the same come back.
fn send_and_compare(mut stream: UnixStream, bytes: Vec<u8>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut out = stream.try_clone().unwrap();
        let sent = bytes.clone();
        let writer = std::thread::spawn(move || {
            out.write_all(&sent).unwrap();
            out.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        assert!(back == bytes, "{} of {} bytes", back.len(), bytes.len());
        writer.join().unwrap();
    })
}

#[test]
fn ten_mebibytes_come_back_whole_from_a_service_of_the_guest() {
    let mut guest = Guest::ready();
    let path = guest.path.clone();
    let host = std::thread::spawn(move || {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(b"CONNECT 1024\n").unwrap();
        let mut line = [0; 14];
        stream.read_exact(&mut line).unwrap();
        let line = std::str::from_utf8(&line).unwrap();
        let port = line
            .strip_prefix("OK ")
            .and_then(|rest| rest.strip_suffix('\n'))
            .and_then(|port| port.parse::<u32>().ok());
        assert!(
            port.is_some_and(|port| (1 << 30..1 << 31).contains(&port)),
            "{line}"
        );
        send_and_compare(stream, pattern()).join().unwrap();
    });
    guest.echo();
    host.join().unwrap();
}

#[test]
fn ten_mebibytes_come_back_whole_from_a_service_of_the_host() {
    let mut guest = Guest::ready();
    let service = UnixListener::bind(format!("{}_52", guest.path.display())).unwrap();
    let host = std::thread::spawn(move || {
        let (mut stream, _) = service.accept().unwrap();
        let mut out = stream.try_clone().unwrap();
        std::io::copy(&mut stream, &mut out).unwrap();
        out.shutdown(Shutdown::Both).unwrap();
    });
    let ports = (52, 4711);
    guest.send(Guest::header(ports, op::REQUEST), &[]);
    let bytes = pattern();
    let (mut sent, mut back) = (0, Vec::new());
    let (mut allocated, mut forwarded, mut ended) = (0, 0, false);
    while back.len() < MUCH {
        let room = allocated - (u32::try_from(sent).unwrap() - forwarded);
        let next = (MUCH - sent).min(room as usize).min(8000);
        let fwd_cnt = u32::try_from(back.len()).unwrap();
        if next > 0 {
            let header = Header {
                len: u32::try_from(next).unwrap(),
                fwd_cnt,
                ..Guest::header(ports, op::DATA)
            };
            guest.send(header, &bytes[sent..sent + next]);
            sent += next;
            continue;
        }
        if sent == MUCH && !ended {
            ended = true;
            let header = Header {
                flags: NO_SEND,
                fwd_cnt,
                ..Guest::header(ports, op::SHUTDOWN)
            };
            guest.send(header, &[]);
        }
        let (header, payload) = guest.packet();
        back.extend(payload);
        (allocated, forwarded) = (header.buf_alloc, header.fwd_cnt);
        if header.op == op::CREDIT_REQUEST {
            let header = Header {
                fwd_cnt,
                ..Guest::header(ports, op::CREDIT_UPDATE)
            };
            guest.send(header, &[]);
        }
    }
    assert!(back == bytes);
    while guest.packet().0.flags != NEITHER {}
    host.join().unwrap();
}

#[test]
fn the_configuration_is_the_guests_cid() {
    let mut guest = Guest::new(None);
    assert_eq!(guest.driver.config(0, 8), GUEST_CID.to_le_bytes());
    assert_eq!(guest.driver.config(6, 4), [0; 4]);
}

#[test]
fn a_guest_that_takes_no_answers_is_not_listened_to_until_it_does() {
    let mut guest = Guest::new(None);
    let header = guest.driver.put(&Guest::header((1, 1), op::DATA).bytes());
    for _ in 0..256 {
        guest.driver.send(TX, &[header]);
        guest.driver.wait(TX);
    }
    for _ in 0..44 {
        guest.driver.send(TX, &[header]);
    }
    guest.has_settled();
    assert!(guest.driver.rings[TX].take().is_none());
    for _ in 0..64 {
        let buffer = guest.driver.room(4096);
        guest.give(buffer);
    }
    for _ in 0..300 {
        assert_eq!(guest.packet().0.op, op::RESET);
    }
    for _ in 0..44 {
        guest.driver.wait(TX);
    }
}

#[test]
fn a_restored_guest_is_told_that_its_connections_are_gone_once() {
    let mut guest = Guest::new(Some(&DeviceState::Nothing));
    let buffer = guest.driver.room(4);
    for _ in 0..2 {
        guest.driver.send(EVENTS, &[buffer]);
    }
    let (_, written) = guest.driver.wait(EVENTS);
    assert_eq!(written, 4);
    assert_eq!(guest.driver.bytes(buffer), TRANSPORT_RESET);
    guest.has_settled();
    assert!(guest.driver.rings[EVENTS].take().is_none());
}

#[test]
fn a_new_guest_gets_no_event() {
    let mut guest = Guest::ready();
    let buffer = guest.driver.room(4);
    guest.driver.send(EVENTS, &[buffer]);
    guest.has_settled();
    assert!(guest.driver.rings[EVENTS].take().is_none());
}

#[test]
fn chains_that_hold_no_packet_are_faults() {
    let table: [(&str, usize, u32, bool); 4] = [
        ("shorter than a header", TX, 43, false),
        ("shorter than a header", TX, 100, true),
        ("without room for a packet", RX, 44, true),
        ("without room for a packet", RX, 100, false),
    ];
    for (expected, queue, length, writable) in table {
        let mut guest = Guest::new(None);
        let stranger = Guest::header((1, 1), op::DATA);
        guest.send(stranger, &[]);
        let buffer = guest.driver.room(length);
        guest.driver.send(queue, &[Buffer { writable, ..buffer }]);
        let fault = guest.driver.fault();
        assert_eq!(fault.device, "vsock 3");
        let Problem::Request { what, .. } = fault.problem else {
            panic!("{fault:?}");
        };
        assert_eq!(what, expected);
    }
}

#[test]
fn lengths_that_lie_reset_the_connection() {
    let table: [(u32, usize); 4] = [(1, 0), (8000, 7999), (65_537, 8000), (u32::MAX, 8000)];
    for (claimed, there) in table {
        let mut guest = Guest::ready();
        let service = UnixListener::bind(format!("{}_1", guest.path.display())).unwrap();
        let ports = (1, 1);
        guest.send(Guest::header(ports, op::REQUEST), &[]);
        assert_eq!(guest.packet().0.op, op::RESPONSE);
        let (mut host, _) = service.accept().unwrap();
        let header = Header {
            len: claimed,
            ..Guest::header(ports, op::DATA)
        };
        guest.send(header, &vec![1; there]);
        assert_eq!(guest.packet().0.op, op::RESET, "{claimed} of {there}");
        let mut got = Vec::new();
        host.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"");
    }
}

#[test]
fn a_driver_that_resets_the_device_ends_connections_and_may_begin_anew() {
    let mut guest = Guest::ready();
    let service = UnixListener::bind(format!("{}_1", guest.path.display())).unwrap();
    guest.send(Guest::header((1, 1), op::REQUEST), &[]);
    assert_eq!(guest.packet().0.op, op::RESPONSE);
    let (mut host, _) = service.accept().unwrap();
    guest.driver.begin(0);
    let mut got = Vec::new();
    host.read_to_end(&mut got).unwrap();
    (guest.taking, guest.sending) = (HashMap::new(), HashMap::new());
    let buffer = guest.driver.room(4096);
    guest.give(buffer);
    guest.send(Guest::header((1, 1), op::REQUEST), &[]);
    assert_eq!(guest.packet().0.op, op::RESPONSE);
}

#[test]
fn the_socket_goes_with_the_device() {
    let guest = Guest::ready();
    let path = guest.path.clone();
    assert!(path.exists());
    drop(guest.driver);
    assert!(!path.exists());
}
