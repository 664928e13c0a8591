//! `vm clone`: from a snapshot to a VM of its own, which goes on where the saved one stood.
//!
//! ```text
//! snapshot ──read──▶ Source ──reserve──▶ Reserved ──prepare──▶ folder, disks, network: closed
//!          checks            row, name, pins                      │
//!        grown ◀── network: open ◀── identity ◀── restore ◀──────┘
//! ```
//!
//! Invariants: a clone runs, or there is none: until its network is open its row says `creating`, though
//! its process runs, so `gc` ends what a killed clone leaves. While its guest does not know yet who it is,
//! its network is closed. Where there is no agent to be told, nobody can know: see [`Cloned::introduced`].

use jiff::Timestamp;

use super::create::{self, Reserved};
use super::grow::{self, Saved, Sizes, Wanted};
use super::identity::{self, Introduced};
use super::stop::{self, Manner};
use super::undo::Undo;
use super::{Error, Host, disk, first_boot, remove, require_root, specify, start};
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
use crate::vm::config::Root;
use crate::vm::spec::VmSpec;
use crate::vm::{VmConfig, records};

/// What the user asks for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The snapshot, as typed.
    pub snapshot: String,
    /// The name, or one is made from the clone's id.
    pub name: Option<VmName>,
    /// What it has more of than was saved.
    pub sizes: Wanted,
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
    /// Whether it has more than was saved; a guest without an agent may not use it by itself.
    pub grown: bool,
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
            let gone = snapshots::SnapshotRecordError::gone(reference);
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

    /// The saved VM as another one's: with its files, network and sockets, in the saved shape, and as
    /// large as its configuration says.
    pub(super) fn specify(
        &self,
        host: &Host,
        of: &specify::Of<'_>,
        network: Option<&NetworkRecord>,
    ) -> VmSpec {
        let saved = &self.manifest.spec;
        let of = &specify::Of {
            id: of.id,
            name: of.name,
            config: of.config,
            layout: of.layout.clone(),
            // A disk that is gone since, or was not yet, cannot come or go with a restore.
            cidata: self.has_cidata(),
        };
        let mut spec = specify::specify(host, of, network, saved.memory.hugepages);
        (spec.cpus, spec.memory) = grow::plugged(saved.cpus, saved.memory, of.config);
        for (disk, saved) in spec.disks.iter_mut().zip(&saved.disks) {
            disk.queues = saved.queues;
        }
        spec.watchdog = saved.watchdog;
        spec.saved = Some(self.folder.vm());
        spec
    }

    /// Whether the saved guest has the volume of cloud-init among its disks.
    fn has_cidata(&self) -> bool {
        self.manifest.spec.has_cidata()
    }

    /// Whether the saved guest had booted once, to the end, as the VM that it was.
    pub(super) fn had_booted(&self) -> bool {
        let noted = self.manifest.first_booted;
        noted.unwrap_or_else(|| !self.has_cidata())
    }

    /// Queue pairs of each NIC that was saved.
    fn queue_pairs(&self) -> u16 {
        let first = self.manifest.spec.nics.first();
        first.map_or(1, |nic| nic.queue_pairs)
    }

    /// Copies the saved disk to where a VM has its own, and makes it as long as `size`.
    pub(super) fn copy_disk(
        &self,
        to: &std::path::Path,
        size: ByteSize,
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
        disk::grow(to, size)
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
    let saved = Saved::of(&source.manifest);
    let current = &source.manifest.config;
    let sizes = saved.decide(&request.sizes, Sizes::of(current))?;
    saved.check_pool(sizes.memory, ByteSize::default())?;
    let config = sizes.of_another(current);
    let conflist = create::find_conflist(host, config.nics)?;
    let _references = ReferencesLock::share(&host.layout)?;
    let (lock, name) = reserve(host, request, &config)?;
    let reserved = Reserved {
        lock,
        config,
        conflist,
        queue_pairs: source.queue_pairs(),
    };
    let mut undo = Undo::default();
    let new = (&reserved, &name, request.require_identity);
    let made = bring_to_life(host, &source, new, &mut undo, interrupt);
    let made = made.and_then(|introduced| {
        complete(host, &reserved, is_settled(&source, &introduced))?;
        Ok(introduced)
    });
    match made {
        Ok(introduced) => {
            undo.commit();
            Ok(Cloned {
                lock: reserved.lock,
                introduced,
                grown: saved.grows_to(sizes),
            })
        }
        Err(error) => {
            let mut failures = undo.roll_back();
            failures.extend(remove::forget(host, reserved.lock).err());
            Err(error.and_not_undone(failures))
        }
    }
}

