//! Starts the VMM's threads, and sees them end.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use seccompiler::SeccompAction;
use vmm::api::http::http_api_graceful_shutdown;
use vmm::{VmmThreadHandle, VmmVersionInfo};
use vmm_sys_util::eventfd::EventFd;

use crate::VERSION;
use crate::client::Client;
use crate::error::{Cause, Error};
use crate::life::{Note, Report};

/// A call that no filter foresees raises SIGSYS, and [`crate::process`] names it.
const SECCOMP: SeccompAction = SeccompAction::Trap;

/// A guest that powers off leaves the VMM running, so that this end can be told from a failure;
/// [`crate::life`] then ends the VMM.
const VMM_OUTLIVES_GUEST: bool = true;

/// Not used: the VM's files are its own, and seccomp is on.
const LANDLOCK: bool = false;

/// Starts the VMM with its API socket at `api_socket`; what happens to it is sent to `notes`.
/// There is no VM in it yet.
///
/// # Errors
/// KVM cannot be opened or a thread did not start. Threads that did start stay, idle.
pub(crate) fn start(api_socket: &Path, notes: &Sender<Note>) -> Result<Client, Error> {
    let socket = api_socket
        .to_str()
        .ok_or_else(|| Error::SocketPath(api_socket.to_owned()))?;
    let hypervisor = hypervisor::new().map_err(Error::Hypervisor)?;
    let wake = event_fd()?;
    let exit = event_fd()?;
    follow_events(&exit, notes.clone())?;
    let (requests, inbox) = channel();
    let handle = vmm::start_vmm_thread(
        VmmVersionInfo::new(VERSION, VERSION.trim_start_matches('v')),
        &Some(socket.to_owned()),
        None,
        clone(&wake)?,
        requests.clone(),
        inbox,
        exit,
        &SECCOMP,
        hypervisor,
        VMM_OUTLIVES_GUEST,
        LANDLOCK,
    )
    .map_err(|error| not_started("vmm", &error))?;
    watch_end(handle, api_socket.to_owned(), notes.clone())?;
    Ok(Client::new(requests, wake))
}

/// Turns the VMM's stream of events into notes. Its thread ends with the process.
fn follow_events(exit: &EventFd, notes: Sender<Note>) -> Result<(), Error> {
    let mut monitor = event_monitor::set_monitor(None).map_err(|source| Error::Prepare {
        what: "set the event monitor",
        source,
    })?;
    let stream = monitor.subscribe();
    spawn("ch-events", move || {
        for event in stream.iter() {
            if let Some(report) = Report::read(&event) {
                // No one listens once the VM is over.
                let _ = notes.send(Note::Report(report));
            }
        }
    })?;
    vmm::start_event_monitor_thread(monitor, &SECCOMP, LANDLOCK, clone(exit)?)
        .map(drop)
        .map_err(|error| not_started("event-monitor", &error))
}

/// Waits for the VMM's end, then for its HTTP server's, and removes the API socket.
fn watch_end(
    handle: VmmThreadHandle,
    api_socket: PathBuf,
    notes: Sender<Note>,
) -> Result<(), Error> {
    let VmmThreadHandle {
        thread_handle,
        http_api_handle,
    } = handle;
    spawn("ch-join", move || {
        let end = match thread_handle.join() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Cause::of(&error)),
            Err(_) => Err(Cause::text("the VMM thread panicked")),
        };
        // No one listens if the boot failed.
        let _ = notes.send(Note::Ended(end));
        if let Some(http) = http_api_handle
            && let Err(error) = http_api_graceful_shutdown(http)
        {
            log::warn!("the API server ended badly: {error}");
        }
        remove_socket(&api_socket);
        let _ = notes.send(Note::Closed);
    })
}

/// Removes the API socket and the lock that Cloud Hypervisor keeps beside it.
fn remove_socket(socket: &Path) {
    let mut lock = socket.as_os_str().to_owned();
    lock.push(".lock");
    for path in [socket, Path::new(&lock)] {
        if let Err(error) = std::fs::remove_file(path) {
            log::warn!("cannot remove {}: {error}", path.display());
        }
    }
}

/// Starts a thread of ours.
pub(crate) fn spawn(name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map(drop)
        .map_err(|error| not_started(name, &error))
}

fn not_started(thread: &'static str, error: &dyn std::error::Error) -> Error {
    Error::Start {
        thread,
        source: Cause::of(error),
    }
}

fn event_fd() -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_NONBLOCK).map_err(no_event_fd)
}

fn clone(event: &EventFd) -> Result<EventFd, Error> {
    event.try_clone().map_err(no_event_fd)
}

fn no_event_fd(source: std::io::Error) -> Error {
    Error::Prepare {
        what: "make an eventfd",
        source,
    }
}
