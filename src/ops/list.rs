//! `vm list`: records, and what is true of them at this moment.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::de::DeserializeOwned;

use super::{Error, Host};
use crate::network::{self, NetworkRecord};
use crate::store::Durability;
use crate::store::lock::VmLock;
use crate::sys::flock::FileLock;
use crate::units::VmId;
use crate::vm::VmConfig;
use crate::vm::VmState;
use crate::vm::records::{self, VmRecord};

/// The reason recorded for a VM whose process died without a word.
const DIED: &str = "the VM process died";

/// How long the process of a killed command may take to end with it, or to say that its VM runs: some
/// milliseconds, or a busy host's seconds.
const UNDECIDED: Duration = Duration::from_secs(5);

/// Between two looks at such a process, of which nobody hears.
const MOMENT: Duration = Duration::from_millis(5);

/// A VM with its network, and the state that its record and its lock tell together. Whoever shows only a part of
/// the configuration and the network says so by `C` and `N`: of many VMs, to read the rest is most of the work.
#[derive(Clone, Debug)]
pub struct Observed<C = VmConfig, N = NetworkRecord> {
    /// The record; its state is the observed one.
    pub record: VmRecord<C>,
    /// The network, if it has one.
    pub network: Option<N>,
}

impl Observed {
    /// The addresses of its NICs.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        let nics = self.network.iter().flat_map(|network| &network.nics);
        nics.filter_map(|nic| nic.address.map(|address| address.ip))
    }
}

/// Every VM, the oldest first.
///
/// # Errors
/// The database failed.
pub fn list(host: &Host) -> Result<Vec<Observed>, Error> {
    list_as(host)
}

/// Every VM, the oldest first, with what `C` takes of its configuration and `N` of its network.
///
/// # Errors
/// As [`list`].
pub fn list_as<C: DeserializeOwned, N: DeserializeOwned>(
    host: &Host,
) -> Result<Vec<Observed<C, N>>, Error> {
    let (vms, networks) = host
        .database()?
        .read(|tx| Ok::<_, Error>((records::list_as(tx)?, network::records::list(tx)?)))?;
    let mut networks: HashMap<VmId, N> = networks.into_iter().collect();
    let pair = |record: VmRecord<C>| {
        let network = networks.remove(&record.id);
        Ok(Observed {
            record: observe(host, record)?,
            network,
        })
    };
    vms.into_iter().map(pair).collect()
}

/// One VM.
///
/// # Errors
/// There is none with this id any more, or the database failed.
pub fn get(host: &Host, id: VmId) -> Result<Observed, Error> {
    let (record, network) = host
        .database()?
        .read(|tx| Ok::<_, Error>((records::get(tx, id)?, network::records::get(tx, id)?)))?;
    let record = record.ok_or_else(|| records::RecordError::gone(id))?;
    Ok(Observed {
        record: observe(host, record)?,
        network,
    })
}

/// One VM, for a verb that may change it. If a killed command has left a VM process of which nobody knows
/// yet whether it lives on, waits until that is known.
///
/// # Errors
/// As [`get`].
pub(super) fn get_locked(host: &Host, lock: &VmLock) -> Result<Observed, Error> {
    let deadline = Instant::now() + UNDECIDED;
    while is_undecided(host, lock.id())? && Instant::now() < deadline {
        thread::sleep(MOMENT);
    }
    get(host, lock.id())
}

/// Whether a VM has a process that has not said yet that it runs. Unless its command is still there, it
/// soon says so or ends.
///
/// # Errors
/// The database failed, or the VM's lock cannot be looked at.
pub(super) fn is_undecided(host: &Host, id: VmId) -> Result<bool, Error> {
    if !is_alive(host, id)? {
        return Ok(false);
    }
    let record = host.database()?.read(|tx| records::get(tx, id))?;
    let says_so = |record: records::VmRecord| match record.state {
        VmState::Created | VmState::Stopped | VmState::Error => false,
        // Until then its own disk is not what it runs on.
        VmState::Running | VmState::Paused => !host.layout.vm(id).disk_before().exists(),
        // Whatever its process does, a VM is no more than that.
        VmState::Creating | VmState::Removing => true,
    };
    Ok(record.is_some_and(|record| !says_so(record)))
}

/// Whether the process of a VM lives.
///
/// # Errors
/// Its lock cannot be looked at.
pub(super) fn is_alive(host: &Host, id: VmId) -> Result<bool, Error> {
    let path = host.layout.vm(id).alive_lock();
    FileLock::is_held(&path).map_err(|source| Error::File {
        action: "look at the lock",
        path,
        source,
    })
}

/// Corrects a record by what its lock says, and writes down that a VM has died. Of a VM that does not say it
/// lives, the lock has nothing to tell, and a thousand of them are not looked at.
fn observe<C: DeserializeOwned>(
    host: &Host,
    mut record: VmRecord<C>,
) -> Result<VmRecord<C>, Error> {
    if !record.state.is_alive() {
        return Ok(record);
    }
    let seen = record.state.observed(is_alive(host, record.id)?);
    if seen == VmState::Stopped {
        let now = Timestamp::now();
        host.database()?.write(Durability::UntilReboot, |tx| {
            records::report_died(tx, &record, DIED, now)
        })?;
        // The process may have reported its own end between the two looks.
        if let Some(fresh) = host.database()?.read(|tx| records::get_as(tx, record.id))? {
            return Ok(fresh);
        }
    }
    record.state = seen;
    Ok(record)
}
