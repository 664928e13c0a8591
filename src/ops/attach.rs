//! `vm console`: a connection to the console of a running VM.

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use super::{Error, Host, list};
use crate::console;
use crate::units::VmId;

/// How long a VM process may take to begin anew: it looks for a kernel on a disk, and gives the guest its memory.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at a VM process that does not listen yet.
const MOMENT: Duration = Duration::from_millis(10);

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

/// Attaches once more to the console of a VM whose guest has reset itself: its process may begin anew for that, and
/// listens again in a moment. None if the VM is over.
///
/// # Errors
/// It cannot be told whether the VM lives.
pub fn attach_again(host: &Host, id: VmId) -> Result<Option<UnixStream>, Error> {
    let deadline = Instant::now() + PATIENCE;
    while list::is_alive(host, id)? && Instant::now() < deadline {
        if let Ok(console) = attach(host, id) {
            return Ok(Some(console));
        }
        thread::sleep(MOMENT);
    }
    Ok(None)
}
