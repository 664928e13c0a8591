//! `vm create`: from a request to a VM that only needs to be started.
//!
//! ```text
//! Request ──plan──▶ Plan ──reserve──▶ Reserved ──prepare──▶ VmLock of a created VM
//!          checks         row, name, pins      folder, disk, network
//! ```

use std::path::Path;

use jiff::Timestamp;
use rusqlite::Transaction;

use super::undo::Undo;
use super::{Error, Host, disk, list, remove, require_root, specify};
use crate::image::reference::Reference;
use crate::network::{self, Conflist, NetworkError, NetworkRecord};
use crate::store::Durability;
use crate::store::lock::{ReferencesLock, VmLock};
use crate::sys::failpoint;
use crate::sys::interrupt::Interrupt;
use crate::units::{ByteSize, EngineName, VmId, VmName};
use crate::vm::records::{self, Hugepages, VmConfig};
use crate::vm::{VmState, spec};

/// The smallest memory in which a kernel and its initial RAM disk unpack.
const MIN_MEMORY: ByteSize = ByteSize::from_mib(64);

/// The smallest disk on which ext4 has a journal and the guest some room.
const MIN_STORAGE: ByteSize = ByteSize::from_mib(64);

/// Processors that an x86 guest can address without interrupt remapping.
const MAX_CPU: u32 = 254;

/// virtio-net of Cloud Hypervisor and the kernel's TUN driver take no more queue pairs.
const MAX_NICS: u16 = 16;

/// Layers of one VM: virtio disks have letters `vda` to `vdz`, and the VM's own disk takes one.
const MAX_LAYERS: usize = 25;

/// Room in a default name for the suffix that makes it unique.
const SUFFIX_ROOM: usize = 6;

/// What the user asks for.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is that of VmConfig")]
pub struct Request {
    /// The image, as typed.
    pub image: String,
    /// The name, or one is made from the image's.
    pub name: Option<VmName>,
    pub cpu: u32,
    pub memory: ByteSize,
    pub storage: ByteSize,
    pub nics: u16,
    pub hugepages: Hugepages,
    /// The engine, or the default one.
    pub engine: Option<EngineName>,
}

/// A request that makes sense on this host; nothing is made yet.
struct Plan {
    request: Request,
    engine: EngineName,
    conflist: Option<Conflist>,
}

/// A VM that is recorded, named and pinned; nothing else of it exists.
pub(super) struct Reserved {
    pub(super) lock: VmLock,
    pub(super) config: VmConfig,
    /// What its NICs are added by; none where it has none.
    pub(super) conflist: Option<Conflist>,
    /// Queue pairs of each of its NICs.
    pub(super) queue_pairs: u16,
}

/// Creates a VM and returns the right to change it.
///
/// # Errors
/// The VM was not created, and nothing of it is left, or the error says what is.
pub fn create(host: &Host, request: Request, interrupt: &Interrupt) -> Result<VmLock, Error> {
    require_root()?;
    let plan = plan(host, request)?;
    let _references = ReferencesLock::share(&host.layout)?;
    let reserved = reserve(host, plan)?;
    let mut undo = Undo::default();
    match prepare(host, &reserved, &mut undo, interrupt) {
        Ok(()) => {
            undo.commit();
            Ok(reserved.lock)
        }
        Err(error) => {
            let mut failures = undo.roll_back();
            failures.extend(remove::forget(host, reserved.lock).err());
            Err(error.and_not_undone(failures))
        }
    }
}

fn plan(host: &Host, request: Request) -> Result<Plan, Error> {
    check_numbers(&request)?;
    let engine = host.engine(request.engine)?.name();
    let conflist = find_conflist(host, request.nics)?;
    Ok(Plan {
        request,
        engine,
        conflist,
    })
}

/// The network that a VM with so many NICs joins, by plugins that are there.
pub(super) fn find_conflist(host: &Host, nics: u16) -> Result<Option<Conflist>, Error> {
    if nics == 0 {
        return Ok(None);
    }
    let conflist = Conflist::find(&host.config.cni_conf_dir)?;
    host.plugins()
        .check(&conflist)
        .map_err(NetworkError::from)?;
    Ok(Some(conflist))
}

pub(super) fn check_numbers(request: &Request) -> Result<(), Error> {
    let bad = |what, rule: String, given: String| Err(Error::BadRequest { what, rule, given });
    if !(1..=MAX_CPU).contains(&request.cpu) {
        return bad(
            "--cpu",
            format!("between 1 and {MAX_CPU}"),
            request.cpu.to_string(),
        );
    }
    if request.memory < MIN_MEMORY {
        return bad(
            "--memory",
            format!("at least {MIN_MEMORY}"),
            request.memory.to_string(),
        );
    }
    if request.storage < MIN_STORAGE {
        return bad(
            "--storage",
            format!("at least {MIN_STORAGE}"),
            request.storage.to_string(),
        );
    }
    if request.nics > MAX_NICS {
        return bad(
            "--nics",
            format!("at most {MAX_NICS}"),
            request.nics.to_string(),
        );
    }
    Ok(())
}

