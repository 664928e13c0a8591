//! `vm stop`: ask the guest, wait, and climb the ladder only if it does not go by itself.
//!
//! ```text
//! power button ──stop_timeout──▶ engine's power-off ──5 s──▶ SIGTERM ──5 s──▶ SIGKILL
//! ```

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::Signal;

use super::{Error, Host, list, require_root};
use crate::network;
use crate::store::Durability;
use crate::store::lock::VmLock;
use crate::sys::failpoint;
use crate::sys::interrupt::Interrupt;
use crate::sys::pidfd::{PidFd, Wait};
use crate::units::VmId;
use crate::vm::VmState;
use crate::vm::records::{self, VmRecord};
use crate::vmm::Client;
use crate::vmm::protocol::Request;

/// How long each rung of the ladder below the guest's own power-off may take. An engine lets go of
/// its files within some 100 ms; a busy host may need seconds.
const RUNG: Duration = Duration::from_secs(5);

/// Between two looks at a VM process that does not listen yet.
const MOMENT: Duration = Duration::from_millis(10);

/// The reason recorded for a VM that had to be killed.
const KILLED: &str = "stopped by force";

/// How the guest is to be treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Ask it first and give it this long.
    Ask(Duration),
    /// Do not ask.
    Force,
}

/// What a stop did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The guest ran and is stopped now.
    Now,
    /// It did not run.
    Already,
}

/// Stops a VM.
///
/// # Errors
/// The VM still runs, or it cannot be told.
pub fn stop(
    host: &Host,
    id: VmId,
    manner: Manner,
    interrupt: &Interrupt,
) -> Result<Stopped, Error> {
    require_root()?;
    let lock = VmLock::wait(&host.layout, id)?;
    stop_locked(host, &lock, manner, interrupt)
}

/// Stops a VM that the caller may change.
///
/// # Errors
/// As [`stop`].
pub(super) fn stop_locked(
    host: &Host,
    lock: &VmLock,
    manner: Manner,
    interrupt: &Interrupt,
) -> Result<Stopped, Error> {
    let vm = list::get_locked(host, lock)?;
    let stopped = if list::is_alive(host, lock.id())? {
        end(host, &vm.record, manner, interrupt)?;
        Stopped::Now
    } else {
        Stopped::Already
    };
    if let Some(network) = &vm.network {
        // A veth that stays up below a dead TAP turns every broadcast into a kernel message.
        network::quiesce(network)?;
        failpoint::reach("stop: network quiet");
    }
    Ok(stopped)
}

fn end(host: &Host, vm: &VmRecord, manner: Manner, interrupt: &Interrupt) -> Result<(), Error> {
    let Some(mut client) = connect(host, vm.id)? else {
        return Ok(());
    };
    if vm.state == VmState::Paused && manner != Manner::Force {
        // A halted guest hears no button.
        if let Err(error) = client.call(Request::Resume) {
            tracing::warn!(vm = %vm.name, %error, "the paused guest could not be resumed");
        }
    }
    let guest_went = match manner {
        Manner::Force => false,
        Manner::Ask(timeout) => ask(&mut client, vm, timeout, interrupt)?,
    };
    if guest_went || climb(&mut client)? {
        failpoint::reach("stop: VM process ended");
        settle(host, vm)
    } else {
        Err(Error::Unkillable {
            name: vm.name.clone(),
            seconds: RUNG.as_secs(),
        })
    }
}

/// Connects to the VM process; `None` if it has ended since its lock was looked at. One whose command
/// was killed ends, or listens, in a moment.
fn connect(host: &Host, id: VmId) -> Result<Option<Client>, Error> {
    let socket = host.layout.vm(id).control_socket();
    let deadline = Instant::now() + RUNG;
    loop {
        match Client::connect(&socket) {
            Ok(client) => return Ok(Some(client)),
            Err(_) if !list::is_alive(host, id)? => return Ok(None),
            Err(error) if Instant::now() >= deadline => return Err(error.into()),
            Err(_) => thread::sleep(MOMENT),
        }
    }
}

/// Presses the power button and waits; says whether the VM process has ended.
fn ask(
    client: &mut Client,
    vm: &VmRecord,
    timeout: Duration,
    interrupt: &Interrupt,
) -> Result<bool, Error> {
    if let Err(error) = client.call(Request::PressPowerButton) {
        tracing::warn!(vm = %vm.name, %error, "the guest could not be asked to power off");
        return Ok(false);
    }
    match client
        .process()
        .wait(timeout, Some(interrupt.as_fd()))
        .map_err(Error::Wait)?
    {
        Wait::Ended => Ok(true),
        Wait::Interrupted => Err(Error::StopInterrupted(vm.name.clone())),
        Wait::TimedOut => {
            tracing::warn!(vm = %vm.name, seconds = timeout.as_secs(), "the guest did not power off in time; forcing it");
            Ok(false)
        }
    }
}

/// Ends the VM process, each rung harder than the one before; says whether it has ended.
fn climb(client: &mut Client) -> Result<bool, Error> {
    if let Err(error) = client.call(Request::PowerOff) {
        tracing::debug!(%error, "the engine did not power off");
    }
    let ended = |process: &PidFd| {
        process
            .wait(RUNG, None)
            .map(|wait| wait == Wait::Ended)
            .map_err(Error::Wait)
    };
    let process = client.process();
    for signal in [Signal::TERM, Signal::KILL] {
        if ended(process)? {
            return Ok(true);
        }
        process.signal(signal).map_err(Error::Wait)?;
    }
    ended(process)
}

/// Writes down that the VM has stopped, where its process was not left the time to.
fn settle(host: &Host, vm: &VmRecord) -> Result<(), Error> {
    let mut db = host.database()?;
    let now = db.read(|tx| records::get(tx, vm.id))?;
    if let Some(record) = now.filter(|record| record.state.is_alive()) {
        db.write(Durability::UntilReboot, |tx| {
            records::report_died(tx, &record, KILLED, Timestamp::now())
        })?;
    }
    failpoint::reach("stop: recorded as stopped");
    Ok(())
}
