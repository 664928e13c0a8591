//! The muxer against real sockets, and a guest that sends what it likes.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, poll};

use super::*;
use crate::micro::devices::vsock::credit::BUFFER;
use crate::micro::devices::vsock::packet::{NEITHER, NO_RECEIVE, NO_SEND};

const CID: u64 = 3;
/// The guest's buffer, unless a test says otherwise.
const ALLOCATED: u32 = 1 << 20;

struct Guest {
    muxer: Muxer,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Guest {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v");
        let socket = Arc::new(HostSocket::bind(&path).unwrap());
        let mut muxer = Muxer::new(CID, socket).unwrap();
        assert!(muxer.next_port >= FIRST_PORT);
        muxer.next_port = FIRST_PORT;
        Self {
            muxer,
            path,
            _folder: folder,
        }
    }

    fn service(&self, port: u32) -> UnixListener {
        let name = format!("{}_{port}", self.path.display());
        UnixListener::bind(name).unwrap()
    }

    fn header(ports: Ports, op: u16) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST,
            src_port: ports.guest,
            dst_port: ports.host,
            kind: STREAM,
            op,
            buf_alloc: ALLOCATED,
            ..Header::default()
        }
    }

    fn send(&mut self, ports: Ports, op: u16, flags: u32, payload: &[u8]) {
        let header = Header {
            len: u32::try_from(payload.len()).unwrap(),
            flags,
            ..Self::header(ports, op)
        };
        self.muxer.receive(&header, Some(payload));
    }

    /// The next packet, for which it waits.
    fn packet(&mut self) -> (Header, Vec<u8>) {
        self.packet_within(4096)
    }

    fn packet_within(&mut self, room: usize) -> (Header, Vec<u8>) {
        let mut payload = vec![0; room];
        loop {
            if let Some(header) = self.muxer.transmit(&mut payload) {
                payload.truncate(header.len as usize);
                return (header, payload);
            }
            self.wait();
            self.muxer.serve_sockets();
        }
    }

    /// Waits until a socket has news.
    fn wait(&self) {
        let events = self.muxer.events();
        let patience = Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        let mut polled = [PollFd::new(&events, PollFlags::IN)];
        assert_eq!(poll(&mut polled, Some(&patience)).unwrap(), 1, "no news");
    }

    /// Says nothing, as far as the sockets are now.
    fn is_silent(&mut self) -> bool {
        self.muxer.serve_sockets();
        self.muxer.transmit(&mut [0; 64]).is_none()
    }

    /// Data until the host has closed both ways, of which the guest may be told in two steps.
    fn data_until_closed(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let (header, payload) = self.packet();
            all.extend(payload);
            if header.flags == NEITHER {
                assert_eq!(header.op, op::SHUTDOWN);
                return all;
            }
        }
    }

    fn ops(&mut self, count: usize) -> Vec<u16> {
        (0..count).map(|_| self.packet().0.op).collect()
    }

    /// A connection that the host began and the guest has not answered.
    fn called(&mut self, port: u32) -> (Ports, UnixStream) {
        let mut host = UnixStream::connect(&self.path).unwrap();
        writeln!(host, "CONNECT {port}").unwrap();
        let (header, _) = self.packet();
        assert_eq!((header.op, header.dst_port), (op::REQUEST, port));
        let ports = Ports {
            host: header.src_port,
            guest: port,
        };
        (ports, host)
    }

    /// A connection that the host began.
    fn connected(&mut self) -> (Ports, UnixStream) {
        let (ports, mut host) = self.called(1024);
        self.send(ports, op::RESPONSE, 0, &[]);
        let expected = format!("OK {}\n", ports.host);
        assert_eq!(read(&mut host, expected.len()), expected.as_bytes());
        (ports, host)
    }
}

fn read(stream: &mut UnixStream, bytes: usize) -> Vec<u8> {
    let mut all = vec![0; bytes];
    stream.read_exact(&mut all).unwrap();
    all
}

fn read_to_end(stream: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all
}

