//! The life of a VM process: `cocoon __vmm`, that of a command or one that a person runs by hand.
//!
//! ```text
//! alive.lock, spec.json ─▶ netns ─▶ boot or restore ─▶ console hub, control server ─▶ row: running ─▶ Report
//!                  ▲                                       │ events until the VM is over
//!                  │                row: stopped, reason ◀─┤─▶ veth down, sockets gone, exit frees alive.lock
//!                  └── exec of itself, for another boot ◀──┘ the guest reset itself, and boots from its disk
//! ```
//!
//! Invariants: it holds the alive lock, which it gets from its parent, until it exits; it reports to
//! its parent exactly once; it says in the store that the VM runs before it says so to its parent,
//! so that a killed parent leaves a true record. A parent that is killed before its VM can be asked to
//! end takes this process with it, so nothing comes up that nobody waits for.
//!
//! **By hand** (`cocoon vm debug` prints how) it is of no run, and no record tells of its VM. It takes the
//! alive lock itself, stays in its caller's session, and has the console on the caller's terminal: who
//! leaves that ends the VM.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use jiff::Timestamp;

use super::control::Control;
use super::installed_kernel::{self, KernelError};
use crate::console::hub::HubError;
use crate::console::log::{ConsoleLog, LogError};
use crate::console::protocol::Closing;
use crate::console::relay::{RelayError, Session};
use crate::console::{self, Hub, RelayEnd, SocketError};
use crate::network;
use crate::store::layout::{disk_before, replaced_disk};
use crate::store::{Database, DatabaseError, Durability};
use crate::sys::failpoint;
use crate::sys::flock::FileLock;
use crate::sys::{netns, parent};
use crate::units::{ByteSize, EngineName, RunId};
use crate::vm::spec::{self, Boot, OnReset, VmSpec};
use crate::vm::{cmdline, records};
use crate::vmm::engine::{EngineError, Event, StopReason};
use crate::vmm::protocol::Report;
use crate::vmm::server::{Peer, Server};
use crate::vmm::{Engine, Machine};

mod anew;

/// A spec with the longest command line and the most disks and NICs takes some 30 KiB.
const MAX_SPEC: u64 = 1 << 20;

/// What a console log keeps of a chatty guest: a systemd boot prints some 60 KiB.
const CONSOLE_LOG: ByteSize = ByteSize::from_mib(1);

