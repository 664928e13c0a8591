//! The pseudo-terminal behind the guest's console.
//!
//! Cloud Hypervisor makes it, keeps the master and says where the slave is. It makes a **new** one
//! at every reset of the guest, and the kernel gives numbers of closed terminals to whoever asks
//! next: so a number is believed only if it is still this VM's after its slave was opened, which
//! keeps the number from being given away.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use vmm::vm::VmState;

use crate::client::Client;
use crate::error::Error;

/// Resets in a row that one attempt to open the terminal survives. Each takes the guest seconds.
const RESETS: usize = 3;

/// Opens the slave end: raw, not blocking, and not this process's controlling terminal.
///
/// # Errors
/// The VM does not run, or its terminal cannot be opened.
pub(crate) fn open(client: &Client) -> Result<File, Error> {
    let mut path = path(client)?;
    for _ in 0..RESETS {
        let slave = open_slave(&path);
        let now = self::path(client)?;
        if now == path {
            return slave;
        }
        path = now;
    }
    Err(Error::RebootLoop)
}

fn path(client: &Client) -> Result<PathBuf, Error> {
    let info = client.info()?;
    match info.state {
        VmState::Running | VmState::Paused => {
            // Either is on a terminal, the other one off.
            let (virtio, serial) = (&info.config.console.common, &info.config.serial.common);
            let file = virtio.file.as_ref().or(serial.file.as_ref());
            file.cloned().ok_or(Error::NotRunning)
        }
        VmState::Created | VmState::Shutdown | VmState::BreakPoint => Err(Error::NotRunning),
    }
}

fn open_slave(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(path)
        .map_err(|source| Error::Terminal {
            path: path.to_owned(),
            source,
        })
}
