//! `vm rm`: everything of a VM goes, its row last, so that a killed removal can be finished.

use jiff::Timestamp;

use super::stop::{self, Manner};
use super::{Error, Host, list, require_root};
use crate::network;
use crate::store::Durability;
use crate::store::lock::VmLock;
use crate::sys::failpoint;
use crate::sys::interrupt::Interrupt;
use crate::units::VmId;
use crate::vm::VmState;
use crate::vm::records;

/// Removes a VM. A running one is stopped first, without asking its guest, if `force` is set.
///
/// # Errors
/// The VM runs and `force` is not set, or something of it cannot be removed; then it stays in state
/// `removing`, and another `rm` or `gc` goes on.
pub fn remove(host: &Host, id: VmId, force: bool, interrupt: &Interrupt) -> Result<(), Error> {
    require_root()?;
    let lock = VmLock::wait(&host.layout, id)?;
    let vm = list::get_locked(host, &lock)?;
    if list::is_alive(host, id)? {
        if !force {
            return Err(Error::StillRunning(vm.record.name));
        }
        stop::stop_locked(host, &lock, Manner::Force, interrupt)?;
    }
    finish(host, lock)
}

/// Removes what there is of a VM that does not run.
///
/// # Errors
/// Something cannot be removed; the row stays.
pub(super) fn finish(host: &Host, lock: VmLock) -> Result<(), Error> {
    let doomed = |tx: &rusqlite::Transaction<'_>| {
        records::set_state(tx, &lock, VmState::Removing, Timestamp::now())
    };
    host.database()?.write(Durability::Full, doomed)?;
    failpoint::reach("rm: recorded as being removed");
    take_down_network(host, lock.id())?;
    host.layout.vm(lock.id()).remove()?;
    failpoint::reach("rm: folders gone");
    forget(host, lock)
}

/// Takes down the network of a VM, if it has or had one.
///
/// # Errors
/// Something of it is left; what is known of it stays recorded.
pub(super) fn take_down_network(host: &Host, id: VmId) -> Result<(), Error> {
    let record = host.database()?.read(|tx| network::records::get(tx, id))?;
    match record {
        Some(record) => Ok(network::teardown(&host.plugins(), &record)?),
        None => Ok(()),
    }
}

/// Deletes the row, and with it the name and the pins, and then the lock's file.
///
/// # Errors
/// The database failed.
pub(super) fn forget(host: &Host, lock: VmLock) -> Result<(), Error> {
    host.database()?
        .write(Durability::Full, |tx| records::delete(tx, &lock))?;
    failpoint::reach("rm: row gone");
    lock.retire()?;
    failpoint::reach("rm: lock gone");
    Ok(())
}
