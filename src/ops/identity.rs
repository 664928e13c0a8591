//! Who a guest is: told to its agent, while its network is closed.
//!
//! ```text
//! a clone      seed, clock, name, machine-id, MACs, addresses, routes, DNS, keys of sshd
//! a restored   seed, clock: all else is what it was
//! ```

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use cocoon_agent::protocol::{Identity, MacAddress, Network, NicIdentity, Route, WhichNic};
use jiff::{SignedDuration, Timestamp};

use super::vm_process::chain;
use super::{Error, Host, exec, specify};
use crate::agent::{Agent, AgentError};
use crate::network::{NetworkRecord, NicRecord};
use crate::sys::interrupt::Interrupt;
use crate::units::Mac;
use crate::vm::{VmRecord, VmState};

/// How long the guest of a VM may take to answer that is about to be saved. It runs; only one whose driver
/// is not there says nothing.
const AT_SAVE: Duration = Duration::from_secs(3);

/// How long a guest may take to start its agent: with systemd some seconds, under emulation a minute. Where nobody
/// listens later, nobody will.
const COMES_UP: SignedDuration = SignedDuration::from_mins(2);

/// How long to wait for the agent of a guest that was paused when it was saved, so that nobody could ask.
const UNKNOWN: Duration = Duration::from_secs(20);

/// Bytes for the guest's random generator: twice what its pool takes.
const SEED_BYTES: usize = 64;

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Introduced {
    /// The guest knows who it is; what it could not do besides, a sentence each.
    Done(Vec<String>),
    /// Nobody in the guest could be told.
    NoAgent,
}

/// Whether an agent answers in a VM that is about to be saved, as far as one can know.
pub(super) fn answers(host: &Host, vm: &VmRecord, interrupt: &Interrupt) -> Option<bool> {
    if vm.state != VmState::Running {
        return None;
    }
    let agent = Agent::new(&host.layout.vm(vm.id).vsock_socket(), interrupt.as_fd());
    match agent.hello_again(comes_up(vm.started_at, Timestamp::now()), AT_SAVE) {
        Ok(_) => Some(true),
        Err(AgentError::NotThere { .. }) => Some(false),
        Err(_) => None,
    }
}

/// Whether a guest that was started at a time may still be about to start its agent. A host's clock that went back
/// says nothing.
fn comes_up(started_at: Option<Timestamp>, now: Timestamp) -> bool {
    started_at.is_none_or(|started_at| now.duration_since(started_at) < COMES_UP)
}

/// How long to wait for the agent of a guest in which one answered when it was saved, or not.
fn grace(answered: Option<bool>, patience: Duration) -> Duration {
    match answered {
        Some(true) => patience,
        Some(false) => Duration::ZERO,
        None => UNKNOWN.min(patience),
    }
}

/// Tells the guest of a clone who it is. `saved` are the MACs by which it knows its NICs; `answered` says
/// whether it had an agent when it was saved.
///
/// # Errors
/// The agent is there, and could not do it.
pub(super) fn introduce(
    host: &Host,
    vm: &specify::Of<'_>,
    network: Option<&NetworkRecord>,
    saved: &[Mac],
    answered: Option<bool>,
    interrupt: &Interrupt,
) -> Result<Introduced, Error> {
    let nics = network
        .map(|network| network.nics.as_slice())
        .unwrap_or_default();
    let identity = Identity {
        hostname: Some(vm.name.to_string()),
        machine_id: Some(hex(&random::<16>()?)),
        nics: saved
            .iter()
            .zip(nics)
            .map(|(saved, nic)| renamed(*saved, nic))
            .collect(),
        dns: vm.config.dns.iter().copied().map(IpAddr::V4).collect(),
        ssh_host_keys: true,
        ..Identity::default()
    };
    tell(host, vm, (identity, answered), interrupt)
}

/// Tells the guest of a restored VM what time it is, and gives it other random numbers than it had.
///
/// # Errors
/// As [`introduce`].
pub(super) fn refresh(
    host: &Host,
    vm: &specify::Of<'_>,
    answered: Option<bool>,
    interrupt: &Interrupt,
) -> Result<Introduced, Error> {
    tell(host, vm, (Identity::default(), answered), interrupt)
}

