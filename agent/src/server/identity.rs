//! `identity`: the guest becomes somebody else, as a clone must before it is let onto the network.
//!
//! ```text
//!   seed ─▶ clock ─▶ host name ─▶ machine id ─▶ units ─▶ Ethernet addresses ─▶ networkd reads its units
//!                                   keys of sshd ◀─ name servers ◀─ addresses and routes ◀─┘
//! ```
//! networkd, where it runs, sets addresses as well, whenever an interface goes up: it must know the new ones
//! before the old ones are taken away, or it may put those back.
//!
//! What the kernel refuses fails the request: an old Ethernet address or old random numbers must not meet
//! the network. Files that cannot be written are warnings: a root may be read-only.
#![expect(unsafe_code, reason = "the ioctls of the random number generator")]

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::ioctl::{NoArg, Setter, opcode};
use rustix::time::{ClockId, Timespec};

use super::refused;
use super::renewal;
use super::rtnetlink::Rtnetlink;
use crate::protocol::{
    Failure, FailureKind, Identity, MacAddress, Network, NicIdentity, Renewed, SEED_MAX, WhichNic,
};

/// Where the guest's files are.
const ROOT: &str = "/";

/// Linux's longest host name (`__NEW_UTS_LEN`).
const HOSTNAME_MAX: usize = 64;

pub(super) fn renew(wanted: &Identity) -> Result<Renewed, Failure> {
    check(wanted)?;
    let root = Path::new(ROOT);
    let mut renewed = Renewed::default();
    let mut warn = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            renewed.warnings.push(format!("cannot {what}: {error}"));
        }
    };
    if !wanted.seed.is_empty() {
        reseed(&wanted.seed).map_err(|error| refused("seed the random number generator", error))?;
    }
    if let Some(clock_ns) = wanted.clock_ns {
        set_clock(clock_ns).map_err(|error| refused("set the clock", error))?;
    }
    if let Some(name) = &wanted.hostname {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|error| refused("set the host name", error))?;
        warn("write the host name", renewal::hostname(root, name));
    }
    if let Some(id) = &wanted.machine_id {
        warn("write the machine id", renewal::machine_id(root, id));
    }
    if !wanted.nics.is_empty() {
        renew_nics(wanted, &mut warn)?;
    }
    if !wanted.dns.is_empty() {
        warn("write resolv.conf", renewal::resolvers(root, &wanted.dns));
    }
    if wanted.ssh_host_keys {
        warn("make new keys for sshd", renewal::ssh_host_keys(root));
    }
    renewed.clock_ns = clock();
    Ok(renewed)
}

/// Everything is looked at before anything is done.
fn check(wanted: &Identity) -> Result<(), Failure> {
    let invalid = |message: String| Err(Failure::new(FailureKind::Invalid, message));
    if let Some(name) = &wanted.hostname {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if name.is_empty() || name.len() > HOSTNAME_MAX || !name.chars().all(is_plain) {
            return invalid(format!("{name:?} is no host name"));
        }
    }
    if let Some(id) = &wanted.machine_id {
        let is_digit = |c: char| matches!(c, '0'..='9' | 'a'..='f');
        if id.len() != 32 || !id.chars().all(is_digit) {
            return invalid(format!("{id:?} is no machine id"));
        }
    }
    if wanted.seed.len() > SEED_MAX {
        return invalid(format!("a seed has at most {SEED_MAX} bytes"));
    }
    let networks = |nic: &NicIdentity| -> Vec<Network> {
        let targets = nic.routes.iter().filter_map(|route| route.to);
        nic.addresses.iter().copied().chain(targets).collect()
    };
    for network in wanted.nics.iter().flat_map(networks) {
        if network.prefix > if network.ip.is_ipv4() { 32 } else { 128 } {
            return invalid(format!("{network} is no network"));
        }
    }
    Ok(())
}

/// An interface as it is before.
struct Nic {
    name: String,
    index: u32,
    mac: MacAddress,
}

