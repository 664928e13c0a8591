//! A CNI interface and a TAP device joined, inside the VM's network namespace.
//!
//! ```text
//!   CNI's bridge ── veth ══ eth<i> ──ingress: redirect──▶ tap<i> ── virtio-net of the guest
//!                           eth<i> ◀──ingress: redirect── tap<i>
//! ```
//! No bridge and no routing lie between them: each frame that comes in at one goes out at the other.
//!
//! Invariants:
//! - The host never speaks for the guest: `eth<i>` and `tap<i>` have no address, and no IPv6.
//! - `tap<i>` and the guest's NIC have the MTU of `eth<i>`; the guest's NIC has its MAC.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::netlink::{Change, Link, Netlink};
use super::plan::{NetworkRecord, NicRecord};
use crate::sys::netns::{self, NetnsError};
use crate::sys::tun;
use crate::units::Mac;

/// Frames that may wait for the guest in each TAP queue: the default of Ethernet devices, and four
/// times the guest's own receive queue. (A frame may be a 64 KiB segment: more would be delay.)
const TAP_QUEUE_FRAMES: u32 = 1000;

/// `addr_gen_mode` "none": no link-local address, so no neighbour or router solicitation.
const NO_ADDRESS_GENERATION: &str = "1";

/// A step inside a VM's network namespace that failed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    /// The kernel refused.
    #[error("cannot {operation} {device} in {}", netns.display())]
    Device {
        /// What was to be done.
        operation: &'static str,
        /// The device.
        device: String,
        /// The namespace.
        netns: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A device that should be there is not.
    #[error("there is no {device} in {}", netns.display())]
    Missing {
        /// The device.
        device: String,
        /// The namespace.
        netns: PathBuf,
    },
    /// A device cannot carry a guest's frames.
    #[error("{device} in {} cannot be a guest's NIC: it has {what}", netns.display())]
    Unsuitable {
        /// The device.
        device: String,
        /// The namespace.
        netns: PathBuf,
        /// What it has.
        what: String,
    },
}

/// What of the CNI interface the guest's NIC takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inspected {
    /// Its address.
    pub(super) mac: Mac,
    /// Its largest packet, in bytes.
    pub(super) mtu: u16,
}

/// Work inside one namespace: what it is on, for errors, and the connection.
struct Inside<'a> {
    netns: &'a Path,
    netlink: Netlink,
}

/// Makes a new namespace ready for CNI: `lo` up, and no IPv6 address of its own on what comes.
///
/// # Errors
/// The kernel refuses a step.
pub(super) fn prepare(netns: &Path) -> Result<(), DeviceError> {
    inside(netns, |inside| {
        let lo = inside.link("lo")?;
        let up = Change {
            up: Some(true),
            ..Change::default()
        };
        inside.change("bring up", "lo", lo.index, up)?;
        inside.set_ipv6("default", "addr_gen_mode", NO_ADDRESS_GENERATION)
    })
}

/// Looks at the CNI interface `ifname`, after giving it the address `mac`, where one is wanted.
///
/// # Errors
/// The interface is missing or cannot be a guest's NIC, or the kernel refuses a step.
pub(super) fn inspect(
    netns: &Path,
    ifname: &str,
    mac: Option<Mac>,
) -> Result<Inspected, DeviceError> {
    inside(netns, |inside| {
        let mut found = inside.link(ifname)?;
        if let Some(wanted) = mac.filter(|mac| found.mac != Some(*mac)) {
            inside.set_mac(ifname, found.index, wanted)?;
            found.mac = Some(wanted);
        }
        inside.suitable(ifname, found)
    })
}

/// Joins the CNI interface of `nic` with a new TAP device.
///
/// # Errors
/// The interface is missing, or the kernel refuses a step. What was made goes with the namespace.
pub(super) fn join(netns: &Path, nic: &NicRecord) -> Result<(), DeviceError> {
    inside(netns, |inside| {
        let (ifname, tap) = (&nic.ifname, &nic.tap);
        let found = inside.link(ifname)?;
        inside.silence(ifname, found.index)?;

        tun::create(tap, nic.queue_pairs).map_err(|e| inside.failed("make", tap, e))?;
        let tap_index = inside.link(tap)?.index;
        inside.set_ipv6(tap, "disable_ipv6", "1")?;
        // Both filters stand before the first frame can come.
        for (name, from, to) in [
            (ifname, found.index, tap_index),
            (tap, tap_index, found.index),
        ] {
            inside
                .netlink
                .add_ingress(from)
                .and_then(|()| inside.netlink.redirect(from, to))
                .map_err(|e| inside.failed("redirect the frames of", name, e))?;
        }
        let tap_up = Change {
            up: Some(true),
            mtu: Some(nic.mtu),
            queue_length: Some(TAP_QUEUE_FRAMES),
            ..Change::default()
        };
        inside.change("bring up", tap, tap_index, tap_up)?;
        let up = Change {
            up: Some(true),
            ..Change::default()
        };
        inside.change("bring up", ifname, found.index, up)
    })
}

/// Puts `addresses` back on the CNI interface `ifname`, which goes down first, so that the host
/// still says nothing. The bridge and ptp plugins find by them which NAT rules DEL must remove. An
/// interface that is gone needs none.
///
/// # Errors
/// The kernel refuses a step.
pub(super) fn restore_addresses(
    netns: &Path,
    ifname: &str,
    addresses: &[IpNet],
) -> Result<(), DeviceError> {
    inside(netns, |inside| {
        let found = inside.netlink.link(ifname);
        let Some(found) = found.map_err(|e| inside.failed("look for", ifname, e))? else {
            return Ok(());
        };
        let down = Change {
            up: Some(false),
            ..Change::default()
        };
        inside.change("bring down", ifname, found.index, down)?;
        inside.set_ipv6(ifname, "disable_ipv6", "0")?;
        for address in addresses {
            let added = inside.netlink.add_address(found.index, *address);
            added.map_err(|e| inside.failed("put an address back on", ifname, e))?;
        }
        Ok(())
    })
}

