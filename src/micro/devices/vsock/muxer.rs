//! All connections of a guest, between packets and sockets. It knows no rings, so fuzz targets and
//! tests drive it as it is.
//!
//! ```text
//! receive(packet) ──▶ by_ports ──▶ Connection ──┐ Fate::Reset: forgotten, a RESET in `answers`
//! serve_sockets() ──▶ by token ──▶ Connection ──┤
//!                                               └▶ is_ready: in `line` ──▶ transmit() ──▶ packet
//! ```
//! Invariants: tokens are never used twice, so an event of a socket that is gone finds nothing; `line`
//! has connections that there are, each at most once; each has its turn, one packet at a time.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::caller::{Caller, Said};
use super::connection::{Connection, Fate, Ports};
use super::packet::{HOST, Header, STREAM, op};
use super::socket::HostSocket;
use crate::sys::random;

/// As many as a process may usually hold descriptors.
pub(crate) const CONNECTIONS_MAX: usize = 1024;

/// Resets that may wait for the guest to take them before it is not listened to any more.
const ANSWERS_MAX: usize = 256;

/// Ports that the host's own connections get, from this on: no service has such a number. The first of them is any
/// one: a restored guest may know connections of the VM that was saved, and ends a new one that has the number of
/// an old one.
const FIRST_PORT: u32 = 1 << 30;

/// How long until connections are accepted again after the process had no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Events taken from the kernel at once.
const EVENTS: usize = 64;

const LISTENER: u64 = 0;
const TIMER: u64 = 1;
const FIRST_TOKEN: u64 = 2;

/// The connections of one guest.
#[derive(Debug)]
pub(crate) struct Muxer {
    cid: u64,
    socket: Arc<HostSocket>,
    epoll: OwnedFd,
    timer: OwnedFd,
    /// What the timer is set to.
    wakes_at: Option<Instant>,
    /// When to accept again.
    accept_at: Option<Instant>,
    callers: HashMap<u64, Caller>,
    connections: HashMap<u64, Connection>,
    by_ports: HashMap<Ports, u64>,
    answers: VecDeque<Header>,
    line: VecDeque<u64>,
    next_token: u64,
    next_port: u32,
}