#[test]
fn the_host_reaches_a_service_of_the_guest() {
    let mut guest = Guest::new();
    let (ports, mut host) = guest.connected();
    assert!(ports.host >= FIRST_PORT);
    host.write_all(b"hello").unwrap();
    let (header, payload) = guest.packet();
    let expected = Header {
        src_cid: HOST,
        dst_cid: CID,
        src_port: ports.host,
        dst_port: ports.guest,
        len: 5,
        kind: STREAM,
        op: op::DATA,
        flags: 0,
        buf_alloc: BUFFER,
        fwd_cnt: 0,
    };
    assert_eq!((header, &payload[..]), (expected, &b"hello"[..]));
    guest.send(ports, op::DATA, 0, b"welcome");
    assert_eq!(read(&mut host, 7), b"welcome");
}

#[test]
fn the_guest_reaches_a_service_of_the_host() {
    let mut guest = Guest::new();
    let service = guest.service(52);
    let ports = Ports {
        host: 52,
        guest: 999,
    };
    guest.send(ports, op::REQUEST, 0, &[]);
    guest.send(ports, op::DATA, 0, b"question");
    let (mut host, _) = service.accept().unwrap();
    assert_eq!(read(&mut host, 8), b"question");
    let (header, _) = guest.packet();
    assert_eq!((header.op, header.src_port), (op::RESPONSE, 52));
    host.write_all(b"answer").unwrap();
    let (header, payload) = guest.packet();
    assert_eq!((header.fwd_cnt, &payload[..]), (8, &b"answer"[..]));
}

#[test]
fn a_guest_that_refuses_ends_the_hosts_connection_without_ok() {
    let mut guest = Guest::new();
    let (ports, mut host) = guest.called(7);
    guest.send(ports, op::RESET, 0, &[]);
    assert_eq!(read_to_end(&mut host), b"");
    assert_eq!(guest.muxer.connections(), 0);
    assert!(guest.is_silent());
}

#[test]
fn a_guest_that_does_not_answer_in_time_is_not_waited_for() {
    let mut guest = Guest::new();
    let (ports, mut host) = guest.called(7);
    let typist = UnixStream::connect(&guest.path).unwrap();
    guest.wait();
    guest.muxer.serve_sockets();
    assert_eq!(guest.muxer.connections(), 2);
    let now = Instant::now();
    guest.muxer.expire(now + Duration::from_secs(9));
    assert_eq!(guest.muxer.connections(), 2);
    guest.muxer.expire(now + Duration::from_secs(11));
    assert_eq!(read_to_end(&mut host), b"");
    let (header, _) = guest.packet();
    assert_eq!((header.op, header.src_port), (op::RESET, ports.host));
    // Whoever types has longer.
    assert_eq!(guest.muxer.connections(), 1);
    guest.muxer.expire(now + Duration::from_secs(61));
    assert_eq!(guest.muxer.connections(), 0);
    drop(typist);
}

#[test]
fn the_timer_itself_ends_what_took_too_long() {
    let mut guest = Guest::new();
    let (_ports, mut host) = guest.called(7);
    let soon = Instant::now() + Duration::from_millis(20);
    for connection in guest.muxer.connections.values_mut() {
        connection.deadline = Some(soon);
    }
    guest.muxer.wake_by(Some(soon));
    assert_eq!(guest.packet().0.op, op::RESET);
    assert_eq!(read_to_end(&mut host), b"");
}

#[test]
fn a_host_that_finished_sending_still_hears_the_answer() {
    let mut guest = Guest::new();
    let (ports, mut host) = guest.connected();
    host.write_all(b"question").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.packet().1, b"question");
    let (header, _) = guest.packet();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, NO_SEND));
    guest.send(ports, op::DATA, 0, b"answer");
    guest.send(ports, op::SHUTDOWN, NEITHER, &[]);
    assert_eq!(read_to_end(&mut host), b"answer");
    assert_eq!(guest.packet().0.op, op::RESET);
    assert_eq!(guest.muxer.connections(), 0);
}

#[test]
fn a_guest_that_finished_sending_still_hears_the_answer() {
    let mut guest = Guest::new();
    let (ports, mut host) = guest.connected();
    guest.send(ports, op::DATA, 0, b"question");
    guest.send(ports, op::SHUTDOWN, NO_SEND, &[]);
    assert_eq!(read_to_end(&mut host), b"question");
    host.write_all(b"answer").unwrap();
    drop(host);
    assert_eq!(guest.data_until_closed(), b"answer");
    guest.send(ports, op::RESET, 0, &[]);
    assert_eq!(guest.muxer.connections(), 0);
}