fn reserve(host: &Host, request: &Request, config: &VmConfig) -> Result<(VmLock, VmName), Error> {
    let lock = VmLock::wait(&host.layout, VmId::random().map_err(Error::Random)?)?;
    failpoint::reach("clone: VM's lock made");
    let default = || VmName::from_text(&format!("cocoon-clone-{}", lock.id()), 0);
    let name = request.name.clone().unwrap_or_else(default);
    let reserved = host.database()?.write(Durability::UntilReboot, |tx| {
        create::check_blobs(host, config)?;
        records::reserve(tx, &lock, &name, config, Timestamp::now())?;
        Ok::<_, Error>(())
    });
    match reserved {
        Ok(()) => Ok((lock, name)),
        Err(error) => {
            let failures = lock.retire().err().map(Error::from).into_iter().collect();
            Err(error.and_not_undone(failures))
        }
    }
}

/// Whether cloud-init has nothing to do in the clone when it boots next: it was done in the source, and the agent has
/// made the clone another.
fn is_settled(source: &Source, introduced: &Introduced) -> bool {
    source.had_booted() && *introduced != Introduced::NoAgent
}

/// The clone is a VM as any.
fn complete(host: &Host, vm: &Reserved, first_booted: bool) -> Result<(), Error> {
    host.database()?.write(Durability::Full, |tx| {
        let now = Timestamp::now();
        // Only a disk has a first boot that is told of.
        if first_booted && matches!(vm.config.root, Root::Disk(_)) {
            records::set_first_boot(tx, &vm.lock, Some(now))?;
        }
        records::complete(tx, &vm.lock, now)
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
    source.copy_disk(&layout.cow_disk(), vm.config.storage, interrupt)?;
    failpoint::reach("clone: disk copied");
    let network = create::make_network(host, vm, undo)?;
    if let Some(network) = &network {
        network::quiesce(network)?;
        failpoint::reach("clone: network closed");
    }
    if let Root::Disk(_) = &vm.config.root {
        first_boot::write_cidata(host, (id, name, &vm.config), network.as_ref(), true)?;
        failpoint::reach("clone: volume of cloud-init made");
    }
    let of = specify::Of {
        id,
        name,
        config: &vm.config,
        layout,
        cidata: source.has_cidata(),
    };
    let spec = source.specify(host, &of, network.as_ref());
    host.engine(Some(vm.config.engine))?.check(&spec)?;
    start::launch(host, &vm.lock, &spec, interrupt)?;
    undo.push(move || {
        let never = Interrupt::never().map_err(Error::Wait)?;
        stop::stop_locked(host, &vm.lock, Manner::Force, &never).map(drop)
    });
    settle(
        host,
        source,
        (&of, network.as_ref(), require_identity),
        interrupt,
    )
}

/// The guest learns who it is, gets its network, and takes into use what it has more of.
fn settle(
    host: &Host,
    source: &Source,
    (vm, network, require_identity): (&specify::Of<'_>, Option<&NetworkRecord>, bool),
    interrupt: &Interrupt,
) -> Result<Introduced, Error> {
    let nics = source.manifest.spec.nics.iter();
    let saved: Vec<_> = nics.map(|nic| nic.mac).collect();
    let answered = source.manifest.agent;
    let introduced = identity::introduce(host, vm, network, &saved, answered, interrupt)?;
    if require_identity && introduced == Introduced::NoAgent {
        return Err(Error::NoIdentity(vm.name.clone()));
    }
    failpoint::reach("clone: identity told");
    if let Some(network) = network {
        network::wake(network)?;
        failpoint::reach("clone: network open");
    }
    let saved = Saved::of(&source.manifest);
    grow::take_into_use(host, vm, &saved, introduced, interrupt)
}
