//! What a process must be before a VMM's threads start in it. All of it lasts for the process's
//! life and is done once, by the thread from which all others then descend.
//!
//! - Files that the VMM makes are the user's alone.
//! - The table of descriptors is large already: growing it later, with threads, waits for an RCU
//!   grace period each time, which is most of the time a restore takes.
//! - Children (the one that watches the terminal's size) leave no zombies.
//! - A system call that a seccomp filter forbids is named before it ends the process.
//! - SIGTERM and SIGINT are seen by us as well as by the VMM, which ends on them.
#![expect(unsafe_code, reason = "signal dispositions have no safe interface")]

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cocoon::sys::seccomp::name_forbidden_calls;
use rustix::fs::Mode;
use rustix::process::{Resource, getrlimit, umask};
use vmm::Vmm;
use vmm::vm::Vm;
use vmm_sys_util::signal::Error::SignalAlreadyBlocked;
use vmm_sys_util::signal::block_signal;

use crate::error::{Cause, Error};

/// Descriptors for which the table has room from the start. Each queue of a device takes a handful;
/// Cloud Hypervisor's own program reserves as many.
const DESCRIPTORS: u64 = 4096;

/// Set once a process has been used up.
static USED: AtomicBool = AtomicBool::new(false);

/// Readies this process for a VMM. The flag is set when a signal has asked the VMM to end.
///
/// # Errors
/// [`Error::SecondVm`] on the second call; otherwise the system refused something.
pub(crate) fn prepare() -> Result<Arc<AtomicBool>, Error> {
    if USED.swap(true, Ordering::SeqCst) {
        return Err(Error::SecondVm);
    }
    umask(Mode::RWXG | Mode::RWXO);
    if let Err(source) = reserve_descriptors() {
        // Only slower.
        log::warn!("cannot enlarge the table of descriptors: {source}");
    }
    ignore_children();
    name_forbidden_calls().map_err(|source| Error::Prepare {
        what: "listen to forbidden system calls",
        source,
    })?;
    let asked_to_end = Arc::new(AtomicBool::new(false));
    for signal in Vmm::HANDLED_SIGNALS {
        // Registered before the VMM's own handler, so the flag is set before the VMM acts.
        signal_hook::flag::register(signal, Arc::clone(&asked_to_end)).map_err(|source| {
            Error::Prepare {
                what: "listen to signals",
                source,
            }
        })?;
    }
    // The VMM takes them on a thread that unblocks them.
    for signal in Vm::HANDLED_SIGNALS.into_iter().chain(Vmm::HANDLED_SIGNALS) {
        match block_signal(signal) {
            Ok(()) | Err(SignalAlreadyBlocked(_)) => {}
            Err(error) => {
                let source = Cause::text(error.to_string());
                return Err(Error::BlockSignal { signal, source });
            }
        }
    }
    Ok(asked_to_end)
}

/// Makes the kernel allocate room for [`DESCRIPTORS`] descriptors, while one thread means no wait.
fn reserve_descriptors() -> rustix::io::Result<()> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS);
    let last = limit.min(DESCRIPTORS).saturating_sub(1);
    let last = i32::try_from(last).unwrap_or(i32::MAX);
    // The duplicate is closed at once; the table never shrinks.
    rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr().as_fd(), last).map(drop)
}

fn ignore_children() {
    // SAFETY: SIG_IGN is a valid disposition and no Rust code of this process waits for children.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_descriptors_gets_its_room_and_no_descriptor_stays_open() {
        reserve_descriptors().unwrap();
        let size = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = size
            .lines()
            .find_map(|line| line.strip_prefix("FDSize:"))
            .unwrap();
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS);
        let room: u64 = size.trim().parse().unwrap();
        assert!(room >= limit.min(DESCRIPTORS), "{room}");
        assert!(!std::path::Path::new("/proc/self/fd/4095").exists());
    }
}
