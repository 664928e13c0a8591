//! `vm logs`: what a VM's console printed, or what its process logged.

use super::{Error, Host};
use crate::console::log;
use crate::units::VmId;

/// Which log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// What the guest printed on its console.
    Console,
    /// What the VM process and its engine logged.
    Vmm,
}

/// More than both generations of a console log.
const MAX_LOG: usize = 64 << 20;

/// The bytes of a log, the oldest first. A VM that was never started has none.
///
/// # Errors
/// The log is there but cannot be read.
pub fn read(host: &Host, id: VmId, source: Source) -> Result<Vec<u8>, Error> {
    let layout = host.layout.vm(id);
    match source {
        Source::Console => Ok(log::tail(&layout.console_log(), MAX_LOG)?),
        Source::Vmm => {
            let path = layout.vmm_log();
            match std::fs::read(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
                result => result.map_err(|source| Error::File {
                    action: "read",
                    path,
                    source,
                }),
            }
        }
    }
}
