//! Interfaces, addresses and routes of the calling thread's network namespace.
//!
//! ```text
//!   Ethernet address, up and down     ioctl(SIOCSIFHWADDR, SIOCSIFFLAGS)
//!   addresses, routes                 rtnetlink: dump, delete, add
//! ```
//! Messages are made and read by netlink-packet-route, but one type at a time: its enum of all of them
//! would bring the code for a hundred kinds of links into a program that must stay small.
#![expect(unsafe_code, reason = "ioctls on interfaces")]

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    DecodeError, Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
    Parseable,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::{SocketFlags, SocketType};

use crate::protocol::{MacAddress, Network, Route};

/// A message of one kind, with its bytes as they are.
#[derive(Clone, Debug)]
struct Raw {
    kind: u16,
    bytes: Vec<u8>,
}

impl NetlinkSerializable for Raw {
    fn message_type(&self) -> u16 {
        self.kind
    }
    fn buffer_len(&self) -> usize {
        self.bytes.len()
    }
    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.bytes);
    }
}

impl NetlinkDeserializable for Raw {
    type Error = DecodeError;
    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self {
            kind: header.message_type,
            bytes: payload.to_vec(),
        })
    }
}

fn emit(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

/// A connection to the kernel.
pub(super) struct Rtnetlink {
    netlink: Socket,
    /// Any socket will do for the ioctls.
    interfaces: OwnedFd,
    sequence: u32,
}

impl Rtnetlink {
    pub(super) fn open() -> io::Result<Self> {
        let mut netlink = Socket::new(NETLINK_ROUTE)?;
        netlink.bind_auto()?;
        netlink.connect(&SocketAddr::new(0, 0))?;
        let family = rustix::net::AddressFamily::INET;
        let interfaces =
            rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Ok(Self {
            netlink,
            interfaces,
            sequence: 0,
        })
    }

    /// Gives an interface another Ethernet address, for which it goes down.
    pub(super) fn set_mac(&self, name: &str, mac: MacAddress) -> io::Result<()> {
        self.set_up(name, false)?;
        let mut request = request(name)?;
        let mut data = [0; 14];
        for (to, from) in data.iter_mut().zip(mac.0) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        request.ifr_ifru.ifru_hwaddr = libc::sockaddr {
            sa_family: libc::ARPHRD_ETHER,
            sa_data: data,
        };
        self.ioctl(libc::SIOCSIFHWADDR, &mut request)
    }

    pub(super) fn set_up(&self, name: &str, up: bool) -> io::Result<()> {
        const UP: libc::c_short = 1;
        let mut request = request(name)?;
        self.ioctl(libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: SIOCGIFFLAGS has filled in this member.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        request.ifr_ifru.ifru_flags = if up { flags | UP } else { flags & !UP };
        self.ioctl(libc::SIOCSIFFLAGS, &mut request)
    }

    fn ioctl(&self, operation: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: the operations above read and write one ifreq, which lives here.
        let result = unsafe { libc::ioctl(self.interfaces.as_raw_fd(), operation as _, request) };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Gives an interface these addresses, and takes all others from it but IPv6 link-local ones.
    pub(super) fn set_addresses(&mut self, index: u32, wanted: &[Network]) -> io::Result<()> {
        for old in self.dump(libc::RTM_GETADDR, &emit(&AddressMessage::default()))? {
            let message = AddressMessage::parse(&old).map_err(io::Error::other)?;
            let is_kept = address_of(&message)
                .is_none_or(|network| wanted.contains(&network) || is_link_local(network.ip));
            if message.header.index == index && !is_kept {
                self.delete(libc::RTM_DELADDR, old)?;
            }
        }
        for network in wanted {
            let mut message = AddressMessage::default();
            message.header.family = family(network.ip);
            message.header.prefix_len = network.prefix;
            message.header.index = index;
            message.attributes.push(AddressAttribute::Local(network.ip));
            message
                .attributes
                .push(AddressAttribute::Address(network.ip));
            if let Some(broadcast) = broadcast(*network) {
                message
                    .attributes
                    .push(AddressAttribute::Broadcast(broadcast));
            }
            self.call(
                libc::RTM_NEWADDR,
                NLM_F_CREATE | NLM_F_REPLACE,
                emit(&message),
            )?;
        }
        Ok(())
    }

    /// Gives an interface these routes, and takes all others from it but those of the kernel itself.
    pub(super) fn set_routes(&mut self, index: u32, wanted: &[Route]) -> io::Result<()> {
        for old in self.dump(libc::RTM_GETROUTE, &emit(&RouteMessage::default()))? {
            let message = RouteMessage::parse(&old).map_err(io::Error::other)?;
            let is_ours = message.header.table == RouteHeader::RT_TABLE_MAIN
                && message.header.protocol != RouteProtocol::Kernel
                && message.attributes.contains(&RouteAttribute::Oif(index));
            if is_ours {
                self.delete(libc::RTM_DELROUTE, old)?;
            }
        }
        for route in wanted {
            let message = route_message(index, route)?;
            self.call(
                libc::RTM_NEWROUTE,
                NLM_F_CREATE | NLM_F_REPLACE,
                emit(&message),
            )?;
        }
        Ok(())
    }

    fn call(&mut self, kind: u16, flags: u16, bytes: Vec<u8>) -> io::Result<()> {
        self.send(kind, flags | NLM_F_ACK, bytes)?;
        self.receive(|_| {})
    }

    /// Deletes what a dump has shown. Others configure interfaces, too: it may be gone meanwhile.
    fn delete(&mut self, kind: u16, shown: Vec<u8>) -> io::Result<()> {
        let is_gone = |error: &io::Error| {
            matches!(
                error.raw_os_error(),
                Some(libc::EADDRNOTAVAIL | libc::ESRCH)
            )
        };
        match self.call(kind, 0, shown) {
            Err(error) if is_gone(&error) => Ok(()),
            result => result,
        }
    }

    /// The bytes of all messages that a dump gives.
    fn dump(&mut self, kind: u16, request: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.send(kind, NLM_F_DUMP, request.to_vec())?;
        let mut found = Vec::new();
        self.receive(|raw| found.push(raw.bytes))?;
        Ok(found)
    }

    fn send(&mut self, kind: u16, flags: u16, bytes: Vec<u8>) -> io::Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags | NLM_F_REQUEST;
        header.sequence_number = self.sequence;
        let mut message =
            NetlinkMessage::new(header, NetlinkPayload::InnerMessage(Raw { kind, bytes }));
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        self.netlink.send(&buffer, 0).map(drop)
    }

    /// Reads until the acknowledgement, or the end of a dump.
    fn receive(&self, mut each: impl FnMut(Raw)) -> io::Result<()> {
        loop {
            let (datagram, _) = self.netlink.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<Raw>::deserialize(rest).map_err(io::Error::other)?;
                // Messages are padded to 4 bytes.
                let length = (message.header.length as usize)
                    .next_multiple_of(4)
                    .min(rest.len());
                rest = &rest[length..];
                match message.payload {
                    _ if message.header.sequence_number != self.sequence => {}
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(error.to_io());
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::InnerMessage(raw) => each(raw),
                    _ => {}
                }
            }
        }
    }
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an ifreq of zeros is valid: it is numbers and unions of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0.
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

fn address_of(message: &AddressMessage) -> Option<Network> {
    let find = |local: bool| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Local(ip) if local => Some(*ip),
                AddressAttribute::Address(ip) if !local => Some(*ip),
                _ => None,
            })
    };
    Some(Network {
        ip: find(true).or_else(|| find(false))?,
        prefix: message.header.prefix_len,
    })
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// The address of all hosts of an IPv4 network that has more than two.
fn broadcast(network: Network) -> Option<std::net::Ipv4Addr> {
    let IpAddr::V4(ip) = network.ip else {
        return None;
    };
    let hosts = u32::MAX
        .checked_shr(u32::from(network.prefix))
        .filter(|hosts| *hosts > 1)?;
    Some((ip.to_bits() | hosts).into())
}

fn route_message(index: u32, route: &Route) -> io::Result<RouteMessage> {
    let some_ip = route.gateway.or(route.to.map(|to| to.ip));
    let ip = some_ip.ok_or(io::ErrorKind::InvalidInput)?;
    let mut message = RouteMessage::default();
    message.header.address_family = family(ip);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = match route.gateway {
        Some(_) => RouteScope::Universe,
        None => RouteScope::Link,
    };
    message.attributes.push(RouteAttribute::Oif(index));
    if let Some(to) = route.to {
        message.header.destination_prefix_length = to.prefix;
        message
            .attributes
            .push(RouteAttribute::Destination(RouteAddress::from(to.ip)));
    }
    if let Some(gateway) = route.gateway {
        // Some CNI plugins (ptp) name one that is in no network of the interface.
        message.header.flags = RouteFlags::Onlink;
        message
            .attributes
            .push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
    }
    if let Some(metric) = route.metric {
        message.attributes.push(RouteAttribute::Priority(metric));
    }
    Ok(message)
}
