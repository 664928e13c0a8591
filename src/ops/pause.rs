//! `vm pause` and `vm resume`: the guest stands still, its process lives.

use super::{Error, Host, list, require_root};
use crate::store::lock::VmLock;
use crate::units::VmId;
use crate::vmm::Client;
use crate::vmm::protocol::Request;

/// Halts the guest of a VM. One that is paused already stays so.
///
/// # Errors
/// The VM does not run, or its engine refuses; the guest then goes on.
pub fn pause(host: &Host, id: VmId) -> Result<(), Error> {
    ask(host, id, Request::Pause)
}

/// Lets the guest of a VM go on. One that runs already is left alone.
///
/// # Errors
/// The VM has no process, or its engine refuses.
pub fn resume(host: &Host, id: VmId) -> Result<(), Error> {
    ask(host, id, Request::Resume)
}

fn ask(host: &Host, id: VmId, request: Request) -> Result<(), Error> {
    require_root()?;
    let lock = VmLock::wait(&host.layout, id)?;
    let vm = list::get_locked(host, &lock)?.record;
    if !vm.state.is_alive() {
        return Err(Error::NotRunning(vm.name));
    }
    // The VM process records the new state, so that a killed command leaves a true record.
    Client::connect(&host.layout.vm(id).control_socket())?.call(request)?;
    Ok(())
}