/// All are found before the first is changed: a new address of one may be the old one of another.
fn renew_nics(
    wanted: &Identity,
    warn: &mut impl FnMut(&str, io::Result<()>),
) -> Result<(), Failure> {
    let present = nics().map_err(|error| refused("list the network interfaces", error))?;
    let mut pairs = Vec::new();
    for nic in &wanted.nics {
        let mut places = present.iter().zip(0..);
        let found = match nic.nic {
            WhichNic::Mac(mac) => places.find(|(found, _)| found.mac == mac),
            WhichNic::Index(index) => places.find(|(_, place)| *place == index),
        };
        let missing = || {
            Failure::new(
                FailureKind::NotFound,
                format!("the guest has no interface {:?}", nic.nic),
            )
        };
        let (found, place) = found.ok_or_else(missing)?;
        pairs.push((found, place, nic));
    }
    let root = Path::new(ROOT);
    // All before any new one is written: interfaces may swap their addresses.
    let old: Vec<_> = pairs.iter().map(|(found, ..)| found.mac).collect();
    warn(
        "remove old network units",
        renewal::forget_units(root, &old),
    );
    let mut kernel = Rtnetlink::open().map_err(|error| refused("configure the network", error))?;
    let failed = |found: &Nic| {
        let name = found.name.clone();
        move |error| refused(format_args!("configure {name}"), error)
    };
    for (found, place, nic) in &pairs {
        let mac = nic.mac.unwrap_or(found.mac);
        let unit = renewal::unit(root, mac, *place, nic, &wanted.dns);
        warn("write the network unit", unit);
        if mac != found.mac {
            kernel.set_mac(&found.name, mac).map_err(failed(found))?;
        }
        kernel.set_up(&found.name, true).map_err(failed(found))?;
    }
    warn("reload networkd", renewal::reload_networkd());
    for (found, _, nic) in &pairs {
        kernel
            .set_addresses(found.index, &nic.addresses)
            .and_then(|()| kernel.set_routes(found.index, &nic.routes))
            .map_err(failed(found))?;
    }
    Ok(())
}

/// Ethernet interfaces in the order in which they came; those with a device behind them if there are any.
fn nics() -> io::Result<Vec<Nic>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/sys/class/net")? {
        let entry = entry?;
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let is_ethernet = read("type").trim().parse() == Ok(libc::ARPHRD_ETHER);
        let mac = MacAddress::try_from(read("address").trim().to_owned());
        if let (true, Ok(mac), Ok(index), Ok(name)) = (
            is_ethernet,
            mac,
            read("ifindex").trim().parse(),
            entry.file_name().into_string(),
        ) {
            all.push((
                entry.path().join("device").exists(),
                Nic { name, index, mac },
            ));
        }
    }
    all.sort_by_key(|(_, nic)| nic.index);
    let any_device = all.iter().any(|(is_device, _)| *is_device);
    Ok(all
        .into_iter()
        .filter(|(is_device, _)| *is_device || !any_device)
        .map(|(_, nic)| nic)
        .collect())
}

/// `struct rand_pool_info` of linux/random.h.
#[repr(C)]
struct RandomPool {
    entropy_bits: i32,
    bytes: i32,
    buffer: [u8; SEED_MAX],
}

/// linux/random.h.
const RNDADDENTROPY: rustix::ioctl::Opcode = opcode::write::<[i32; 2]>(b'R', 0x03);
const RNDRESEEDCRNG: rustix::ioctl::Opcode = opcode::none(b'R', 0x07);

/// Gives the kernel random bytes, and has its generator begin anew with them.
fn reseed(seed: &[u8]) -> io::Result<()> {
    let bytes = i32::try_from(seed.len()).map_err(io::Error::other)?;
    let mut pool = RandomPool {
        entropy_bits: bytes * 8,
        bytes,
        buffer: [0; SEED_MAX],
    };
    pool.buffer[..seed.len()].copy_from_slice(seed);
    let device = File::options().write(true).open("/dev/urandom")?;
    // SAFETY: the opcode is of an ioctl that reads a rand_pool_info, `bytes` of which are in the buffer.
    let add = unsafe { Setter::<RNDADDENTROPY, RandomPool>::new(pool) };
    // SAFETY: see above.
    unsafe { rustix::ioctl::ioctl(&device, add) }?;
    // SAFETY: the opcode is of an ioctl without an argument.
    let again = unsafe { NoArg::<RNDRESEEDCRNG>::new() };
    // SAFETY: see above.
    Ok(unsafe { rustix::ioctl::ioctl(&device, again) }?)
}

fn set_clock(clock_ns: u64) -> io::Result<()> {
    let time = std::time::Duration::from_nanos(clock_ns);
    let time = Timespec::try_from(time).map_err(io::Error::other)?;
    Ok(rustix::time::clock_settime(ClockId::Realtime, time)?)
}

fn clock() -> Option<u64> {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since_1970.as_nanos()).ok()
}

#[cfg(test)]
mod tests;
