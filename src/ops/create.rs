//! `vm create`: from a request to a VM that only needs to be started.
//!
//! ```text
//! Request ──plan──▶ Plan ──reserve──▶ Reserved ──prepare──▶ VmLock of a created VM
//!          checks         row, name, pins      folder, disk, network
//! ```

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::Transaction;

use super::undo::Undo;
use super::{Error, Host, disk, first_boot, list, remove, require_root, specify};
use crate::image::cloud::CloudUrl;
use crate::image::records::{Content, LayersContent};
use crate::image::reference::Reference;
use crate::network::{self, Conflist, NetworkError, NetworkRecord};
use crate::store::Durability;
use crate::store::lock::{ReferencesLock, VmLock};
use crate::sys::failpoint;
use crate::sys::interrupt::Interrupt;
use crate::units::{ByteSize, Digest, EngineName, VmId, VmName};
use crate::vm::config::{DiskRoot, Hugepages, Layers, Root, VmConfig};
use crate::vm::{VmState, records, spec};

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
    pub boot: BootChoice,
}

/// What boots a VM of a disk image. One of layers has a kernel, and needs no choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum BootChoice {
    /// Firmware where it is installed and the engine knows what to do with it, else directly.
    #[default]
    Auto,
    /// The kernel that is installed on the disk, without firmware.
    Direct,
    /// UEFI firmware.
    Firmware,
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
    let reserved = host.database()?.write(Durability::UntilReboot, |tx| {
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
    let root = match image.content {
        Content::Layers(content) => layers_root(content, request.boot)?,
        Content::Disk(_) => disk_root(host, image.digest, request.boot, engine)?,
    };
    let config = VmConfig {
        engine,
        cpu: request.cpu,
        memory: request.memory,
        storage: request.storage,
        nics: request.nics,
        hugepages: request.hugepages,
        dns: host.config.dns.clone(),
        root,
        image_digest: image.digest,
        image: image.name,
    };
    check_blobs(host, &config)?;
    Ok(config)
}

fn layers_root(content: LayersContent, boot: BootChoice) -> Result<Root, Error> {
    let bad = |what, rule: String, given: String| Err(Error::BadRequest { what, rule, given });
    let count = content.layers.len();
    if count > MAX_LAYERS {
        return bad(
            "the number of the image's layers",
            format!("at most {MAX_LAYERS}, each is a disk"),
            count.to_string(),
        );
    }
    if boot == BootChoice::Firmware {
        let rule = "direct for an OCI image, which has a kernel and no disk that boots";
        return bad("--boot", rule.to_owned(), "firmware".to_owned());
    }
    let layers = content.layers.iter();
    Ok(Root::Layers(Layers {
        layers: layers.map(|layer| layer.digest).collect(),
        kernel: content.kernel_layer,
        initrd: content.initrd_layer,
    }))
}

fn disk_root(
    host: &Host,
    base: Digest,
    boot: BootChoice,
    engine: EngineName,
) -> Result<Root, Error> {
    let can = host.engine(Some(engine))?.boots_firmware();
    let path = &host.config.firmware;
    let firmware = match boot {
        BootChoice::Direct => None,
        BootChoice::Auto => (can && path.is_file()).then(|| path.clone()),
        BootChoice::Firmware if !path.is_file() => return Err(Error::NoFirmware(path.clone())),
        BootChoice::Firmware => Some(path.clone()),
    };
    Ok(Root::Disk(DiskRoot { base, firmware }))
}

/// The files of an image from which a VM of `config` runs.
pub(super) fn image_files(host: &Host, config: &VmConfig) -> Vec<PathBuf> {
    match &config.root {
        Root::Layers(root) => {
            let layers = root.layers.iter().map(|layer| host.layout.blob(layer));
            layers
                .chain([
                    host.layout.kernel(&root.kernel),
                    host.layout.initrd(&root.initrd),
                ])
                .collect()
        }
        Root::Disk(root) => vec![host.layout.disk_image(&root.base)],
    }
}

/// Refuses a configuration whose blobs are not all here. Within the transaction that pins them.
pub(super) fn check_blobs(host: &Host, config: &VmConfig) -> Result<(), Error> {
    let mut files = image_files(host, config).into_iter();
    match files.find(|path| !is_filled(path)) {
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
    let text = if CloudUrl::is_meant_by(image) {
        disk_name(image)
    } else {
        image
            .parse::<Reference>()
            .map_or_else(|_| image.to_owned(), |image| image.default_vm_name())
    };
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

/// What people call the disk image at an address: the name of the file, without what kind of file it is.
fn disk_name(url: &str) -> String {
    let url = url.parse::<CloudUrl>().ok();
    let file = url.as_ref().and_then(CloudUrl::file_name).unwrap_or("disk");
    let mut name = file;
    for kind in [".gz", ".xz", ".zst", ".qcow2", ".img", ".raw"] {
        name = name.strip_suffix(kind).unwrap_or(name);
    }
    name.to_owned()
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
    disk::make(host, &layout.cow_disk(), &vm.config, interrupt)?;
    failpoint::reach("create: disk made");
    let network = make_network(host, vm, undo)?;
    if let Root::Disk(root) = &vm.config.root {
        first_boot::prepare(host, (id, &vm.config), root, network.as_ref())?;
        failpoint::reach("create: first boot prepared");
    }
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
        cidata: true,
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
    // Durable, and what was reserved with it: addresses outlive a power failure where only their plugin finds them.
    save(&planned)?;
    failpoint::reach("network: plan recorded");
    undo.push(move || remove::take_down_network(host, id));
    let made = network::setup(&host.plugins(), &planned, &mut |record| Ok(save(record)?))?;
    Ok(Some(made))
}
