//! `vm pause` and `vm resume`: the guest stands still, its process lives.

use super::{Error, Host, identity, list, require_root};
use crate::store::lock::VmLock;
use crate::sys::interrupt::Interrupt;
use crate::units::VmId;
use crate::vm::{VmRecord, VmState};
use crate::vmm::Client;
use crate::vmm::protocol::Request;

/// Halts the guest of a VM. One that is paused already stays so.
///
/// # Errors
/// The VM does not run, or its engine refuses; the guest then goes on.
pub fn pause(host: &Host, id: VmId) -> Result<(), Error> {
    ask(host, id, Request::Pause).map(drop)
}

/// Lets the guest of a VM go on. One that runs already is left alone.
///
/// # Errors
/// The VM has no process, or its engine refuses.
pub fn resume(host: &Host, id: VmId, interrupt: &Interrupt) -> Result<(), Error> {
    let vm = ask(host, id, Request::Resume)?;
    if vm.state == VmState::Paused {
        identity::wake(host, &vm, interrupt);
    }
    Ok(())
}

/// Has the VM process do it; returns the record from before.
fn ask(host: &Host, id: VmId, request: Request) -> Result<VmRecord, Error> {
    require_root()?;
    let lock = VmLock::wait(&host.layout, id)?;
    let vm = list::get_locked(host, &lock)?.record;
    if !vm.state.is_alive() {
        return Err(Error::NotRunning(vm.name));
    }
    // The VM process records the new state, so that a killed command leaves a true record.
    Client::connect(&host.layout.vm(id).control_socket())?.call(request)?;
    Ok(vm)
}
