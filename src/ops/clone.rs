//! `vm clone`: from a snapshot to a VM of its own, which goes on where the saved one stood.
//!
//! ```text
//! snapshot ──read──▶ Source ──reserve──▶ Reserved ──prepare──▶ folder, disks, network: closed
//!          checks            row, name, pins                      │
//!                     network: open ◀── identity ◀── restore ◀───┘
//! ```
//!
//! Invariants: a clone runs, or there is none: until its network is open its row says `creating`, though
//! its process runs, so `gc` ends what a killed clone leaves. While its guest does not know yet who it is,
//! its network is closed. Where there is no agent to be told, nobody can know: see [`Cloned::introduced`].

use jiff::Timestamp;

use super::create::{self, Reserved};
use super::identity::{self, Introduced};
use super::stop::{self, Manner};
use super::undo::Undo;
use super::{Error, Host, remove, require_root, specify, start};
use crate::network::{self, NetworkRecord};
use crate::snapshot::manifest::{Depth, Manifest};
use crate::snapshot::records::{self as snapshots, SnapshotRecord, SnapshotState};
use crate::store::Durability;
use crate::store::layout::SnapshotFolder;
use crate::store::lock::{ReferencesLock, SnapshotUse, VmLock};
use crate::sys::cpu::HostCpu;
use crate::sys::interrupt::Interrupt;
use crate::sys::{failpoint, kvm, reflink};
use crate::units::{ByteSize, VmId, VmName};
use crate::vm::cmdline;
use crate::vm::records::{self, VmConfig};
use crate::vm::spec::VmSpec;

/// What the user asks for.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "each field is that of VmConfig")]
pub struct Request {
    /// The snapshot, as typed.
    pub snapshot: String,
    /// The name, or one is made from the clone's id.
    pub name: Option<VmName>,
    pub cpu: Option<u32>,
    pub memory: Option<ByteSize>,
    pub storage: Option<ByteSize>,
    /// No clone is better than one that does not know who it is.
    pub require_identity: bool,
}

/// A clone that runs.
#[derive(Debug)]
pub struct Cloned {
    /// The right to change it.
    pub lock: VmLock,
    /// Whether its guest knows who it is. If not, it goes on with the MACs and addresses of the VM that
    /// was saved, until somebody changes them.
    pub introduced: Introduced,
}

/// A snapshot that can be brought to life here, and stays while this is held.
pub(super) struct Source {
    pub(super) manifest: Manifest,
    pub(super) folder: SnapshotFolder,
    _used: SnapshotUse,
}

impl Source {
    /// Looks at the snapshot that the user means.
    ///
    /// # Errors
    /// There is none, or it is damaged, or this host or program cannot run it.
    pub(super) fn read(
        host: &Host,
        reference: &str,
        interrupt: &Interrupt,
        depth: Depth,
    ) -> Result<Self, Error> {
        let id = host
            .database()?
            .read(|tx| snapshots::resolve(tx, reference))?;
        let used = SnapshotUse::share(&host.layout, id)?;
        // Before the lock was ours, it may have gone.
        let record = host.database()?.read(|tx| snapshots::get(tx, id))?;
        let usable = |record: &SnapshotRecord| record.state == SnapshotState::Ready;
        if !record.as_ref().is_some_and(usable) {
            let gone = snapshots::SnapshotRecordError::NotFound(reference.to_owned());
            return Err(gone.into());
        }
        let folder = host.layout.snapshot(id).folder();
        let manifest = Manifest::read(&folder)?;
        manifest.check(&folder, depth, &|| !interrupt.is_raised())?;
        let source = Self {
            manifest,
            folder,
            _used: used,
        };
        source.check_host(host)?;
        Ok(source)
    }

    fn check_host(&self, host: &Host) -> Result<(), Error> {
        let engine = host.engine(Some(self.manifest.engine))?;
        if engine.version() != self.manifest.engine_version {
            return Err(Error::OtherEngineVersion {
                engine: engine.name(),
                saved: self.manifest.engine_version.clone(),
                linked: engine.version(),
            });
        }
        let here = HostCpu::of_this_host().map_err(|source| Error::File {
            action: "read",
            path: "/proc/cpuinfo".into(),
            source,
        })?;
        let lacking = self.manifest.cpu.lacking_in(&here);
        if !lacking.is_empty() {
            return Err(Error::OtherCpu {
                saved: self.manifest.cpu.name.clone(),
                lacking: lacking.join(" "),
            });
        }
        Ok(())
    }

    /// The saved VM as another one's: with its files, network and sockets, in the saved shape.
    pub(super) fn specify(
        &self,
        host: &Host,
        of: &specify::Of<'_>,
        network: Option<&NetworkRecord>,
    ) -> VmSpec {
        let saved = &self.manifest.spec;
        let mut spec = specify::specify(host, of, network, saved.memory.hugepages);
        spec.cpus = saved.cpus;
        spec.memory = saved.memory;
        spec.watchdog = saved.watchdog;
        spec.saved = Some(self.folder.vm());
        spec
    }

    /// Copies the saved disk to where the VM `id` has its own.
    pub(super) fn copy_disk(
        &self,
        to: &std::path::Path,
        interrupt: &Interrupt,
    ) -> Result<(), Error> {
        let own = |disk: &&crate::snapshot::manifest::SavedDisk| disk.serial == cmdline::COW_SERIAL;
        let disk = self.manifest.disks.iter().find(own);
        let disk = disk.ok_or(Error::NoSavedDisk)?;
        let from = self.folder.path().join(&disk.file);
        reflink::copy(&from, to, &|| !interrupt.is_raised()).map_err(|source| {
            if interrupt.is_raised() {
                return Error::Interrupted;
            }
            Error::File {
                action: "copy the disk to",
                path: to.to_owned(),
                source,
            }
        })?;
        Ok(())
    }
}

