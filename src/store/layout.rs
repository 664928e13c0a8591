//! Every path that cocoon makes.
//!
//! ```text
//! <root>/cocoon.db{,-wal,-shm}            the records
//! <root>/locks/{database,references}.lock see `store::lock`
//! <root>/locks/{vm,snapshot}-<id>.lock
//! <root>/blobs/<layer hex>.erofs          one per layer, shared by images
//! <root>/blobs/<image hex>.qcow2          a disk image, of which the disks of VMs are copies
//! <root>/boot/<layer hex>/{vmlinuz,initrd.img}
//! <root>/firmware/                        UEFI firmware; installed.json says what `doctor` put where
//! <root>/staging/                         unfinished downloads and imports; nobody's after a crash
//! <root>/snapshots/<id>/manifest.json     what is here, with sizes and digests
//!                      /vm/               the engine's own files: memory and state
//!                      /disks/<name>      a copy of each disk that the guest may write to
//! <root>/snapshots/.staged-<id>/          the same, unfinished
//! <run>/vms/<id>/alive.lock               held by the VM process while it lives
//!               /{control,console,api}.sock
//!               /spec.json                what the VM process is to run
//!               /cow.raw                  the VM's own disk
//!               /cidata.img               what cloud-init in the guest reads at its first boot
//!               /boot/{vmlinuz,initrd.img}  what was found on the VM's own disk when it was last started
//!               /cow.staged               the one that takes its place, while it is restored
//!               /cow.before               its own, until the restored VM runs; then /cow.replaced
//! <log>/vms/<id>/{vmm,console}.log
//! ```

use std::io;
use std::path::{Path, PathBuf};

use crate::units::{Digest, SnapshotId, VmId};

/// How the names of unfinished snapshots' folders begin.
const STAGED_PREFIX: &str = ".staged-";

/// The folders below which everything lies.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
    run: PathBuf,
    log: PathBuf,
}

impl Layout {
    /// The layout below these three folders.
    pub fn new(root: &Path, run: &Path, log: &Path) -> Self {
        Self {
            root: root.to_owned(),
            run: run.to_owned(),
            log: log.to_owned(),
        }
    }

    /// Makes the folders that every command needs, readable by root alone.
    ///
    /// # Errors
    /// A folder cannot be made; the error names it.
    pub fn prepare(&self) -> Result<(), LayoutError> {
        let folders = [
            self.root.clone(),
            self.locks(),
            self.blobs(),
            self.boot(),
            self.staging(),
            self.snapshots(),
            self.run.join("vms"),
        ];
        folders
            .into_iter()
            .try_for_each(|folder| make_folder(&folder))
    }

    /// `<root>`
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `<root>/locks`
    pub fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    /// `<root>/blobs`
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// `<root>/boot`
    pub fn boot(&self) -> PathBuf {
        self.root.join("boot")
    }

    /// `<root>/staging`
    pub fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    /// `<root>/blobs/<layer hex>.erofs`
    pub fn blob(&self, layer: &Digest) -> PathBuf {
        self.blobs().join(format!("{}.erofs", layer.hex()))
    }

    /// `<root>/blobs/<image hex>.qcow2`
    pub fn disk_image(&self, image: &Digest) -> PathBuf {
        self.blobs().join(format!("{}.qcow2", image.hex()))
    }

    /// `<root>/boot/<layer hex>/vmlinuz`
    pub fn kernel(&self, layer: &Digest) -> PathBuf {
        self.boot().join(layer.hex()).join("vmlinuz")
    }

    /// `<root>/boot/<layer hex>/initrd.img`
    pub fn initrd(&self, layer: &Digest) -> PathBuf {
        self.boot().join(layer.hex()).join("initrd.img")
    }

    /// `<root>/firmware/hypervisor-fw`
    pub fn small_firmware(&self) -> PathBuf {
        self.root.join("firmware/hypervisor-fw")
    }

    /// `<root>/firmware/installed.json`
    pub fn installed_files(&self) -> PathBuf {
        self.root.join("firmware/installed.json")
    }

    /// `<root>/snapshots`
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// The paths of one snapshot.
    pub fn snapshot(&self, id: SnapshotId) -> SnapshotLayout {
        SnapshotLayout {
            folder: self.snapshots().join(id.to_string()),
            staged: self.snapshots().join(format!("{STAGED_PREFIX}{id}")),
        }
    }

    /// `<run>/vms`
    pub fn vms(&self) -> PathBuf {
        self.run.join("vms")
    }

    /// `<log>/vms`
    pub fn vm_logs(&self) -> PathBuf {
        self.log.join("vms")
    }

    /// The paths of one VM.
    pub fn vm(&self, id: VmId) -> VmLayout {
        let id = id.to_string();
        VmLayout {
            folder: self.vms().join(&id),
            logs: self.vm_logs().join(id),
        }
    }
}

/// The paths of one VM.
#[derive(Clone, Debug)]
pub struct VmLayout {
    folder: PathBuf,
    logs: PathBuf,
}