/// Tells a guest that goes on what time it is, if its clock stood still with it. One without an agent cannot be
/// told.
pub(super) fn wake(host: &Host, vm: &VmRecord, interrupt: &Interrupt) {
    let engine = host.engine(Some(vm.config.engine));
    if engine.is_ok_and(crate::vmm::Engine::clock_outlives_pause) {
        return;
    }
    let agent = Agent::new(&host.layout.vm(vm.id).vsock_socket(), interrupt.as_fd());
    let told = agent
        .hello_again(false, AT_SAVE)
        .and_then(|_| agent.identity(Identity::default(), AT_SAVE));
    match told {
        Ok(warnings) => {
            for warning in warnings {
                tracing::warn!(vm = %vm.name, "{warning}");
            }
        }
        Err(AgentError::NotThere { .. } | AgentError::Interrupted) => {}
        Err(error) => {
            tracing::warn!(vm = %vm.name, error = %chain(&error).join(": "), "the guest's clock is late");
        }
    }
}

fn tell(
    host: &Host,
    vm: &specify::Of<'_>,
    (identity, answered): (Identity, Option<bool>),
    interrupt: &Interrupt,
) -> Result<Introduced, Error> {
    let agent = Agent::new(&host.layout.vm(vm.id).vsock_socket(), interrupt.as_fd());
    let failed = |error| exec::failed(vm.name.clone(), error);
    let patience = host.config.identity_timeout;
    if !is_there(&agent, answered, patience).map_err(failed)? {
        return Ok(Introduced::NoAgent);
    }
    let identity = Identity {
        // What no guest may share with another, or with its own past.
        seed: random::<SEED_BYTES>()?.to_vec(),
        ..identity
    };
    let warnings = agent.identity(identity, patience).map_err(failed)?;
    Ok(Introduced::Done(warnings))
}

/// Whether a guest that ran when it was saved has an agent. One without says so at once.
fn is_there(
    agent: &Agent<'_>,
    answered: Option<bool>,
    patience: Duration,
) -> Result<bool, AgentError> {
    match agent.hello_again(answered == Some(true), grace(answered, patience)) {
        Ok(_) => Ok(true),
        Err(AgentError::NotThere { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The NIC that the guest knows by its `saved` address, as the clone's.
fn renamed(saved: Mac, nic: &NicRecord) -> NicIdentity {
    let gateway = nic.address.and_then(|address| address.gateway);
    NicIdentity {
        nic: WhichNic::Mac(MacAddress(saved.bytes())),
        mac: Some(MacAddress(nic.mac.bytes())),
        addresses: nic
            .address
            .map(|address| Network {
                ip: address.ip.into(),
                prefix: address.prefix,
            })
            .into_iter()
            .collect(),
        // As the kernel has it from its command line: the first NIC leads everywhere.
        routes: gateway
            .filter(|_| nic.index == 0)
            .map(|gateway| Route {
                to: None,
                gateway: Some(gateway.into()),
                metric: None,
            })
            .into_iter()
            .collect(),
    }
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], Error> {
    crate::sys::random::bytes().map_err(Error::Random)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Address;

    #[test]
    fn a_nic_is_found_by_what_it_was_and_told_what_it_is() {
        let nic = |index| NicRecord {
            index,
            ifname: format!("eth{index}"),
            tap: String::new(),
            mac: Mac::new([2, 0, 0, 0, 0, 9]),
            mtu: 1500,
            queue_pairs: 1,
            address: Some(Address {
                ip: [10, 22, 0, 5].into(),
                prefix: 16,
                gateway: Some([10, 22, 0, 1].into()),
            }),
            cni_result: String::new(),
        };
        let saved = Mac::new([2, 0, 0, 0, 0, 7]);
        let first = renamed(saved, &nic(0));
        assert_eq!(first.nic, WhichNic::Mac(MacAddress([2, 0, 0, 0, 0, 7])));
        assert_eq!(first.mac, Some(MacAddress([2, 0, 0, 0, 0, 9])));
        assert_eq!(first.addresses[0].to_string(), "10.22.0.5/16");
        assert_eq!(first.routes[0].gateway, Some([10, 22, 0, 1].into()));
        assert_eq!(renamed(saved, &nic(1)).routes, [], "one way out is enough");
    }

    #[test]
    fn a_guest_that_has_run_for_minutes_starts_no_agent_any_more() {
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24);
        let since = |seconds| comes_up(Some(now - SignedDuration::from_secs(seconds)), now);
        assert!(since(0) && since(119) && since(-5), "it may be booting");
        assert!(!since(120) && !since(86_400), "it has booted");
        assert!(comes_up(None, now), "nobody knows");
    }

    #[test]
    fn a_seed_is_one_that_an_agent_takes_and_an_id_is_in_hex() {
        assert_ne!(
            random::<SEED_BYTES>().unwrap(),
            random::<SEED_BYTES>().unwrap()
        );
        const { assert!(SEED_BYTES <= cocoon_agent::protocol::SEED_MAX) };
        assert_eq!(hex(&[0, 0xab]), "00ab");
    }
}