/// Makes a running VM out of a snapshot.
///
/// # Errors
/// There is no clone, and nothing of it is left, or the error says what is.
pub fn clone(host: &Host, request: &Request, interrupt: &Interrupt) -> Result<Cloned, Error> {
    require_root()?;
    kvm::check(host.config.ignore_kvm_check)?;
    let source = Source::read(host, &request.snapshot, interrupt, Depth::Quick)?;
    let config = &source.manifest.config;
    check_numbers(request, config)?;
    let conflist = create::find_conflist(host, config.nics)?;
    let _references = ReferencesLock::share(&host.layout)?;
    let (lock, name) = reserve(host, request, config)?;
    let reserved = Reserved {
        lock,
        config: config.clone(),
        conflist,
    };
    let mut undo = Undo::default();
    let new = (&reserved, &name, request.require_identity);
    let made = bring_to_life(host, &source, new, &mut undo, interrupt);
    match made.and_then(|introduced| complete(host, &reserved.lock).map(|()| introduced)) {
        Ok(introduced) => {
            undo.commit();
            Ok(Cloned {
                lock: reserved.lock,
                introduced,
            })
        }
        Err(error) => {
            let mut failures = undo.roll_back();
            failures.extend(remove::forget(host, reserved.lock).err());
            Err(error.and_not_undone(failures))
        }
    }
}

/// Refuses less than was saved: the guest has it in use. More is not given to it yet.
pub(super) fn check_numbers(request: &Request, saved: &VmConfig) -> Result<(), Error> {
    let numbers = [
        (
            "--cpu",
            request.cpu.map(u64::from),
            u64::from(saved.cpu),
            saved.cpu.to_string(),
        ),
        (
            "--memory",
            request.memory.map(ByteSize::bytes),
            saved.memory.bytes(),
            saved.memory.to_string(),
        ),
        (
            "--storage",
            request.storage.map(ByteSize::bytes),
            saved.storage.bytes(),
            saved.storage.to_string(),
        ),
    ];
    for (what, wanted, least, text) in numbers {
        let Some(wanted) = wanted.filter(|wanted| *wanted != least) else {
            continue;
        };
        return Err(Error::BadRequest {
            what,
            rule: if wanted < least {
                format!("at least what was saved, {text}")
            } else {
                format!("what was saved, {text}: a clone cannot grow yet")
            },
            given: wanted.to_string(),
        });
    }
    Ok(())
}

fn reserve(host: &Host, request: &Request, config: &VmConfig) -> Result<(VmLock, VmName), Error> {
    let lock = VmLock::wait(&host.layout, VmId::random().map_err(Error::Random)?)?;
    failpoint::reach("clone: VM's lock made");
    let default = || VmName::from_text(&format!("cocoon-clone-{}", lock.id()), 0);
    let name = request.name.clone().unwrap_or_else(default);
    let reserved = host.database()?.write(Durability::Full, |tx| {
        create::check_layers(host, config)?;
        Ok::<_, Error>(records::reserve(
            tx,
            &lock,
            &name,
            config,
            Timestamp::now(),
        )?)
    });
    match reserved {
        Ok(()) => Ok((lock, name)),
        Err(error) => {
            let failures = lock.retire().err().map(Error::from).into_iter().collect();
            Err(error.and_not_undone(failures))
        }
    }
}

/// The clone is a VM as any.
fn complete(host: &Host, lock: &VmLock) -> Result<(), Error> {
    host.database()?.write(Durability::Full, |tx| {
        records::complete(tx, lock, Timestamp::now())
    })?;
    failpoint::reach("clone: VM complete");
    Ok(())
}

fn bring_to_life<'a>(
    host: &'a Host,
    source: &Source,
    (vm, name, require_identity): (&'a Reserved, &VmName, bool),
    undo: &mut Undo<'a>,
    interrupt: &Interrupt,
) -> Result<Introduced, Error> {
    let id = vm.lock.id();
    let layout = host.layout.vm(id);
    undo.push({
        let layout = layout.clone();
        move || Ok(layout.remove()?)
    });
    failpoint::reach("clone: VM reserved");
    layout.prepare()?;
    failpoint::reach("clone: folders made");
    source.copy_disk(&layout.cow_disk(), interrupt)?;
    failpoint::reach("clone: disk copied");
    let network = create::make_network(host, vm, undo)?;
    if let Some(network) = &network {
        network::quiesce(network)?;
        failpoint::reach("clone: network closed");
    }
    let of = specify::Of {
        id,
        name,
        config: &vm.config,
    };
    let spec = source.specify(host, &of, network.as_ref());
    host.engine(Some(vm.config.engine))?.check(&spec)?;
    start::launch(host, &vm.lock, &spec, interrupt)?;
    undo.push(move || {
        let never = Interrupt::never().map_err(Error::Wait)?;
        stop::stop_locked(host, &vm.lock, Manner::Force, &never).map(drop)
    });
    let saved: Vec<_> = source
        .manifest
        .spec
        .nics
        .iter()
        .map(|nic| nic.mac)
        .collect();
    let introduced = identity::introduce(host, &of, network.as_ref(), &saved, interrupt)?;
    if require_identity && introduced == Introduced::NoAgent {
        return Err(Error::NoIdentity(name.clone()));
    }
    failpoint::reach("clone: identity told");
    if let Some(network) = &network {
        network::wake(network)?;
        failpoint::reach("clone: network open");
    }
    Ok(introduced)
}