#[test]
fn a_guest_that_does_not_read_any_more_breaks_the_hosts_pipe() {
    let mut guest = Guest::new();
    let (ports, mut host) = guest.connected();
    guest.send(ports, op::SHUTDOWN, NO_RECEIVE, &[]);
    let error = host.write_all(b"hello").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    guest.send(ports, op::DATA, 0, b"bye");
    assert_eq!(read(&mut host, 3), b"bye");
    drop(host);
    assert_eq!(guest.data_until_closed(), b"");
}

#[test]
fn what_the_host_sent_before_it_hung_up_arrives_and_a_deaf_guest_is_cut_off() {
    let mut guest = Guest::new();
    let (ports, mut host) = guest.connected();
    host.write_all(&[7; 10_000]).unwrap();
    drop(host);
    assert_eq!(guest.data_until_closed(), [7; 10_000]);
    // What the guest sends now goes nowhere, and it may take a while to see that.
    guest.send(ports, op::DATA, 0, &[1; 100]);
    assert_eq!(guest.muxer.connections(), 1);
    guest.muxer.expire(Instant::now() + Duration::from_secs(9));
    assert_eq!(guest.packet().0.op, op::RESET);
    assert_eq!(guest.muxer.connections(), 0);
}

#[test]
fn a_guest_that_closes_leaves_what_it_sent_to_a_slow_host() {
    let mut guest = Guest::new();
    let (ports, mut host) = guest.connected();
    // More than the socket takes, and within the credit that it so gives.
    let mut sent = 0;
    let taken = |guest: &Guest| guest.muxer.connections.values().next().unwrap().waiting();
    while taken(&guest) == 0 {
        guest.send(ports, op::DATA, 0, &[5; 4096]);
        sent += 4096;
    }
    guest.send(ports, op::SHUTDOWN, NEITHER, &[]);
    // As Linux does when it loses patience.
    guest.send(ports, op::RESET, 0, &[]);
    let reader = std::thread::spawn(move || read_to_end(&mut host));
    while guest.muxer.connections() > 0 {
        guest.wait();
        guest.muxer.serve_sockets();
    }
    let got = reader.join().unwrap();
    assert!(got.len() == sent && got.iter().all(|byte| *byte == 5));
}

#[test]
fn a_guest_without_room_is_asked_once_and_sent_no_more_than_fits() {
    let mut guest = Guest::new();
    let (ports, mut host) = guest.connected();
    let credit = |guest: &mut Guest, buf_alloc, fwd_cnt| {
        let header = Header {
            buf_alloc,
            fwd_cnt,
            ..Guest::header(ports, op::CREDIT_UPDATE)
        };
        guest.muxer.receive(&header, Some(&[]));
    };
    credit(&mut guest, 10, 0);
    host.write_all(&[9; 25]).unwrap();
    assert_eq!(guest.packet().1.len(), 10);
    assert_eq!(guest.packet().0.op, op::CREDIT_REQUEST);
    assert!(guest.is_silent());
    credit(&mut guest, 10, 10);
    assert_eq!(guest.packet().1.len(), 10);
    assert_eq!(guest.packet().0.op, op::CREDIT_REQUEST);
    credit(&mut guest, 100, 20);
    assert_eq!(guest.packet().1.len(), 5);
    assert!(guest.is_silent());
}

#[test]
fn a_guest_that_sends_within_its_credit_is_never_reset_however_slow_the_host() {
    let mut guest = Guest::new();
    let (ports, mut host) = guest.connected();
    let (mut sent, mut forwarded, mut allocated) = (0_u32, 0, BUFFER);
    // Until there is no credit left.
    loop {
        let room = allocated - (sent - forwarded);
        if room == 0 {
            guest.send(ports, op::CREDIT_REQUEST, 0, &[]);
            let (header, _) = guest.packet();
            assert_eq!(header.op, op::CREDIT_UPDATE);
            (forwarded, allocated) = (header.fwd_cnt, header.buf_alloc);
            if sent - forwarded == allocated {
                break;
            }
            continue;
        }
        let next = room.min(5000);
        guest.send(ports, op::DATA, 0, &vec![3; next as usize]);
        sent += next;
    }
    assert_eq!(
        guest.muxer.connections.values().next().unwrap().waiting(),
        BUFFER as usize
    );
    // The host reads, and the guest is told of room without asking.
    let reader = std::thread::spawn(move || read_to_end(&mut host));
    loop {
        let (header, _) = guest.packet();
        assert_eq!(header.op, op::CREDIT_UPDATE);
        if header.fwd_cnt > sent - BUFFER / 2 {
            break;
        }
    }
    guest.send(ports, op::SHUTDOWN, NEITHER, &[]);
    while guest.muxer.connections() > 0 {
        guest.wait();
        guest.muxer.serve_sockets();
    }
    assert_eq!(reader.join().unwrap().len(), sent as usize);
}

