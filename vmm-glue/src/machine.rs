//! One running VM.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};

use cocoon::vm::spec::{Nic, VmSpec};
use cocoon::vmm::Machine;
use cocoon::vmm::engine::{EngineError, Event, RestoredMemory};
use vmm::api::{VmBoot, VmCreate};

use crate::client::{Client, PATIENT};
use crate::error::Error;
use crate::life::{self, Life};
use crate::saved::{Growth, Staged};
use crate::{convert, process, terminal, threads};

/// A VM of this process.
#[derive(Debug)]
pub(crate) struct CloudMachine {
    client: Arc<Client>,
    /// Set before cocoon ends the VM, so that its end is known to be wanted.
    asked_to_end: Arc<AtomicBool>,
    events: Mutex<Option<Receiver<Event>>>,
    /// An open slave of the current terminal: without one, Cloud Hypervisor takes the terminal for
    /// unplugged and looks for its return only twice a second.
    slave: Mutex<Option<File>>,
    restored_memory: Option<RestoredMemory>,
}

/// Boots `spec`'s VM in this process.
///
/// # Errors
/// As [`cocoon::vmm::Engine::boot`].
pub(crate) fn boot(spec: &VmSpec) -> Result<CloudMachine, EngineError> {
    start(spec, |client| create_and_boot(client, spec))
}

/// Restores the VM that was saved in `from`, as `spec`'s, in this process.
///
/// # Errors
/// As [`cocoon::vmm::Engine::restore`].
pub(crate) fn restore(spec: &VmSpec, from: &Path) -> Result<CloudMachine, EngineError> {
    let staged = Staged::new(spec, from)
        .map_err(|error| error.during("fit the saved VM to its new place"))?;
    let mut memory = None;
    let machine = start(spec, |client| {
        let restored = client.restore(staged.folder());
        memory = Some(restored.map_err(|error| error.during("restore the VM"))?);
        grow(client, staged.growth()).map_err(|error| error.during("make the restored VM larger"))
    })?;
    Ok(CloudMachine {
        restored_memory: memory,
        ..machine
    })
}

/// Gives a VM that runs what it has more of than was saved.
fn grow(client: &Client, growth: &Growth) -> Result<(), Error> {
    if growth.cpus.is_some() || growth.memory.is_some() {
        client.plug(growth.cpus, growth.memory)?;
    }
    for disk in &growth.disks {
        client.grow_disk(disk.device.clone(), disk.bytes)?;
    }
    Ok(())
}

/// Starts a VMM, lets `bring_up` make its VM, and watches over that.
fn start(
    spec: &VmSpec,
    bring_up: impl FnOnce(&Client) -> Result<(), EngineError>,
) -> Result<CloudMachine, EngineError> {
    for nic in &spec.nics {
        tap_exists(nic).map_err(|error| error.during("find the VM's TAP devices"))?;
    }
    let asked_to_end =
        process::prepare().map_err(|error| error.during("ready the process for its VMM"))?;
    let (tell, notes) = channel();
    let client = threads::start(&spec.paths.api_socket, &tell)
        .map_err(|error| error.during("start the VMM's threads"))?;
    if let Err(error) = bring_up(&client) {
        if let Err(stuck) = life::abandon(&client, &notes) {
            log::error!("the VMM of a VM that did not start is still there: {stuck}");
        }
        return Err(error);
    }
    let client = Arc::new(client);
    let (events, happened) = channel();
    let life = Life {
        notes,
        events,
        client: Arc::clone(&client),
        asked_to_end: Arc::clone(&asked_to_end),
        on_reset: spec.on_reset,
    };
    threads::spawn("ch-life", move || life.follow())
        .map_err(|error| error.during("watch over the VM"))?;
    Ok(CloudMachine {
        client,
        asked_to_end,
        events: Mutex::new(Some(happened)),
        slave: Mutex::new(None),
        restored_memory: None,
    })
}

fn create_and_boot(client: &Client, spec: &VmSpec) -> Result<(), EngineError> {
    let config = Box::new(convert::vm_config(spec));
    client
        .ask(&VmCreate, config, PATIENT)
        .map_err(|error| error.during("create the VM"))?;
    client
        .ask(&VmBoot, (), PATIENT)
        .map_err(|error| error.during("boot the VM"))?;
    Ok(())
}

/// Refuses a TAP that is not there: Cloud Hypervisor would make one that leads nowhere.
fn tap_exists(nic: &Nic) -> Result<(), Error> {
    let no_tap = |source: rustix::io::Errno| Error::NoTap {
        tap: nic.tap.clone(),
        source: source.into(),
    };
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::DGRAM,
        None,
    )
    .map_err(no_tap)?;
    rustix::net::netdevice::name_to_index(&socket, &nic.tap)
        .map(drop)
        .map_err(no_tap)
}

impl Machine for CloudMachine {
    fn console(&self) -> Result<OwnedFd, EngineError> {
        let open = || -> Result<OwnedFd, Error> {
            let slave = terminal::open(&self.client)?;
            let ours = slave.try_clone().map_err(|source| Error::Prepare {
                what: "duplicate the terminal",
                source,
            })?;
            let mut kept = self.slave.lock().unwrap_or_else(PoisonError::into_inner);
            *kept = Some(ours);
            Ok(slave.into())
        };
        open().map_err(|error| error.during("open the VM's terminal"))
    }

    fn events(&self) -> Option<Receiver<Event>> {
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn press_power_button(&self) -> Result<(), EngineError> {
        self.client
            .press_power_button()
            .map_err(|error| error.during("press the VM's power button"))
    }

    fn power_off(&self) -> Result<(), EngineError> {
        self.asked_to_end.store(true, Ordering::SeqCst);
        self.client
            .shut_down()
            .map_err(|error| error.during("power the VM off"))
    }

    fn pause(&self) -> Result<(), EngineError> {
        let paused = self.client.pause();
        paused.map_err(|error| error.during("pause the VM"))
    }

    fn resume(&self) -> Result<(), EngineError> {
        let resumed = self.client.resume();
        resumed.map_err(|error| error.during("resume the VM"))
    }

    fn save(&self, into: &Path) -> Result<(), EngineError> {
        let saved = self.client.save(into);
        saved.map_err(|error| error.during("save the VM"))
    }

    fn restored_memory(&self) -> Option<RestoredMemory> {
        self.restored_memory
    }

    fn info(&self) -> Result<serde_json::Value, EngineError> {
        let describe = || -> Result<serde_json::Value, Error> {
            let info = self.client.info()?;
            let mut value = serde_json::to_value(info).map_err(Error::Json)?;
            let counters = self.client.counters()?;
            value["counters"] = serde_json::from_slice(&counters).map_err(Error::Json)?;
            Ok(value)
        };
        describe().map_err(|error| error.during("describe the VM"))
    }
}