impl VmLayout {
    /// Those of a VM of which no record knows: all in one folder.
    pub fn alone(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            logs: folder.to_owned(),
        }
    }

    /// Makes the VM's two folders.
    ///
    /// # Errors
    /// A folder cannot be made; the error names it.
    pub fn prepare(&self) -> Result<(), LayoutError> {
        make_folder(&self.folder)?;
        make_folder(&self.logs)
    }

    /// Removes the VM's two folders and all that is in them. Missing ones are fine.
    ///
    /// # Errors
    /// A folder is there but cannot be removed; the other one has been tried too.
    pub fn remove(&self) -> Result<(), LayoutError> {
        let logs = remove_folder(&self.logs);
        remove_folder(&self.folder).and(logs)
    }

    /// `<run>/vms/<id>`
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The lock that the VM process holds while it lives.
    pub fn alive_lock(&self) -> PathBuf {
        self.folder.join("alive.lock")
    }

    /// The VM process's control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    /// Where consoles attach.
    pub fn console_socket(&self) -> PathBuf {
        self.folder.join("console.sock")
    }

    /// The engine's own API socket.
    pub fn api_socket(&self) -> PathBuf {
        self.folder.join("api.sock")
    }

    /// Where the host reaches the guest's virtio socket device.
    pub fn vsock_socket(&self) -> PathBuf {
        self.folder.join("vsock.sock")
    }

    /// What the VM process is to run.
    pub fn spec(&self) -> PathBuf {
        self.folder.join("spec.json")
    }

    /// The VM's own writable disk.
    pub fn cow_disk(&self) -> PathBuf {
        self.folder.join("cow.raw")
    }

    /// What cloud-init in the guest reads at its first boot.
    pub fn cidata(&self) -> PathBuf {
        self.folder.join("cidata.img")
    }

    /// Where kernel and initial RAM disk are put that were found on the VM's own disk.
    pub fn boot(&self) -> PathBuf {
        self.folder.join("boot")
    }

    /// What is about to take the place of the VM's own disk.
    pub fn staged_disk(&self) -> PathBuf {
        self.folder.join("cow.staged")
    }

    /// The VM's own disk, while the restored VM on the other one does not run yet.
    pub fn disk_before(&self) -> PathBuf {
        disk_before(&self.cow_disk())
    }

    /// What was the VM's own disk before it was restored.
    pub fn replaced_disk(&self) -> PathBuf {
        replaced_disk(&self.cow_disk())
    }

    /// What the guest's console printed.
    pub fn console_log(&self) -> PathBuf {
        self.logs.join("console.log")
    }

    /// What the VM process and its engine logged.
    pub fn vmm_log(&self) -> PathBuf {
        self.logs.join("vmm.log")
    }
}

/// As [`VmLayout::disk_before`], of a VM whose own disk is `own`.
pub fn disk_before(own: &Path) -> PathBuf {
    own.with_file_name("cow.before")
}

/// As [`VmLayout::replaced_disk`], of a VM whose own disk is `own`.
pub fn replaced_disk(own: &Path) -> PathBuf {
    own.with_file_name("cow.replaced")
}

/// The paths of one snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotLayout {
    folder: PathBuf,
    staged: PathBuf,
}

impl SnapshotLayout {
    /// `<root>/snapshots/<id>`: a finished snapshot, a [`SnapshotFolder`].
    pub fn folder(&self) -> SnapshotFolder {
        SnapshotFolder::new(&self.folder)
    }

    /// `<root>/snapshots/.staged-<id>`: one that is being made.
    pub fn staged(&self) -> SnapshotFolder {
        SnapshotFolder::new(&self.staged)
    }

    /// Removes what there is of the snapshot, finished or not. Missing folders are fine.
    ///
    /// # Errors
    /// A folder is there but cannot be removed; the other one has been tried too.
    pub fn remove(&self) -> Result<(), LayoutError> {
        let staged = remove_folder(&self.staged);
        remove_folder(&self.folder).and(staged)
    }
}

/// The snapshot to which a folder of this name in `<root>/snapshots` belongs.
pub fn snapshot_of_folder(name: &str) -> Option<SnapshotId> {
    let id = name.strip_prefix(STAGED_PREFIX).unwrap_or(name);
    id.parse().ok()
}

/// A folder with a snapshot in it: in the store, unfinished, or exported.
#[derive(Clone, Debug)]
pub struct SnapshotFolder(PathBuf);

impl SnapshotFolder {
    /// The folder `path`.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Makes the folder and those in it.
    ///
    /// # Errors
    /// A folder cannot be made; the error names it.
    pub fn prepare(&self) -> Result<(), LayoutError> {
        let folders = [self.0.clone(), self.vm(), self.disks()];
        folders
            .into_iter()
            .try_for_each(|folder| make_folder(&folder))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What is here, with sizes and digests.
    pub fn manifest(&self) -> PathBuf {
        self.0.join("manifest.json")
    }

    /// The engine's own files: what `Machine::save` fills, and `Engine::restore` reads.
    pub fn vm(&self) -> PathBuf {
        self.0.join("vm")
    }

    /// Copies of the disks that the guest may write to.
    pub fn disks(&self) -> PathBuf {
        self.0.join("disks")
    }
}

/// A folder that could not be made or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the folder {}", path.display())]
pub struct LayoutError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn remove_folder(path: &Path) -> Result<(), LayoutError> {
    match std::fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LayoutError {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn make_folder(path: &Path) -> Result<(), LayoutError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(path)
        .map_err(|source| LayoutError {
            action: "make",
            path: path.to_owned(),
            source,
        })
}