impl Muxer {
    /// The connections of guest `cid`, none yet; the host's come by `socket`, which listens from now on.
    ///
    /// # Errors
    /// The process has no descriptor left, or the system no random numbers.
    pub(super) fn new(cid: u64, socket: Arc<HostSocket>) -> io::Result<Self> {
        socket.listen()?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let edges = EventFlags::IN | EventFlags::ET;
        epoll::add(
            &epoll,
            socket.listener(),
            EventData::new_u64(LISTENER),
            edges,
        )?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), edges)?;
        Ok(Self {
            cid,
            socket,
            epoll,
            timer,
            wakes_at: None,
            accept_at: None,
            callers: HashMap::new(),
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            answers: VecDeque::new(),
            line: VecDeque::new(),
            next_token: FIRST_TOKEN,
            next_port: some_port()?,
        })
    }

    /// Readable when [`Muxer::serve_sockets`] has something to do.
    pub(crate) fn events(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Whether the guest may send; else it must take answers first.
    pub(crate) fn listens(&self) -> bool {
        self.answers.len() < ANSWERS_MAX
    }

    /// Whether [`Muxer::transmit`] may have a packet.
    pub(crate) fn is_ready(&self) -> bool {
        !self.answers.is_empty() || !self.line.is_empty()
    }

    /// How many connections there are, those without a destination too.
    pub(crate) fn connections(&self) -> usize {
        self.callers.len() + self.connections.len()
    }

    /// The guest sent a packet, whose payload is as long as its header says, or is left out because
    /// it is too long for any.
    pub(crate) fn receive(&mut self, header: &Header, payload: Option<&[u8]>) {
        if header.src_cid != self.cid {
            tracing::debug!(?header, "the guest sent a packet in another one's name");
            return;
        }
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        let known = (header.dst_cid == HOST && header.kind == STREAM)
            .then(|| self.by_ports.get(&ports).copied())
            .flatten();
        match (known, header.op) {
            (Some(token), op::RESET) => self.guest_reset(token),
            (None, op::RESET) => {}
            (None, op::REQUEST) if header.dst_cid == HOST && header.kind == STREAM => {
                self.guest_connects(header, ports);
            }
            (None, _) => self.answers.push_back(header.reset()),
            (Some(token), _) => self.tell(token, |connection| match payload {
                Some(payload) => connection.receive(header, payload),
                None => Fate::Reset,
            }),
        }
    }

    /// The next packet to the guest: its payload is at the beginning of `payload`, as long as the
    /// header says.
    pub(crate) fn transmit(&mut self, payload: &mut [u8]) -> Option<Header> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        let now = Instant::now();
        while let Some(token) = self.line.pop_front() {
            let Some(connection) = self.connections.get_mut(&token) else {
                continue;
            };
            connection.queued = false;
            let header = connection.next(self.cid, payload, now);
            let deadline = connection.deadline;
            self.enqueue(token);
            if header.is_some() {
                self.wake_by(deadline);
                return header;
            }
        }
        None
    }

    /// Does what sockets and time ask for.
    pub(crate) fn serve_sockets(&mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        let now = Timespec::default();
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&now),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => tracing::error!(%error, "cannot ask for the events of vsock connections"),
        }
        for event in events {
            self.serve_socket(event);
        }
    }

    fn serve_socket(&mut self, event: Event) {
        match event.data.u64() {
            LISTENER => self.accept(),
            TIMER => self.expire(Instant::now()),
            token => {
                if let Some(caller) = self.callers.get_mut(&token) {
                    let said = caller.changed(event.flags);
                    self.caller_said(token, said);
                } else {
                    self.tell(token, |connection| connection.changed(event.flags));
                }
            }
        }
    }

    /// Lets a connection do something, and sees to what comes of it.
    fn tell(&mut self, token: u64, f: impl FnOnce(&mut Connection) -> Fate) {
        match self.connections.get_mut(&token).map(f) {
            Some(Fate::Lives) => self.enqueue(token),
            Some(Fate::Reset) => self.reset(token),
            None => {}
        }
    }

    fn enqueue(&mut self, token: u64) {
        if let Some(connection) = self.connections.get_mut(&token)
            && !connection.queued
            && connection.is_ready()
        {
            connection.queued = true;
            self.line.push_back(token);
        }
    }

    fn forget(&mut self, token: u64) -> Option<Connection> {
        let connection = self.connections.remove(&token)?;
        self.by_ports.remove(&connection.ports);
        if connection.queued {
            // A guest that takes no packets would let the line grow with each that it takes back.
            self.line.retain(|queued| *queued != token);
        }
        Some(connection)
    }

    fn reset(&mut self, token: u64) {
        if let Some(connection) = self.forget(token)
            // A guest that was not asked yet has nothing to forget.
            && connection.is_known_to_guest()
        {
            self.answers.push_back(Header {
                src_cid: HOST,
                dst_cid: self.cid,
                src_port: connection.ports.host,
                dst_port: connection.ports.guest,
                kind: STREAM,
                op: op::RESET,
                ..Header::default()
            });
        }
    }

    fn guest_reset(&mut self, token: u64) {
        if !self
            .connections
            .get(&token)
            .is_some_and(Connection::lingers)
        {
            self.forget(token);
        }
    }

    fn guest_connects(&mut self, request: &Header, ports: Ports) {
        let connected = if self.connections() < CONNECTIONS_MAX {
            self.socket.connect(ports.host)
        } else {
            Err(io::ErrorKind::QuotaExceeded.into())
        };
        let added = connected.and_then(|stream| {
            let connection = Connection::accepted(stream, ports, request);
            self.add(connection)
        });
        if let Err(error) = added {
            let port = ports.host;
            tracing::debug!(%error, port, "a connection of the guest was refused");
            self.answers.push_back(request.reset());
        }
    }

    fn accept(&mut self) {
        self.accept_at = None;
        loop {
            match self.socket.accept() {
                // Dropping it is what a listener without room could do as well.
                Ok(_) if self.connections() >= CONNECTIONS_MAX => {}
                Ok(stream) => self.add_caller(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if is_of_one_caller(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the guest for now");
                    self.accept_at = Some(Instant::now() + ACCEPT_PAUSE);
                    self.wake_by(self.accept_at);
                    return;
                }
            }
        }
    }

    fn add_caller(&mut self, stream: UnixStream) {
        let token = self.token();
        match self.watch(&stream, token) {
            Ok(()) => {
                let caller = Caller::new(stream, Instant::now());
                self.wake_by(Some(caller.deadline));
                self.callers.insert(token, caller);
            }
            Err(error) => tracing::warn!(%error, "cannot watch a connection to the guest"),
        }
    }

    fn caller_said(&mut self, token: u64, said: Said) {
        let guest = match said {
            Said::Nothing => return,
            Said::Nonsense => {
                self.callers.remove(&token);
                return;
            }
            Said::Port(guest) => guest,
        };
        if let Some(caller) = self.callers.remove(&token) {
            let ports = self.free_ports(guest);
            let connection = Connection::requested(caller.stream, ports, Instant::now());
            self.insert(token, connection);
        }
    }

    /// A number for the host's side that is not in use. There are more of them than connections.
    fn free_ports(&mut self, guest: u32) -> Ports {
        loop {
            let host = self.next_port;
            self.next_port = host.checked_add(1).unwrap_or(FIRST_PORT);
            let ports = Ports { host, guest };
            // The last is VMADDR_PORT_ANY.
            if host != u32::MAX && !self.by_ports.contains_key(&ports) {
                return ports;
            }
        }
    }

    fn add(&mut self, connection: Connection) -> io::Result<()> {
        let token = self.token();
        self.watch(connection.stream(), token)?;
        self.insert(token, connection);
        Ok(())
    }

    fn insert(&mut self, token: u64, connection: Connection) {
        self.wake_by(connection.deadline);
        self.by_ports.insert(connection.ports, token);
        self.connections.insert(token, connection);
        self.enqueue(token);
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// Closing a stream ends its watch.
    fn watch(&self, stream: &UnixStream, token: u64) -> io::Result<()> {
        let edges = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(
            &self.epoll,
            stream,
            EventData::new_u64(token),
            edges,
        )?)
    }

    /// Ends what took too long.
    fn expire(&mut self, now: Instant) {
        self.wakes_at = None;
        self.callers.retain(|_, caller| caller.deadline > now);
        let late = |connection: &Connection| connection.deadline.is_some_and(|at| at <= now);
        let connections = self.connections.iter();
        let over: Vec<u64> = connections
            .filter_map(|(token, connection)| late(connection).then_some(*token))
            .collect();
        for token in over {
            self.reset(token);
        }
        if self.accept_at.is_some_and(|at| at <= now) {
            self.accept();
        }
        let callers = self.callers.values().map(|caller| caller.deadline);
        let connections = self.connections.values();
        let connections = connections.filter_map(|connection| connection.deadline);
        let next = callers.chain(connections).chain(self.accept_at).min();
        self.wake_by(next);
    }

    /// Sees to it that the timer fires by `deadline`. Where one is met the timer fires in vain.
    fn wake_by(&mut self, deadline: Option<Instant>) {
        let Some(deadline) = deadline else { return };
        if self.wakes_at.is_some_and(|at| at <= deadline) {
            return;
        }
        let wait = deadline.saturating_duration_since(Instant::now());
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: wait.as_secs().cast_signed(),
                // Zero would disarm it.
                tv_nsec: i64::from(wait.subsec_nanos()).max(1),
            },
        };
        match timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once) {
            Ok(_) => self.wakes_at = Some(deadline),
            Err(error) => tracing::error!(%error, "cannot set the timer of vsock connections"),
        }
    }
}

/// Whether accept(2) failed for the sake of one caller, who is gone.
fn is_of_one_caller(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
    )
}

fn some_port() -> io::Result<u32> {
    let random = random::bytes().map(u32::from_ne_bytes)?;
    Ok(FIRST_PORT + random % FIRST_PORT)
}

#[cfg(test)]
mod tests;