#[test]
fn a_guest_that_exceeds_its_credit_is_reset() {
    let mut guest = Guest::new();
    let (ports, _host) = guest.connected();
    // Much more than the socket and the buffer hold.
    for _ in 0..100 {
        guest.send(ports, op::DATA, 0, &[0; 60_000]);
    }
    assert_eq!(guest.muxer.connections(), 0);
    let (header, _) = guest.packet();
    assert_eq!((header.op, header.src_port), (op::RESET, ports.host));
}

#[test]
fn hostile_packets_are_reset_or_ignored() {
    type Change = fn(&mut Header);
    const KNOWN: bool = true;
    let known: fn(&mut Header) = |_| {};
    let stranger: fn(&mut Header) = |header| header.src_port += 1;
    let table: [(&str, u16, Change, bool, bool); 16] = [
        ("data of a stranger", op::DATA, stranger, true, KNOWN),
        (
            "an answer of a stranger",
            op::RESPONSE,
            stranger,
            true,
            KNOWN,
        ),
        (
            "a shutdown of a stranger",
            op::SHUTDOWN,
            stranger,
            true,
            KNOWN,
        ),
        (
            "credit of a stranger",
            op::CREDIT_UPDATE,
            stranger,
            true,
            KNOWN,
        ),
        ("a reset of a stranger", op::RESET, stranger, false, KNOWN),
        ("a second answer", op::RESPONSE, known, true, !KNOWN),
        ("a second request", op::REQUEST, known, true, !KNOWN),
        ("an op that there is not", 0, known, true, !KNOWN),
        ("another one", 8, known, true, !KNOWN),
        ("the last one", u16::MAX, known, true, !KNOWN),
        (
            "another type",
            op::DATA,
            |header| header.kind = 2,
            true,
            KNOWN,
        ),
        (
            "no type",
            op::REQUEST,
            |header| header.kind = 0,
            true,
            KNOWN,
        ),
        (
            "to another guest",
            op::DATA,
            |header| header.dst_cid = 4,
            true,
            KNOWN,
        ),
        (
            "to the hypervisor",
            op::REQUEST,
            |header| header.dst_cid = 0,
            true,
            KNOWN,
        ),
        (
            "in another's name",
            op::DATA,
            |header| header.src_cid = 4,
            false,
            KNOWN,
        ),
        (
            "to where nobody listens",
            op::REQUEST,
            stranger,
            true,
            KNOWN,
        ),
    ];
    for (name, op, change, answered, lives) in table {
        let mut guest = Guest::new();
        let (ports, _host) = guest.connected();
        let mut header = Guest::header(ports, op);
        change(&mut header);
        guest.muxer.receive(&header, Some(&[]));
        assert_eq!(guest.muxer.connections() == 1, lives, "{name}");
        match (guest.muxer.transmit(&mut [0; 64]), answered) {
            (None, false) => {}
            (Some(answer), true) => {
                let expected = Header {
                    kind: answer.kind,
                    ..header.reset()
                };
                assert_eq!(answer, expected, "{name}");
            }
            (answer, _) => panic!("{name}: {answer:?}"),
        }
        assert!(guest.is_silent(), "{name}");
    }
}

#[test]
fn data_that_cannot_be_read_resets_its_connection() {
    let mut guest = Guest::new();
    let (ports, mut host) = guest.connected();
    let header = Guest::header(ports, op::DATA);
    guest.muxer.receive(&header, None);
    assert_eq!(guest.ops(1), [op::RESET]);
    assert_eq!(read_to_end(&mut host), b"");
}

#[test]
fn an_answer_before_the_question_is_reset() {
    let mut guest = Guest::new();
    let mut host = UnixStream::connect(&guest.path).unwrap();
    writeln!(host, "CONNECT 5").unwrap();
    while guest.muxer.connections.is_empty() {
        guest.wait();
        guest.muxer.serve_sockets();
    }
    let ports = Ports {
        host: FIRST_PORT,
        guest: 5,
    };
    guest.send(ports, op::RESPONSE, 0, &[]);
    assert_eq!(read_to_end(&mut host), b"");
    assert!(guest.is_silent());
}

