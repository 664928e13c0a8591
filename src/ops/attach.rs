//! `vm console`: a connection to the console of a running VM.

use std::os::unix::net::UnixStream;

use super::{Error, Host, list};
use crate::console;
use crate::units::VmId;

/// Connects to the console of a VM.
///
/// # Errors
/// The VM does not run, or its process does not take the connection.
pub fn attach(host: &Host, id: VmId) -> Result<UnixStream, Error> {
    let vm = list::get(host, id)?.record;
    if !vm.state.is_alive() {
        return Err(Error::NotRunning(vm.name));
    }
    console::connect(&host.layout.vm(id).console_socket()).map_err(|error| Error::Console {
        name: vm.name,
        source: Box::new(error),
    })
}