/// Why a VM process ends before its guest runs.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the messages say it, and the fields are what they name"
)]
pub enum Error {
    #[error("cannot read the VM's specification {}", path.display())]
    Spec {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the VM's specification has version {0}, which this cocoon does not know")]
    SpecVersion(u32),
    #[error("cannot lock {}", path.display())]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the VM runs already")]
    RunsAlready,
    #[error("this build of cocoon does not link the {0} engine")]
    NoEngine(EngineName),
    #[error("the command that started it has ended")]
    Alone,
    #[error("cannot tell the kernel whether to end with the command that started it")]
    Parent(#[source] io::Error),
    #[error("cannot let go of the disk that the VM had before it was restored, {}", path.display())]
    OldDisk {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("cannot leave the caller's session")]
    Session(#[source] io::Error),
    #[error("cannot enter the VM's network namespace")]
    Netns(#[from] netns::NetnsError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Console(#[from] SocketError),
    #[error("the console on this terminal failed")]
    Relay(#[source] RelayError),
    #[error("cannot listen at {}", path.display())]
    Control {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// A VM that runs in this process.
struct Running {
    spec: VmSpec,
    /// When the guest resets itself, this process executes itself: see [`anew`].
    boots_anew: bool,
    /// None where a person runs it by hand.
    run: Option<RunId>,
    machine: Arc<dyn Machine>,
    hub: Hub,
    _server: Server,
    asked: Arc<AtomicBool>,
    alive: FileLock,
}

/// How the run of a VM is over.
enum End {
    /// So is the VM.
    Stopped(StopReason),
    /// Its guest reset itself, and is to be booted anew.
    Reset,
}

/// Runs the VM of a spec from beginning to end, and calls `report` once it runs or has failed to.
///
/// # Errors
/// The guest never ran; `report` has been told.
pub fn run(
    path: &Path,
    run: RunId,
    engines: &[&'static dyn Engine],
    report: impl FnOnce(Report),
) -> Result<(), Error> {
    match begin(path, run, engines) {
        Ok(running) => {
            report(Report::Ready);
            running.live(path);
            Ok(())
        }
        Err(error) => {
            report(Report::Failed(chain(&error)));
            Err(error)
        }
    }
}

/// Goes on with the run of a VM whose guest has reset itself: this process was [`run`] before it executed
/// itself, and nobody waits for it.
///
/// # Errors
/// The guest does not run any more; the record says so.
pub fn run_again(path: &Path, run: RunId, engines: &[&'static dyn Engine]) -> Result<(), Error> {
    let spec = read_spec(path)?;
    let alive = held(&spec, FileLock::from_stdin)?;
    let (id, root) = (spec.id, spec.paths.root_dir.clone());
    match bring_up(spec, Some(run), alive, engines) {
        Ok(running) => {
            running.live(path);
            Ok(())
        }
        Err(error) => {
            let why = chain(&error).join(": ");
            tracing::error!(error = %why, "the guest reset itself, and cannot be booted again");
            Database::open(&root)?.write(Durability::UntilReboot, |tx| {
                records::report_stopped(tx, id, run, &why, Timestamp::now())
            })?;
            Err(error)
        }
    }
}

fn begin(path: &Path, run: RunId, engines: &[&'static dyn Engine]) -> Result<Running, Error> {
    if !parent::die_with_it().map_err(Error::Parent)? {
        return Err(Error::Alone);
    }
    let spec = read_spec(path)?;
    let alive = held(&spec, FileLock::from_stdin)?;
    failpoint::reach("VM process: alive lock held");
    rustix::process::setsid().map_err(|error| Error::Session(error.into()))?;
    bring_up(spec, Some(run), alive, engines)
}

/// Runs the VM of a spec by hand from beginning to end, with its console in `session`.
///
/// # Errors
/// The guest never ran, or the session failed, which ended the VM.
pub fn run_by_hand(
    path: &Path,
    engines: &[&'static dyn Engine],
    session: &Session<'_>,
) -> Result<(), Error> {
    let spec = read_spec(path)?;
    let alive = held(&spec, FileLock::try_exclusive)?;
    let socket = spec.paths.console_socket.clone();
    let running = bring_up(spec, None, alive, engines)?;
    let machine = Arc::clone(&running.machine);
    thread::scope(|scope| {
        let shown = scope.spawn(move || {
            let end = show(&socket, session);
            // It is over, or else nobody is there any more to end it.
            if !matches!(end, Ok(RelayEnd::ConsoleClosed))
                && let Err(error) = machine.power_off()
            {
                tracing::error!(error = %chain(&error).join(": "), "the VM cannot be ended");
            }
            end
        });
        running.live(path);
        // A thread that panics takes the scope with it.
        shown.join().map_or(Ok(()), |end| end.map(drop))
    })
}

/// Relays until the VM is over or the user leaves. A user who could not follow gets what was printed last.
fn show(socket: &Path, session: &Session<'_>) -> Result<RelayEnd, Error> {
    loop {
        match console::relay(console::connect(socket)?, session) {
            Err(RelayError::LetGo(Closing::TooSlow)) => {}
            end => return end.map_err(Error::Relay),
        }
    }
}

/// What a process does that holds the alive lock of its VM.
fn bring_up(
    mut spec: VmSpec,
    run: Option<RunId>,
    alive: FileLock,
    engines: &[&'static dyn Engine],
) -> Result<Running, Error> {
    let engine = engines.iter().find(|engine| engine.name() == spec.engine);
    let engine = engine.ok_or(Error::NoEngine(spec.engine))?;
    if let Some(netns) = &spec.netns {
        netns::enter(netns)?;
    }
    remove_socket_of_a_killed_run(&spec);
    // By hand, it resets as an engine does it.
    let boots_anew = run.is_some() && anew::concerns(&spec);
    if boots_anew {
        spec.on_reset = OnReset::End;
    }
    // A VM that goes on where it was saved boots nothing.
    let parts = (&spec.boot, &spec.saved, spec.disks.first());
    if let (Boot::Installed { folder }, None, Some(disk)) = parts {
        spec.boot = installed_kernel::take_out(disk, folder)?;
        failpoint::reach("VM process: kernel taken out");
    }
    let log = ConsoleLog::open(&spec.paths.console_log, CONSOLE_LOG)?;
    let machine: Arc<dyn Machine> = match &spec.saved {
        None => engine.boot(&spec)?,
        Some(from) => engine.restore(&spec, from)?,
    }
    .into();
    failpoint::reach("VM process: engine at work");
    let hub = Hub::start(machine.console()?, &spec.paths.console_socket, log)?;
    let asked = Arc::new(AtomicBool::new(false));
    let server = serve(&spec, run, Arc::clone(&machine), Arc::clone(&asked))?;
    failpoint::reach("VM process: control socket open");
    parent::outlive_it().map_err(Error::Parent)?;
    if let Some(run) = run {
        let mut db = Database::open(&spec.paths.root_dir)?;
        db.write(Durability::UntilReboot, |tx| {
            records::report_running(tx, spec.id, run, Timestamp::now())
        })?;
    }
    failpoint::reach("VM process: recorded as running");
    let_go_of_old_disk(&spec)?;
    failpoint::reach("VM process: old disk let go");
    Ok(Running {
        spec,
        boots_anew,
        run,
        machine,
        hub,
        _server: server,
        asked,
        alive,
    })
}

/// The VM runs as it was saved: what it had before is not to be its disk again. See
/// [`leftover`](super::leftover).
fn let_go_of_old_disk(spec: &VmSpec) -> Result<(), Error> {
    let own = spec
        .disks
        .iter()
        .find(|disk| disk.serial == cmdline::COW_SERIAL);
    let Some(own) = own.filter(|_| spec.saved.is_some()) else {
        return Ok(());
    };
    let before = disk_before(&own.path);
    match std::fs::rename(&before, replaced_disk(&own.path)) {
        // A clone has had no other.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed.map_err(|source| Error::OldDisk {
            path: before,
            source,
        }),
    }
}

/// An engine may refuse to listen where a socket is; only a run that was killed leaves one.
fn remove_socket_of_a_killed_run(spec: &VmSpec) {
    let Some(vsock) = &spec.vsock else { return };
    match std::fs::remove_file(&vsock.socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "an old socket is in the way: {}", vsock.socket.display());
        }
        _ => {}
    }
}

pub(super) fn read_spec(path: &Path) -> Result<VmSpec, Error> {
    let failed = |source| Error::Spec {
        path: path.to_owned(),
        source,
    };
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_SPEC).read_to_end(&mut text))
        .map_err(failed)?;
    let spec: VmSpec = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
    if spec.version != spec::VERSION {
        return Err(Error::SpecVersion(spec.version));
    }
    Ok(spec)
}

/// The alive lock of a VM, had by `take`.
fn held(
    spec: &VmSpec,
    take: impl FnOnce(&Path) -> io::Result<Option<FileLock>>,
) -> Result<FileLock, Error> {
    let path = &spec.paths.alive_lock;
    let held = take(path).map_err(|source| Error::Lock {
        path: path.clone(),
        source,
    })?;
    held.ok_or(Error::RunsAlready)
}

fn serve(
    spec: &VmSpec,
    run: Option<RunId>,
    machine: Arc<dyn Machine>,
    asked: Arc<AtomicBool>,
) -> Result<Server, Error> {
    let (id, root) = (spec.id, spec.paths.root_dir.clone());
    let record = move |paused| {
        let Some(run) = run else { return Ok(()) };
        Database::open(&root)?.write(Durability::UntilReboot, |tx| {
            records::report_paused(tx, id, run, paused, Timestamp::now())
        })
    };
    let control = Control::new(machine, asked, Box::new(record));
    let handler = move |request, peer: &Peer<'_>| control.answer(request, &|| peer.is_gone());
    let socket = &spec.paths.control_socket;
    Server::start(socket, Arc::new(handler)).map_err(|source| Error::Control {
        path: socket.clone(),
        source,
    })
}

impl Running {
    /// Follows the VM, whose specification is in `path`, to its end, and puts away what belongs to its run.
    fn live(self, path: &Path) {
        let reason = match self.follow() {
            End::Stopped(reason) => reason,
            End::Reset => {
                tracing::info!("the guest has reset itself");
                self.boot_anew(path);
                // Or else this process were another by now.
                StopReason::EngineFailure
            }
        };
        tracing::info!(?reason, "the VM is over");
        if let Err(error) = self.put_away(reason) {
            tracing::error!(error = %chain(&error).join(": "), "the end of the VM could not be recorded");
        }
        self.hub.stop();
    }

    fn follow(&self) -> End {
        let events = self.machine.events();
        for event in events.iter().flatten() {
            match event {
                Event::Rebooted => self.reopen_console(),
                Event::Stopped(StopReason::GuestReset) => return End::Reset,
                Event::Stopped(StopReason::GuestPowerOff) => {
                    self.note_first_boot();
                    return End::Stopped(if self.asked.load(Ordering::Relaxed) {
                        StopReason::Stopped
                    } else {
                        StopReason::GuestPowerOff
                    });
                }
                Event::Stopped(reason) => return End::Stopped(reason),
            }
        }
        End::Stopped(StopReason::EngineFailure)
    }

    /// A guest that ends or resets itself in order has booted: cloud-init has done its work. Not of one that was
    /// booted elsewhere or before, as whom nobody here knows.
    fn note_first_boot(&self) {
        let booted_here = self.boots_anew && self.spec.saved.is_none();
        let Some(run) = self.run.filter(|_| booted_here) else {
            return;
        };
        let (id, now) = (self.spec.id, Timestamp::now());
        let noted = Database::open(&self.spec.paths.root_dir).and_then(|mut db| {
            db.write(Durability::Full, |tx| {
                records::report_first_boot(tx, id, run, now)
            })
        });
        if let Err(error) = noted {
            tracing::error!(error = %chain(&error).join(": "), "the guest's first boot could not be recorded");
        }
    }

    /// Whether cloud-init is to be told who the guest is when it boots next; as good as not, if that is not known.
    fn wants_cidata(&self) -> bool {
        let record = Database::open(&self.spec.paths.root_dir)
            .and_then(|mut db| db.read(|tx| records::get(tx, self.spec.id)));
        match record {
            Ok(record) => record.is_some_and(|vm| vm.first_booted_at.is_none()),
            Err(error) => {
                tracing::error!(error = %chain(&error).join(": "), "the guest's first boot is not known");
                false
            }
        }
    }

    /// Gives this process to another one, which boots what is on the VM's disk now. Returns only if that fails.
    fn boot_anew(&self, path: &Path) {
        let Some(run) = self.run else { return };
        self.note_first_boot();
        let cidata = self.wants_cidata();
        tracing::info!(cidata, "it boots anew");
        let error = anew::execute(path, run, &self.alive, cidata);
        tracing::error!(error = %chain(&error).join(": "), "the VM cannot be booted anew");
    }

    /// A guest that reset itself may have got a new terminal from its engine.
    fn reopen_console(&self) {
        let reopened = self.machine.console().map_err(Error::from);
        if let Err(error) = reopened.and_then(|terminal| Ok(self.hub.replace_terminal(terminal)?)) {
            tracing::error!(error = %chain(&error).join(": "), "the console is lost");
        }
    }

    fn put_away(&self, reason: StopReason) -> Result<(), Error> {
        let Some(run) = self.run else { return Ok(()) };
        let mut db = Database::open(&self.spec.paths.root_dir)?;
        let network = db.read(|tx| network::records::get(tx, self.spec.id))?;
        if let Some(Err(error)) = network.as_ref().map(network::quiesce) {
            tracing::warn!(error = %chain(&error).join(": "), "the network could not be quieted");
        }
        let (id, now) = (self.spec.id, Timestamp::now());
        Ok(db.write(Durability::UntilReboot, |tx| {
            records::report_stopped(tx, id, run, sentence(reason), now)
        })?)
    }
}

/// What people read of a [`StopReason`].
fn sentence(reason: StopReason) -> &'static str {
    match reason {
        StopReason::GuestPowerOff => "the guest powered off",
        StopReason::GuestReset => "the guest has reset itself",
        StopReason::GuestPanic => "the guest's kernel panicked",
        StopReason::Stopped => "stopped by cocoon",
        StopReason::DeviceFault => "a device could not go on: see cocoon vm logs --vmm",
        StopReason::EngineFailure => "the engine failed",
    }
}

/// An error and its sources, outermost first.
pub fn chain(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect()
}
