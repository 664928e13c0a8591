//! `vm start`: from a created or stopped VM to a guest whose processors run.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Transaction;

use super::specify::Of;
use super::{Error, Host, error, leftover, list, require_root, specify};
use crate::network::{self, NetworkRecord};
use crate::store::atomic;
use crate::store::lock::VmLock;
use crate::store::{DatabaseError, Durability};
use crate::sys::flock::FileLock;
use crate::sys::interrupt::Interrupt;
use crate::sys::{failpoint, hugepages, kvm};
use crate::units::{ByteSize, RunId, VmId};
use crate::vm::config::{Hugepages, VmConfig};
use crate::vm::spec::VmSpec;
use crate::vm::{VmState, records};
use crate::vmm::launch::{self, LaunchError};

/// Who only looks whether a VM lives holds its alive lock for some microseconds, or a busy host's while.
const LOOK: Duration = Duration::from_secs(1);

/// What a start did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// The guest runs now.
    Now,
    /// It ran already.
    Already,
}

/// Starts a VM.
///
/// # Errors
/// The guest does not run. If it was the VM process that failed, the VM is in state `error`.
pub fn start(host: &Host, id: VmId, interrupt: &Interrupt) -> Result<Started, Error> {
    require_root()?;
    let lock = VmLock::wait(&host.layout, id)?;
    start_locked(host, &lock, interrupt)
}

/// Starts a VM that the caller may change.
///
/// # Errors
/// As [`start`].
pub fn start_locked(host: &Host, lock: &VmLock, interrupt: &Interrupt) -> Result<Started, Error> {
    let vm = list::get_locked(host, lock)?;
    match vm.record.state {
        VmState::Running => return Ok(Started::Already),
        state if !state.may_start() => {
            return Err(Error::WrongState {
                name: vm.record.name,
                state,
            });
        }
        _ => {}
    }
    leftover::put_away(host, lock)?;
    kvm::check(host.config.ignore_kvm_check)?;
    let engine = host.engine(Some(vm.record.config.engine))?;
    let hugepages = decide_hugepages(
        &vm.record.config,
        ByteSize::from_bytes(hugepages::free_bytes()),
    )?;
    let network = vm
        .network
        .map(|network| make_ready(host, network))
        .transpose()?;
    let of = Of {
        id: vm.record.id,
        name: &vm.record.name,
        config: &vm.record.config,
        layout: host.layout.vm(lock.id()),
        cidata: vm.record.first_booted_at.is_none(),
    };
    failpoint::reach("start: network ready");
    let spec = specify::specify(host, &of, network.as_ref(), hugepages);
    engine.check(&spec)?;
    launch(host, lock, &spec, interrupt).inspect_err(|_| {
        if let Some(Err(error)) = network.as_ref().map(network::quiesce) {
            tracing::warn!(vm = %lock.id(), error = %error::chain(&error.into()), "its network could not be quieted");
        }
    })?;
    Ok(Started::Now)
}

/// Refuses, before anything is made, a host on which a start could not succeed.
///
/// # Errors
/// KVM is missing or cannot run ordinary kernels.
pub fn check_host(host: &Host) -> Result<(), Error> {
    Ok(kvm::check(host.config.ignore_kvm_check)?)
}

/// Whether a VM's memory comes from the host's pool, of which so much is free.
pub(super) fn decide_hugepages(config: &VmConfig, free: ByteSize) -> Result<bool, Error> {
    match config.hugepages {
        Hugepages::Off => Ok(false),
        Hugepages::Auto => Ok(free >= config.memory),
        Hugepages::On if free >= config.memory => Ok(true),
        Hugepages::On => Err(Error::HugepagesShort {
            needed: config.memory,
            free,
        }),
    }
}

/// Wakes the network of a stopped VM, or makes it anew where a reboot of the host took it.
pub(super) fn make_ready(host: &Host, record: NetworkRecord) -> Result<NetworkRecord, Error> {
    if network::is_intact(&record)? {
        network::wake(&record)?;
        return Ok(record);
    }
    tracing::info!(vm = %record.vm, "its network is gone; making it anew with the same addresses");
    let rebuilt = network::rebuild(&host.plugins(), &record)?;
    host.database()?
        .write(Durability::Full, |tx| network::records::put(tx, &rebuilt))?;
    Ok(rebuilt)
}

/// Takes the alive lock of a VM that has no process.
fn hold_alive(path: &Path) -> Result<Option<FileLock>, Error> {
    FileLock::exclusive_within(path, LOOK).map_err(|source| Error::File {
        action: "take the lock",
        path: path.to_owned(),
        source,
    })
}

/// Starts the VM process of a spec. If it fails, the VM is in state `error`, or still being created.
pub(super) fn launch(
    host: &Host,
    lock: &VmLock,
    spec: &VmSpec,
    interrupt: &Interrupt,
) -> Result<(), Error> {
    let layout = host.layout.vm(lock.id());
    let run = RunId::random().map_err(Error::Random)?;
    let path = layout.spec();
    let text = serde_json::to_vec_pretty(spec).unwrap_or_default();
    layout.prepare()?;
    let alive =
        hold_alive(&layout.alive_lock())?.ok_or_else(|| Error::StillRunning(spec.name.clone()))?;
    failpoint::reach("launch: alive lock held");
    atomic::write(&path, &text, Durability::UntilReboot).map_err(|source| Error::File {
        action: "write",
        path: path.clone(),
        source,
    })?;
    failpoint::reach("launch: specification written");
    host.database()?.write(Durability::UntilReboot, |tx| {
        records::begin_run(tx, lock, run)
    })?;
    failpoint::reach("launch: run begun");
    match launch::launch(&path, run, alive, &layout.vmm_log(), interrupt) {
        Ok(()) => Ok(()),
        Err(LaunchError::Interrupted) => Err(Error::Interrupted),
        Err(error) => {
            let error = Error::from(error);
            let reason = error::chain(&error);
            let failed = |tx: &Transaction<'_>| -> Result<(), DatabaseError> {
                records::start_failed(tx, lock, &reason, Timestamp::now())
            };
            host.database()?.write(Durability::UntilReboot, failed)?;
            Err(error)
        }
    }
}