/// Whether every NIC of `record` is there and joined: the devices, both redirects, MAC and MTU.
///
/// # Errors
/// The kernel does not say.
pub(super) fn is_joined(record: &NetworkRecord) -> Result<bool, DeviceError> {
    inside(&record.netns, |inside| {
        for nic in &record.nics {
            let ask = |name: &str| {
                let found = inside.netlink.link(name);
                found.map_err(|e| inside.failed("look for", name, e))
            };
            let (Some(eth), Some(tap)) = (ask(&nic.ifname)?, ask(&nic.tap)?) else {
                return Ok(false);
            };
            let mtu = u32::from(nic.mtu);
            if eth.mac != Some(nic.mac) || eth.mtu != mtu || tap.mtu != mtu || !tap.up {
                return Ok(false);
            }
            for (name, from, to) in [(&nic.ifname, eth, tap), (&nic.tap, tap, eth)] {
                let found = inside.netlink.redirects(from.index);
                if found.map_err(|e| inside.failed("list the filters of", name, e))? != [to.index] {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    })
}

/// Sets the CNI interfaces of `record` up or down.
///
/// # Errors
/// One is missing, or the kernel refuses; the others may be changed already.
pub(super) fn set_up(record: &NetworkRecord, up: bool) -> Result<(), DeviceError> {
    inside(&record.netns, |inside| {
        for nic in &record.nics {
            let index = inside.link(&nic.ifname)?.index;
            let operation = if up { "bring up" } else { "bring down" };
            let change = Change {
                up: Some(up),
                ..Change::default()
            };
            inside.change(operation, &nic.ifname, index, change)?;
        }
        Ok(())
    })
}

/// Runs `work` inside `netns`, with a connection of its own.
fn inside<T: Send>(
    netns: &Path,
    work: impl FnOnce(&Inside<'_>) -> Result<T, DeviceError> + Send,
) -> Result<T, DeviceError> {
    netns::run_in(netns, || {
        let netlink = Netlink::open().map_err(|source| DeviceError::Device {
            operation: "open a netlink socket for",
            device: "the network devices".to_owned(),
            netns: netns.to_owned(),
            source,
        })?;
        work(&Inside { netns, netlink })
    })?
}

impl Inside<'_> {
    fn failed(&self, operation: &'static str, device: &str, source: io::Error) -> DeviceError {
        DeviceError::Device {
            operation,
            device: device.to_owned(),
            netns: self.netns.to_owned(),
            source,
        }
    }

    fn link(&self, name: &str) -> Result<Link, DeviceError> {
        let found = self.netlink.link(name);
        found
            .map_err(|e| self.failed("look for", name, e))?
            .ok_or_else(|| DeviceError::Missing {
                device: name.to_owned(),
                netns: self.netns.to_owned(),
            })
    }

    fn change(
        &self,
        operation: &'static str,
        name: &str,
        index: u32,
        change: Change,
    ) -> Result<(), DeviceError> {
        let done = self.netlink.change(index, change);
        done.map_err(|e| self.failed(operation, name, e))
    }

    /// Gives the device an address; down meanwhile, since not every driver changes it while up.
    fn set_mac(&self, name: &str, index: u32, mac: Mac) -> Result<(), DeviceError> {
        let down = Change {
            up: Some(false),
            ..Change::default()
        };
        let address = Change {
            mac: Some(mac),
            ..Change::default()
        };
        self.change("bring down", name, index, down)?;
        self.change("set the address of", name, index, address)
    }

    /// What of the device the guest's NIC takes over.
    fn suitable(&self, name: &str, found: Link) -> Result<Inspected, DeviceError> {
        let unsuitable = |what: String| DeviceError::Unsuitable {
            device: name.to_owned(),
            netns: self.netns.to_owned(),
            what,
        };
        let mac = found.mac.ok_or_else(|| unsuitable("no MAC".to_owned()))?;
        let mtu = u16::try_from(found.mtu)
            .ok()
            .filter(|mtu| *mtu >= MIN_MTU_BYTES)
            .ok_or_else(|| unsuitable(format!("an MTU of {} bytes", found.mtu)))?;
        Ok(Inspected { mac, mtu })
    }

    /// Takes every address from the device, so that the guest alone answers to them.
    fn silence(&self, name: &str, index: u32) -> Result<(), DeviceError> {
        let flushed = self.netlink.flush_addresses(index);
        flushed.map_err(|e| self.failed("delete the addresses of", name, e))?;
        self.set_ipv6(name, "disable_ipv6", "1")
    }

    /// Sets an IPv6 parameter of the device (Documentation/networking/ip-sysctl). A kernel without
    /// IPv6 has none, and needs none.
    fn set_ipv6(&self, name: &str, parameter: &str, value: &str) -> Result<(), DeviceError> {
        // Resolved in the namespace of the thread that opens it.
        let path = format!("/proc/sys/net/ipv6/conf/{name}/{parameter}");
        match fs::write(path, value) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed("set an IPv6 parameter of", name, error))
            }
            _ => Ok(()),
        }
    }
}

/// The smallest MTU of IPv4 (RFC 791), and the smallest that virtio-net allows.
const MIN_MTU_BYTES: u16 = 68;