#[test]
fn each_of_many_connections_has_its_turn_and_one_too_many_is_refused() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    if limit.current.is_some_and(|most| most < 4096) {
        println!("SKIPPED: this process may not open two descriptors for each connection");
        return;
    }
    let mut guest = Guest::new();
    let mut hosts = HashMap::new();
    for _ in 0..CONNECTIONS_MAX {
        let (ports, host) = guest.connected();
        hosts.insert(ports, host);
    }
    for (ports, host) in &mut hosts {
        host.write_all(&ports.host.to_le_bytes()).unwrap();
    }
    for _ in 0..CONNECTIONS_MAX {
        let (header, payload) = guest.packet();
        assert_eq!(
            (header.op, &payload[..]),
            (op::DATA, &header.src_port.to_le_bytes()[..])
        );
    }
    let mut late = UnixStream::connect(&guest.path).unwrap();
    guest.wait();
    guest.muxer.serve_sockets();
    assert_eq!(read_to_end(&mut late), b"");
    let _service = guest.service(1);
    let ports = Ports { host: 1, guest: 1 };
    guest.send(ports, op::REQUEST, 0, &[]);
    assert_eq!(guest.ops(1), [op::RESET]);
    // One that ends makes room.
    let (first, _) = hosts.iter().next().unwrap();
    guest.send(*first, op::RESET, 0, &[]);
    guest.send(ports, op::REQUEST, 0, &[]);
    assert_eq!(guest.ops(1), [op::RESPONSE]);
}

#[test]
fn a_busy_connection_does_not_hold_up_another() {
    let mut guest = Guest::new();
    let (busy, mut busy_host) = guest.connected();
    let (_, mut quiet_host) = guest.connected();
    busy_host.write_all(&[1; 100_000]).unwrap();
    assert_eq!(guest.packet().0.src_port, busy.host);
    quiet_host.write_all(b"me too").unwrap();
    guest.muxer.serve_sockets();
    let turns = [guest.packet(), guest.packet()];
    assert!(turns.iter().any(|(_, payload)| payload == b"me too"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever a guest sends, nothing panics and all stays within its bounds.
    #[test]
    fn any_packets_leave_the_muxer_within_bounds(
        packets in proptest::collection::vec(
            (0_u16..9, 0_u32..3, 0_u32..3, 0_u32..5, any::<u32>(), any::<u32>(), 0_usize..70_000),
            1..60,
        )
    ) {
        let mut guest = Guest::new();
        let _service = guest.service(1);
        let (_, mut host) = guest.connected();
        host.write_all(&[1; 50_000]).unwrap();
        for (op, host_port, guest_port, flags, buf_alloc, fwd_cnt, length) in packets {
            let ports = Ports {
                host: if host_port == 2 { FIRST_PORT } else { host_port },
                guest: if guest_port == 2 { 1024 } else { guest_port },
            };
            let header = Header { flags, buf_alloc, fwd_cnt, ..Guest::header(ports, op) };
            let payload = vec![0; length];
            guest.muxer.receive(&header, (length < 65_537).then_some(&payload));
            guest.muxer.serve_sockets();
            let mut room = [0; 1000];
            if let Some(header) = guest.muxer.transmit(&mut room[..1 + length % 1000]) {
                prop_assert!(header.len as usize <= 1 + length % 1000);
            }
            prop_assert_eq!(guest.muxer.by_ports.len(), guest.muxer.connections.len());
            for connection in guest.muxer.connections.values() {
                prop_assert!(connection.waiting() <= BUFFER as usize);
            }
        }
    }
}

#[test]
fn connections_that_a_guest_takes_back_leave_nothing_behind() {
    let mut guest = Guest::new();
    let service = guest.service(7);
    let ports = Ports { host: 7, guest: 1 };
    for op in [op::RESET, op::REQUEST] {
        for _ in 0..100 {
            guest.send(ports, op::REQUEST, 0, &[]);
            service.accept().unwrap();
            guest.send(ports, op, 0, &[]);
        }
        assert_eq!(guest.muxer.connections(), 0);
        assert_eq!(guest.muxer.line.len(), 0, "it takes no packets");
    }
}
