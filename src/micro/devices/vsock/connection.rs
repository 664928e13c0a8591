//! One connection between a socket of the guest and one of the host.
//!
//! ```text
//!  host connects: Requested ──RESPONSE──▶ Established ◀── guest connects (the answer is owed)
//!
//!  host socket ── recv, as far as the guest has room ───────────────────▶ DATA to the guest
//!  host socket ◀── waiting (at most BUFFER bytes) ◀─────────────────────── DATA of the guest
//! ```
//! Invariants: nothing of the host waits here, it stays in its socket; each end is told once that
//! the other closed, after all that the other sent. Sockets are watched for edges, so `readable` and
//! `writable` hold until a call says otherwise.

use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::credit::{BUFFER, Credit};
use super::packet::{HOST, Header, NEITHER, NO_RECEIVE, NO_SEND, PAYLOAD_MAX, STREAM, op};

/// How long the guest may take to answer: Linux's own patience is 2 s (`VSOCK_DEFAULT_CONNECT_TIMEOUT`),
/// which a guest that just begins exceeds.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How long the guest may keep a connection that its peer closed, as Linux's
/// `VSOCK_CLOSE_TIMEOUT`.
const CLOSE_MAX: Duration = Duration::from_secs(8);

/// The two ports that make a connection what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    /// The port at the host, which is a number only.
    pub(super) host: u32,
    /// The port in the guest.
    pub(super) guest: u32,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Fate {
    /// It goes on.
    Lives,
    /// It is over, and the guest is to be told by a RESET.
    Reset,
}

/// One packet to the guest.
#[derive(Clone, Copy, Debug)]
struct Packet {
    op: u16,
    flags: u32,
    len: u32,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) ports: Ports,
    stream: UnixStream,
    established: bool,
    readable: bool,
    writable: bool,
    /// The host closed its socket, or broke it.
    hung_up: bool,
    /// All that the host sent was sent on.
    ended: bool,
    /// Bytes of the guest that the host's socket has not taken.
    waiting: VecDeque<u8>,
    credit: Credit,
    /// REQUEST or RESPONSE, the packet to begin with.
    opening: Option<u16>,
    owes_credit: bool,
    /// Flags of SHUTDOWN that the guest has said, and was told.
    heard: u32,
    told: u32,
    /// When it is over unless something happens.
    pub(super) deadline: Option<Instant>,
    /// Whether the muxer has it in line for sending.
    pub(super) queued: bool,
}

impl Connection {
    /// A connection of the host, which the guest must answer.
    pub(super) fn requested(stream: UnixStream, ports: Ports, now: Instant) -> Self {
        Self {
            deadline: Some(now + ANSWER_MAX),
            ..Self::new(stream, ports, op::REQUEST)
        }
    }

    /// A connection of the guest, which `request` asked for.
    pub(super) fn accepted(stream: UnixStream, ports: Ports, request: &Header) -> Self {
        let mut connection = Self::new(stream, ports, op::RESPONSE);
        connection.established = true;
        connection.credit.heard(request.buf_alloc, request.fwd_cnt);
        connection
    }

    fn new(stream: UnixStream, ports: Ports, opening: u16) -> Self {
        Self {
            ports,
            stream,
            established: false,
            // Until the kernel says otherwise.
            readable: true,
            writable: true,
            hung_up: false,
            ended: false,
            waiting: VecDeque::new(),
            credit: Credit::default(),
            opening: Some(opening),
            owes_credit: false,
            heard: 0,
            told: 0,
            deadline: None,
            queued: false,
        }
    }

    /// The host's socket, to be watched.
    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Its socket changed.
    pub(super) fn changed(&mut self, events: EventFlags) -> Fate {
        let closed = events.intersects(EventFlags::HUP | EventFlags::ERR);
        self.readable |= closed || events.intersects(EventFlags::IN | EventFlags::RDHUP);
        self.writable |= events.contains(EventFlags::OUT);
        self.hung_up |= closed;
        if self.hung_up && !self.established {
            return Fate::Reset;
        }
        self.flush()
    }

    /// The guest sent a packet, with `payload` if it is data.
    pub(super) fn receive(&mut self, header: &Header, payload: &[u8]) -> Fate {
        self.credit.heard(header.buf_alloc, header.fwd_cnt);
        match (header.op, self.established) {
            (op::RESPONSE, false) if self.opening.is_none() => self.answered(),
            (op::DATA, true) if self.heard & NO_SEND == 0 => self.take(payload),
            (op::SHUTDOWN, true) => self.shut(header.flags & NEITHER),
            (op::CREDIT_UPDATE, true) => Fate::Lives,
            (op::CREDIT_REQUEST, true) => {
                self.owes_credit = true;
                Fate::Lives
            }
            _ => Fate::Reset,
        }
    }

    fn answered(&mut self) -> Fate {
        self.established = true;
        self.deadline = None;
        let ok = format!("OK {}\n", self.ports.host);
        match self.send(ok.as_bytes()) {
            // Nothing was sent before, so it fits.
            Some(sent) if sent == ok.len() => Fate::Lives,
            _ => Fate::Reset,
        }
    }

    fn take(&mut self, payload: &[u8]) -> Fate {
        if payload.len() > BUFFER as usize - self.waiting.len() {
            return Fate::Reset;
        }
        let sent = match self.waiting.is_empty() {
            true => self.send(payload).unwrap_or(0),
            false => 0,
        };
        if self.hung_up {
            // Lost, as what is sent to a closed socket is; the guest learns why.
            self.credit.taken(payload.len());
        } else {
            self.credit.taken(sent);
            self.waiting.extend(&payload[sent..]);
        }
        Fate::Lives
    }

