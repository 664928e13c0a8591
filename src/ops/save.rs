//! `snapshot save`: a running VM, written down.
//!
//! ```text
//! VM lock ─▶ row, name, pins ─▶ VM process: pause, memory, disks, resume ─▶ digests ─▶ publish
//!    └───────────────────────────────────────────────────────────────┘ the VM is free again here
//! ```
//! Nothing is asked twice of the VM process, which resumes the guest whatever happens here: see
//! [`control`](super::control).

use std::path::Path;

use jiff::Timestamp;

use super::staging::{Staging, unless_interrupted};
use super::{Error, Host, identity, list, require_root, vm_process};
use crate::snapshot::manifest::{self, Manifest, SavedDisk};
use crate::snapshot::records::Reservation;
use crate::store::layout::SnapshotFolder;
use crate::store::lock::{VmLock, snapshot_lock_path};
use crate::sys::cpu::HostCpu;
use crate::sys::failpoint;
use crate::sys::interrupt::Interrupt;
use crate::units::{SnapshotId, SnapshotName, VmId};
use crate::vm::{VmRecord, VmSpec};
use crate::vmm::Client;
use crate::vmm::client::ClientError;
use crate::vmm::protocol::{DiskCopy, Request as Ask, Saved};

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The VM.
    pub vm: VmId,
    /// The snapshot's name; it needs none.
    pub name: Option<SnapshotName>,
    /// What the user wants to say of it.
    pub description: String,
}

/// Saves a running or paused VM.
///
/// # Errors
/// Nothing was saved, and nothing of it is left, or the error says what is; the guest is as it was.
pub fn save(
    host: &Host,
    request: &Request,
    interrupt: &Interrupt,
) -> Result<(SnapshotId, Saved), Error> {
    require_root()?;
    let lock = VmLock::wait(&host.layout, request.vm)?;
    failpoint::reach("save: VM locked");
    let vm = list::get_locked(host, &lock)?.record;
    if !vm.state.is_alive() {
        return Err(Error::NotRunning(vm.name));
    }
    let spec = vm_process::read_spec(&host.layout.vm(vm.id).spec())?;
    let agent = identity::answers(host, &vm, interrupt);
    let manifest = begin_manifest(host, request, (vm.clone(), spec, agent))?;
    let staging = Staging::begin(
        host,
        &Reservation {
            name: manifest.name.as_ref(),
            description: &manifest.description,
            vm: manifest.vm,
            vm_name: &manifest.vm_name,
            config: &manifest.config,
            created_at: manifest.created_at,
        },
    )?;
    match fill(host, &staging, (lock, &vm), manifest, interrupt) {
        Ok((manifest, saved)) => Ok((staging.finish(&manifest)?, saved)),
        Err(error) => {
            let error = unless_interrupted(error, interrupt.is_raised());
            Err(error.and_not_undone(staging.discard()))
        }
    }
}

/// All of the manifest that is known before the save.
fn begin_manifest(
    host: &Host,
    request: &Request,
    (vm, spec, agent): (VmRecord, VmSpec, Option<bool>),
) -> Result<Manifest, Error> {
    let cpu = HostCpu::of_this_host().map_err(|source| Error::File {
        action: "read",
        path: "/proc/cpuinfo".into(),
        source,
    })?;
    let writable = spec.disks.iter().filter(|disk| !disk.readonly);
    let saved_disk = |disk: &crate::vm::spec::Disk| SavedDisk {
        serial: disk.serial.clone(),
        file: format!("disks/{}", file_name(&disk.path)),
    };
    Ok(Manifest {
        version: manifest::VERSION,
        // The snapshot's own is given to it when it is reserved.
        id: SnapshotId::random().map_err(Error::Random)?,
        name: request.name.clone(),
        description: request.description.clone(),
        created_at: Timestamp::now(),
        vm: vm.id,
        vm_name: vm.name,
        engine: spec.engine,
        engine_version: host.engine(Some(spec.engine))?.version(),
        cpu,
        agent,
        first_booted: Some(vm.first_booted_at.is_some()),
        config: vm.config,
        disks: writable.map(saved_disk).collect(),
        files: Vec::new(),
        spec,
    })
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Has the VM process write everything, then reads it once more for its digests.
fn fill(
    host: &Host,
    staging: &Staging<'_>,
    (lock, vm): (VmLock, &VmRecord),
    mut manifest: Manifest,
    interrupt: &Interrupt,
) -> Result<(Manifest, Saved), Error> {
    let socket = host.layout.vm(lock.id()).control_socket();
    let ask = Ask::Save {
        into: staging.folder().vm(),
        lock: snapshot_lock_path(&host.layout, staging.id()),
        disks: copies(&manifest, staging.folder()),
    };
    // Dropped at once, also when the user interrupts: the VM process then gives the save up.
    let saved = Client::connect(&socket)?.call_patiently(ask, interrupt)?;
    failpoint::reach("save: written by the VM process");
    if manifest.agent == Some(true) {
        identity::wake(host, vm, interrupt);
    }
    drop(lock);
    let saved = serde_json::from_value(saved)
        .map_err(|error| Error::Client(ClientError::Exchange(error.into())))?;
    manifest.id = staging.id();
    manifest.files = manifest::describe(staging.folder(), &|| !interrupt.is_raised())?;
    failpoint::reach("save: digests taken");
    Ok((manifest, saved))
}

fn copies(manifest: &Manifest, folder: &SnapshotFolder) -> Vec<DiskCopy> {
    let writable = manifest.spec.disks.iter().filter(|disk| !disk.readonly);
    let copy = |(from, to): (&crate::vm::spec::Disk, &SavedDisk)| DiskCopy {
        from: from.path.clone(),
        to: folder.path().join(&to.file),
    };
    writable.zip(&manifest.disks).map(copy).collect()
}
