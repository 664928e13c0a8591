//! rtnetlink behind blocking functions, for the network namespace of the thread that opens it.
//!
//! Everything that depends on the rtnetlink crate, whose interface changes with every release,
//! stands in this file.

use std::future::Future;
use std::io;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::tc::{
    TcActionAttribute, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterU32Option, TcMessage, TcMirrorActionType, TcOption,
};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth};
use tokio::runtime::{Builder, Runtime};

use crate::units::Mac;

/// Handle of the ingress qdisc, `ffff:`, which is the parent of its filters.
const INGRESS: u32 = 0xffff_0000;

/// The one filter of a device, so any priority would do; the Go cocoon's is 1.
const PRIORITY: u16 = 1;

/// Frames of every protocol: ETH_P_ALL (linux/if_ether.h), in network byte order.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

/// A connection to the kernel.
#[derive(Debug)]
pub(super) struct Netlink {
    runtime: Runtime,
    handle: Handle,
}

/// A network device, as it was when it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Its number in its namespace.
    pub(super) index: u32,
    /// Its Ethernet address, if it has one.
    pub(super) mac: Option<Mac>,
    /// Largest packet, in bytes.
    pub(super) mtu: u32,
    /// Administratively up.
    pub(super) up: bool,
}

/// What to change of a device; the rest stays.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Change {
    /// Up or down.
    pub(super) up: Option<bool>,
    /// Its Ethernet address.
    pub(super) mac: Option<Mac>,
    /// Largest packet, in bytes.
    pub(super) mtu: Option<u16>,
    /// Frames that may wait in its queue.
    pub(super) queue_length: Option<u32>,
}

impl Netlink {
    /// Connects the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let guard = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection()?;
        drop(guard);
        runtime.spawn(connection);
        Ok(Self { runtime, handle })
    }

    /// The device `name`, if there is one.
    pub(super) fn link(&self, name: &str) -> io::Result<Option<Link>> {
        let mut found = self.handle.link().get().match_name(name).execute();
        match self.wait(found.try_next()) {
            Ok(message) => Ok(message.as_ref().map(Link::from)),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a pair of joined devices, as CNI plugins do.
    pub(super) fn add_pair(&self, one: &str, other: &str) -> io::Result<()> {
        let pair = LinkVeth::new(one, other).build();
        self.wait(self.handle.link().add(pair).execute())
    }

    /// Makes a bridge, as the CNI plugin of that name does.
    pub(super) fn add_bridge(&self, name: &str) -> io::Result<()> {
        let bridge = LinkBridge::new(name).build();
        self.wait(self.handle.link().add(bridge).execute())
    }

    /// Changes the device `index`.
    pub(super) fn change(&self, index: u32, change: Change) -> io::Result<()> {
        let mut link = LinkUnspec::new_with_index(index);
        if let Some(mac) = change.mac {
            link = link.address(mac.bytes().to_vec());
        }
        if let Some(mtu) = change.mtu {
            link = link.mtu(mtu.into());
        }
        if let Some(length) = change.queue_length {
            link = link.txqueuelen(length);
        }
        link = match change.up {
            Some(true) => link.up(),
            Some(false) => link.down(),
            None => link,
        };
        self.wait(self.handle.link().set(link.build()).execute())
    }

    /// Deletes every address of the device `index`.
    pub(super) fn flush_addresses(&self, index: u32) -> io::Result<()> {
        let dump = self.handle.address().get().set_link_index_filter(index);
        let found: Vec<_> = self.wait(dump.execute().try_collect())?;
        for address in found {
            match self.wait(self.handle.address().del(address).execute()) {
                // A secondary address goes with its primary one.
                Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Gives the device `index` an address; one that it has is no error.
    pub(super) fn add_address(&self, index: u32, address: IpNet) -> io::Result<()> {
        let request = self.handle.address();
        let request = request.add(index, address.addr(), address.prefix_len());
        match self.wait(request.execute()) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Gives the device `index` an ingress qdisc.
    pub(super) fn add_ingress(&self, index: u32) -> io::Result<()> {
        let index = signed(index)?;
        self.wait(self.handle.qdisc().add(index).ingress().execute())
    }

    /// Sends whatever comes in at the device `from` out of the device `to` instead:
    /// `tc filter add dev FROM parent ffff: prio 1 protocol all u32 match u32 0 0
    /// action mirred egress redirect dev TO`.
    pub(super) fn redirect(&self, from: u32, to: u32) -> io::Result<()> {
        let filter = self.handle.traffic_filter(signed(from)?).add();
        // The priority before the protocol: setting it overwrites both.
        let filter = filter
            .parent(INGRESS)
            .priority(PRIORITY)
            .protocol(ALL_PROTOCOLS)
            .redirect(to)
            .map_err(io_error)?;
        self.wait(filter.execute())
    }

    /// The devices to which the ingress filters of the device `from` redirect.
    pub(super) fn redirects(&self, from: u32) -> io::Result<Vec<u32>> {
        let dump = self.handle.traffic_filter(signed(from)?).get().ingress();
        let filters: Vec<TcMessage> = self.wait(dump.execute().try_collect())?;
        Ok(filters.iter().filter_map(redirect_target).collect())
    }

    fn wait<T>(&self, answer: impl Future<Output = Result<T, rtnetlink::Error>>) -> io::Result<T> {
        self.runtime.block_on(answer).map_err(io_error)
    }
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Address(bytes) => {
                    link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac::new);
                }
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                _ => {}
            }
        }
        link
    }
}

/// The device to which a u32 filter redirects all that it matches.
fn redirect_target(filter: &TcMessage) -> Option<u32> {
    let options = filter.attributes.iter().find_map(|a| match a {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let actions = options.iter().find_map(|option| match option {
        TcOption::U32(TcFilterU32Option::Action(actions)) => Some(actions),
        _ => None,
    })?;
    let mut attributes = actions.iter().flat_map(|action| &action.attributes);
    attributes.find_map(|attribute| match attribute {
        TcActionAttribute::Options(options) => options.iter().find_map(|option| match option {
            TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror)) => (mirror.eaction
                == TcMirrorActionType::EgressRedir
                && mirror.generic.action == TcActionType::Stolen)
                .then_some(mirror.ifindex),
            _ => None,
        }),
        _ => None,
    })
}

/// Device numbers are positive ints; only this part of the interface has them signed.
fn signed(index: u32) -> io::Result<i32> {
    i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}
