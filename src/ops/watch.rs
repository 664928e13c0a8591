//! Waits for changes of VMs, without looking again and again.
//!
//! ```text
//! a command or VM process commits ──▶ closes database.lock ──inotify──▶┐
//! a VM process dies, by whatever  ──▶ alive.lock is free   ──pidfd────▶┴─ look
//! ```
//! Invariant: what happens after the beginning of a look ends the next wait; so no change is missed, though
//! several that come close together may be seen as one.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::list::{self, Observed};
use super::{Error, Host};
use crate::store::Database;
use crate::sys::inotify::WrittenFile;
use crate::sys::interrupt::Interrupt;
use crate::sys::pidfd::PidFd;
use crate::units::VmId;
use crate::vmm::Client;

/// Between two looks at a VM whose process has closed its socket and not let go of its lock yet, of which
/// nobody hears: it is dying, which takes some milliseconds.
const MOMENT: Duration = Duration::from_millis(20);

/// What the VMs of a host are, whenever that changes.
#[derive(Debug)]
pub struct Watch<'a> {
    host: &'a Host,
    commits: WrittenFile,
    /// Those of VMs that live.
    processes: BTreeMap<VmId, PidFd>,
    /// Whether a VM lives that has no process to wait for.
    is_unsettled: bool,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Something may have changed.
    Changed,
    /// The user, or whoever reads the output, does not want to wait any longer.
    Over,
}

impl<'a> Watch<'a> {
    /// Watches from now on.
    ///
    /// # Errors
    /// The database cannot be opened or watched.
    pub fn start(host: &'a Host) -> Result<Self, Error> {
        // It makes the file where there is none.
        drop(host.database()?);
        let path = Database::queue(host.layout.root());
        let commits = WrittenFile::watch(&path).map_err(|source| Error::Watch { path, source })?;
        Ok(Self {
            host,
            commits,
            processes: BTreeMap::new(),
            is_unsettled: false,
        })
    }

    /// Every VM, as it is now.
    ///
    /// # Errors
    /// As [`list::list`].
    pub fn look(&mut self) -> Result<Vec<Observed>, Error> {
        self.commits.forget().map_err(|source| Error::Watch {
            path: Database::queue(self.host.layout.root()),
            source,
        })?;
        let vms = list::list(self.host)?;
        let living = vms.iter().filter(|vm| vm.record.state.is_alive());
        let mut processes = BTreeMap::new();
        let mut count = 0;
        for vm in living {
            count += 1;
            let id = vm.record.id;
            let known = self.processes.remove(&id);
            if let Some(process) = known.or_else(|| self.process(id)) {
                processes.insert(id, process);
            }
        }
        self.is_unsettled = processes.len() < count;
        self.processes = processes;
        Ok(vms)
    }

    /// The process of a VM; none if it is dying.
    fn process(&self, id: VmId) -> Option<PidFd> {
        let socket = self.host.layout.vm(id).control_socket();
        Client::connect(&socket).ok().map(Client::into_process)
    }

    /// Waits for a change, for `interrupt`, or for the end of whoever reads `output`.
    ///
    /// # Errors
    /// The process cannot wait.
    pub fn wait(&mut self, interrupt: &Interrupt, output: BorrowedFd<'_>) -> Result<Woken, Error> {
        let moment = Timespec::try_from(MOMENT).unwrap_or_default();
        let timeout = self.is_unsettled.then_some(&moment);
        let interrupt = interrupt.as_fd();
        let mut fds = vec![
            PollFd::new(&interrupt, PollFlags::IN),
            PollFd::new(&output, PollFlags::empty()),
            PollFd::new(&self.commits, PollFlags::IN),
        ];
        let processes = self.processes.values();
        fds.extend(processes.map(|process| PollFd::new(process, PollFlags::IN)));
        loop {
            match poll(&mut fds, timeout) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(Error::Wait(error.into())),
                Ok(_) => break,
            }
        }
        if fds[..2].iter().any(|fd| !fd.revents().is_empty()) {
            return Ok(Woken::Over);
        }
        let ended: Vec<bool> = fds[3..].iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ended = ended.into_iter();
        self.processes.retain(|_, _| !ended.next().unwrap_or(false));
        Ok(Woken::Changed)
    }
}