fn reserve(host: &Host, plan: Plan) -> Result<Reserved, Error> {
    let lock = VmLock::wait(&host.layout, VmId::random().map_err(Error::Random)?)?;
    failpoint::reach("create: VM's lock made");
    let now = Timestamp::now();
    let reserved = host.database()?.write(Durability::Full, |tx| {
        let config = resolve_config(host, tx, &plan.request, plan.engine)?;
        let name = name(tx, &plan.request)?;
        records::reserve(tx, &lock, &name, &config, now)?;
        Ok::<_, Error>(config)
    });
    match reserved {
        Ok(config) => Ok(Reserved {
            lock,
            queue_pairs: spec::queues(config.cpu),
            config,
            conflist: plan.conflist,
        }),
        Err(error) => {
            let failures = lock.retire().err().map(Error::from).into_iter().collect();
            Err(error.and_not_undone(failures))
        }
    }
}

/// Decides what is still open, from the image as it is in this very transaction.
pub(super) fn resolve_config(
    host: &Host,
    tx: &Transaction<'_>,
    request: &Request,
    engine: EngineName,
) -> Result<VmConfig, Error> {
    let image = super::images::resolve(tx, &request.image)?;
    if image.layers.len() > MAX_LAYERS {
        let rule = format!("at most {MAX_LAYERS}, each is a disk");
        return Err(Error::BadRequest {
            what: "the number of the image's layers",
            rule,
            given: image.layers.len().to_string(),
        });
    }
    let config = VmConfig {
        engine,
        cpu: request.cpu,
        memory: request.memory,
        storage: request.storage,
        nics: request.nics,
        hugepages: request.hugepages,
        dns: host.config.dns.clone(),
        layers: image.layers.iter().map(|layer| layer.digest).collect(),
        kernel_layer: image.kernel_layer,
        initrd_layer: image.initrd_layer,
        image_digest: image.digest,
        image: image.name,
    };
    check_layers(host, &config)?;
    Ok(config)
}

/// Refuses a configuration whose layers are not all here. Within the transaction that pins them.
pub(super) fn check_layers(host: &Host, config: &VmConfig) -> Result<(), Error> {
    let layers = config.layers.iter().map(|layer| host.layout.blob(layer));
    let boot = [
        host.layout.kernel(&config.kernel_layer),
        host.layout.initrd(&config.initrd_layer),
    ];
    match layers.chain(boot).find(|path| !is_filled(path)) {
        None => Ok(()),
        Some(path) => Err(Error::BlobMissing {
            image: config.image.clone(),
            path,
        }),
    }
}

fn is_filled(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|file| file.is_file() && file.len() > 0)
}

/// The name that was asked for, or a free one.
pub(super) fn name(tx: &Transaction<'_>, request: &Request) -> Result<VmName, Error> {
    match &request.name {
        Some(name) => Ok(name.clone()),
        None => default_name(tx, &request.image),
    }
}

/// `cocoon-<image>`, with the first free number behind it where that is taken.
fn default_name(tx: &Transaction<'_>, image: &str) -> Result<VmName, Error> {
    let text = image
        .parse::<Reference>()
        .map_or_else(|_| image.to_owned(), |image| image.default_vm_name());
    let base = VmName::from_text(&format!("cocoon-{text}"), SUFFIX_ROOM);
    let mut name = base.clone();
    for suffix in 2.. {
        if records::holder_of(tx, &name)?.is_none() {
            break;
        }
        name = VmName::from_text(&format!("{base}-{suffix}"), 0);
    }
    Ok(name)
}

fn prepare<'a>(
    host: &'a Host,
    vm: &'a Reserved,
    undo: &mut Undo<'a>,
    interrupt: &Interrupt,
) -> Result<(), Error> {
    let id = vm.lock.id();
    let layout = host.layout.vm(id);
    undo.push({
        let layout = layout.clone();
        move || Ok(layout.remove()?)
    });
    failpoint::reach("create: VM reserved");
    layout.prepare()?;
    failpoint::reach("create: folders made");
    disk::make(&layout.cow_disk(), vm.config.storage)?;
    failpoint::reach("create: disk made");
    make_network(host, vm, undo)?;
    check_engine(host, vm)?;
    if interrupt.is_raised() {
        return Err(Error::Interrupted);
    }
    let created =
        |tx: &Transaction<'_>| records::set_state(tx, &vm.lock, VmState::Created, Timestamp::now());
    host.database()?.write(Durability::Full, created)?;
    failpoint::reach("create: VM complete");
    Ok(())
}

/// Refuses what the engine cannot do, now that all is known of the VM, its network too.
fn check_engine(host: &Host, vm: &Reserved) -> Result<(), Error> {
    let id = vm.lock.id();
    let observed = list::get(host, id)?;
    let of = specify::Of {
        id,
        name: &observed.record.name,
        config: &vm.config,
        layout: host.layout.vm(id),
    };
    let spec = specify::specify(host, &of, observed.network.as_ref(), false);
    Ok(host.engine(Some(vm.config.engine))?.check(&spec)?)
}

/// Makes the network of a VM that has NICs.
pub(super) fn make_network<'a>(
    host: &'a Host,
    vm: &'a Reserved,
    undo: &mut Undo<'a>,
) -> Result<Option<NetworkRecord>, Error> {
    let Some(conflist) = &vm.conflist else {
        return Ok(None);
    };
    let id = vm.lock.id();
    let mut db = host.database()?;
    let mut save = |record: &network::NetworkRecord| {
        db.write(Durability::Full, |tx| network::records::put(tx, record))
    };
    let planned = network::plan(id, conflist, vm.config.nics, vm.queue_pairs);
    save(&planned)?;
    failpoint::reach("network: plan recorded");
    undo.push(move || remove::take_down_network(host, id));
    let made = network::setup(&host.plugins(), &planned, &mut |record| Ok(save(record)?))?;
    Ok(Some(made))
}