    fn shut(&mut self, flags: u32) -> Fate {
        self.heard |= flags;
        if self.heard & NO_RECEIVE != 0 {
            // Fails if the host has closed already, which is as good.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.flush()
    }

    /// Sends on what waits for the host, and closes what the guest closed after that.
    fn flush(&mut self) -> Fate {
        while !self.waiting.is_empty() && self.writable && !self.hung_up {
            let (first, _) = self.waiting.as_slices();
            let Ok(sent) = send(&self.stream, first).inspect_err(|error| match *error {
                Errno::INTR => {}
                Errno::AGAIN => self.writable = false,
                _ => self.hung_up = true,
            }) else {
                continue;
            };
            self.waiting.drain(..sent);
            self.credit.taken(sent);
        }
        if self.hung_up {
            self.credit.taken(self.waiting.len());
            self.waiting = VecDeque::new();
        }
        if !self.waiting.is_empty() {
            return Fate::Lives;
        }
        // Idle connections hold no memory.
        self.waiting = VecDeque::new();
        if self.heard == NEITHER {
            return Fate::Reset;
        }
        if self.heard & NO_SEND != 0 {
            // Fails if the host has closed already, which is as good.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Fate::Lives
    }

    /// Sends to the host as much as goes; nothing if it hung up.
    fn send(&mut self, bytes: &[u8]) -> Option<usize> {
        if !self.writable || self.hung_up {
            return None;
        }
        loop {
            match send(&self.stream, bytes) {
                Ok(sent) => return Some(sent),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.writable = false;
                    return None;
                }
                Err(_) => {
                    self.hung_up = true;
                    return None;
                }
            }
        }
    }

    /// Whether [`Connection::next`] may have a packet.
    pub(super) fn is_ready(&self) -> bool {
        let speaks = self.established
            && (self.owes_credit
                || self.credit.should_tell()
                || self.shutdown_owed() != 0
                || (self.has_data() && (self.credit.room() > 0 || self.credit.should_ask())));
        self.opening.is_some() || speaks
    }

    /// The next packet to the guest; data, if it is that, is at the beginning of `payload`.
    pub(super) fn next(&mut self, cid: u64, payload: &mut [u8], now: Instant) -> Option<Header> {
        let packet = self.next_packet(payload, now)?;
        let (buf_alloc, fwd_cnt) = self.credit.tell();
        Some(Header {
            src_cid: HOST,
            dst_cid: cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len: packet.len,
            kind: STREAM,
            op: packet.op,
            flags: packet.flags,
            buf_alloc,
            fwd_cnt,
        })
    }

    fn next_packet(&mut self, payload: &mut [u8], now: Instant) -> Option<Packet> {
        let bare = |op, flags| Packet { op, flags, len: 0 };
        if let Some(op) = self.opening.take() {
            return Some(bare(op, 0));
        }
        if !self.established {
            return None;
        }
        if std::mem::take(&mut self.owes_credit) {
            return Some(bare(op::CREDIT_UPDATE, 0));
        }
        if self.has_data() && self.credit.room() > 0 {
            let len = self.read(payload);
            if len > 0 {
                self.credit.sent(len);
                return Some(Packet {
                    op: op::DATA,
                    flags: 0,
                    len,
                });
            }
        }
        match self.shutdown_owed() {
            0 => {}
            flags => {
                self.told |= flags;
                if self.told == NEITHER {
                    self.deadline = Some(now + CLOSE_MAX);
                }
                return Some(bare(op::SHUTDOWN, self.told));
            }
        }
        if self.has_data() && self.credit.should_ask() {
            self.credit.ask();
            return Some(bare(op::CREDIT_REQUEST, 0));
        }
        self.credit
            .should_tell()
            .then(|| bare(op::CREDIT_UPDATE, 0))
    }

    /// Whether the host may have something to say to a guest that listens.
    fn has_data(&self) -> bool {
        self.established && self.readable && !self.ended && self.heard & NO_RECEIVE == 0
    }

    /// Reads from the host, into as much of `payload` as the guest has room for.
    fn read(&mut self, payload: &mut [u8]) -> u32 {
        let room = usize::try_from(self.credit.room()).unwrap_or(usize::MAX);
        let most = payload.len().min(room).min(PAYLOAD_MAX);
        if most == 0 {
            return 0;
        }
        match rustix::net::recv(&self.stream, &mut payload[..most], RecvFlags::empty()) {
            Ok((0, _)) => {
                self.ended = true;
                0
            }
            // Bounded by PAYLOAD_MAX.
            Ok((read, _)) => u32::try_from(read).unwrap_or(0),
            Err(Errno::INTR) => 0,
            Err(Errno::AGAIN) => {
                self.readable = false;
                0
            }
            Err(_) => {
                self.hung_up = true;
                self.ended = true;
                0
            }
        }
    }

    /// What the guest is still to be told of the host's end.
    fn shutdown_owed(&self) -> u32 {
        let mut flags = 0;
        if self.hung_up {
            flags |= NO_RECEIVE;
        }
        if self.ended || (self.hung_up && self.heard & NO_RECEIVE != 0) {
            flags |= NO_SEND;
        }
        flags & !self.told
    }

    /// How many bytes wait for the host.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether the guest has heard of it.
    pub(super) fn is_known_to_guest(&self) -> bool {
        self.opening != Some(op::REQUEST)
    }

    /// Whether the guest closed it in order, and only the host is not done with it.
    pub(super) fn lingers(&self) -> bool {
        self.heard == NEITHER && !self.waiting.is_empty()
    }
}

fn send(stream: &UnixStream, bytes: &[u8]) -> Result<usize, Errno> {
    rustix::net::send(stream, bytes, SendFlags::NOSIGNAL)
}
