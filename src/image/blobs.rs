//! Layers on disk: one EROFS blob a layer, its boot files, and the work of whoever makes them; and disk
//! images, which lie beside the layers.
//!
//! ```text
//!   blobs/<layer hex>.erofs
//!   blobs/<disk hex>.qcow2                    see `disks`
//!   boot/<layer hex>/{vmlinuz,initrd.img}     either or both; no folder if the layer has neither
//!   staging/<layer hex>.lock                  held by the one who makes the layer or disk image
//!   staging/pull-<random>/owner.lock          held by the pull or import whose work files these are
//!   staging/pull-<random>/<layer hex>{.erofs,.boot/}
//!   staging/pull-<random>/layer{.erofs,.boot/}     a layer whose digest is not known yet
//! ```
//! `<layer hex>` is the digest of the layer as it is transferred, and so is `<disk hex>` of a disk image.
//!
//! Invariants: a blob under its final name is whole and verified. Boot files are published before
//! the blob, and removed after it, so a blob's presence implies them. Work files that no living
//! process owns are garbage, and so is a boot folder without a blob.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use tempfile::TempDir;
use tokio::sync::oneshot;

use super::layer::LayerPaths;
use crate::store::atomic;
use crate::sys::failpoint;
use crate::sys::flock::FileLock;
use crate::units::Digest;

mod disks;

pub use disks::StoredDisk;

/// How the names of folders with work files begin.
const STAGING_PREFIX: &str = "pull-";

/// Where an EROFS superblock stands, and its fields (Linux, `fs/erofs/erofs_fs.h`).
const SUPERBLOCK_OFFSET: u64 = 1024;
const SUPERBLOCK_SIZE: usize = 128;
const SUPERBLOCK_MAGIC: [u8; 4] = 0xE0F5_E1E2_u32.to_le_bytes();
const BLOCK_BITS: usize = 12;
const BLOCKS: std::ops::Range<usize> = 36..40;
const UUID: std::ops::Range<usize> = 48..64;

/// A file operation on the layers failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct BlobError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The layers of a root folder.
#[derive(Clone, Debug)]
pub struct BlobStore {
    blobs: PathBuf,
    boot: PathBuf,
    staging: PathBuf,
}

/// A layer that is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredLayer {
    /// Bytes of the blob.
    pub blob_size: u64,
    /// Bytes of the kernel, if the layer has one.
    pub kernel_size: Option<u64>,
    /// Bytes of the initial RAM disk, if the layer has one.
    pub initrd_size: Option<u64>,
}

impl StoredLayer {
    /// Bytes of all its files.
    pub fn size(&self) -> u64 {
        self.blob_size + self.kernel_size.unwrap_or(0) + self.initrd_size.unwrap_or(0)
    }
}

/// The right to make one layer or disk image. Dropping it lets the next one try.
#[derive(Debug)]
pub struct LayerLock {
    layer: Digest,
    _file: FileLock,
}

/// A folder for work files, which goes with this value.
#[derive(Debug)]
pub struct Staging {
    // Fields drop in this order: the files first, then the claim on them.
    folder: TempDir,
    _owner: FileLock,
}

/// Where a layer is made.
#[derive(Debug)]
pub struct StagedLayer {
    layer: Digest,
    place: LayerToBe,
}

/// Where a layer is made whose digest is not known yet.
#[derive(Debug)]
pub struct LayerToBe {
    blob: PathBuf,
    boot: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
}

impl BlobStore {
    /// The store with its three folders, which are made if they are missing. They must be in one
    /// file system.
    ///
    /// # Errors
    /// A folder cannot be made.
    pub fn open(blobs: PathBuf, boot: PathBuf, staging: PathBuf) -> Result<Self, BlobError> {
        for folder in [&blobs, &boot, &staging] {
            fs::create_dir_all(folder).map_err(failed("make the folder", folder))?;
        }
        Ok(Self {
            blobs,
            boot,
            staging,
        })
    }

    /// The blob of a layer, present or not.
    pub fn blob_path(&self, layer: &Digest) -> PathBuf {
        self.blobs.join(format!("{}.erofs", layer.hex()))
    }

    /// The kernel of a layer, present or not.
    pub fn kernel_path(&self, layer: &Digest) -> PathBuf {
        self.boot_folder(layer).join("vmlinuz")
    }

    /// The initial RAM disk of a layer, present or not.
    pub fn initrd_path(&self, layer: &Digest) -> PathBuf {
        self.boot_folder(layer).join("initrd.img")
    }

    fn boot_folder(&self, layer: &Digest) -> PathBuf {
        self.boot.join(layer.hex())
    }

    /// The layer, if it is present and whole. A file that is empty, cut short or made for another
    /// layer does not count.
    ///
    /// # Errors
    /// A file is there and cannot be read.
    pub fn find(&self, layer: &Digest) -> Result<Option<StoredLayer>, BlobError> {
        let path = self.blob_path(layer);
        let Some(blob_size) = whole_blob(&path, layer).map_err(failed("read", &path))? else {
            return Ok(None);
        };
        Ok(Some(StoredLayer {
            blob_size,
            kernel_size: file_size(&self.kernel_path(layer))?,
            initrd_size: file_size(&self.initrd_path(layer))?,
        }))
    }

    /// The right to make `layer`, unless someone has it.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub fn try_lock(&self, layer: &Digest) -> Result<Option<LayerLock>, BlobError> {
        let path = self.lock_path(layer);
        let lock = FileLock::try_exclusive(&path).map_err(failed("lock", &path))?;
        failpoint::reach("layer: its lock made");
        Ok(lock.map(|file| LayerLock {
            layer: *layer,
            _file: file,
        }))
    }

    /// Waits for the right to make `layer`. If the wait is abandoned, its thread lives on until the
    /// holder lets go, and then passes the right on.
    pub(crate) async fn lock(&self, layer: &Digest) -> Result<LayerLock, BlobError> {
        let path = self.lock_path(layer);
        let (answer, answered) = oneshot::channel();
        let waited_for = path.clone();
        let waiting = move || {
            let lock = loop {
                match FileLock::exclusive(&waited_for) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    lock => break lock,
                }
            };
            // Nobody waits any more after a cancellation; the lock then goes at once.
            let _ = answer.send(lock);
        };
        thread::Builder::new()
            .name("layer-lock".to_owned())
            .spawn(waiting)
            .map_err(failed("wait for", &path))?;
        let lock = match answered.await {
            Ok(lock) => lock,
            Err(_) => Err(io::Error::other("the waiting thread ended")),
        };
        Ok(LayerLock {
            layer: *layer,
            _file: lock.map_err(failed("lock", &path))?,
        })
    }

    fn lock_path(&self, layer: &Digest) -> PathBuf {
        self.staging.join(format!("{}.lock", layer.hex()))
    }

    /// A new folder for work files.
    ///
    /// # Errors
    /// The folder or its lock cannot be made.
    pub fn stage(&self) -> Result<Staging, BlobError> {
        loop {
            let folder = tempfile::Builder::new()
                .prefix(STAGING_PREFIX)
                .tempdir_in(&self.staging)
                .map_err(failed("make a folder in", &self.staging))?;
            failpoint::reach("staging: folder made");
            // A sweep that comes between these two steps may take the folder; then try another.
            if let Some(owner) = own(folder.path()).map_err(failed("lock", folder.path()))? {
                failpoint::reach("staging: folder owned");
                return Ok(Staging {
                    folder,
                    _owner: owner,
                });
            }
        }
    }

    /// Publishes a made layer: boot files first, then the blob.
    ///
    /// # Errors
    /// A file cannot be synced or renamed; the layer is then not present.
    pub fn publish(
        &self,
        staged: &StagedLayer,
        lock: &LayerLock,
    ) -> Result<StoredLayer, BlobError> {
        debug_assert_eq!(staged.layer, lock.layer, "the lock of another layer");
        let boot = self.boot_folder(&staged.layer);
        // Left by a crash between the two steps below, or beside a blob that was cut short.
        remove_tree(&boot)?;
        let mut has_boot_files = false;
        let made = &staged.place;
        for path in [&made.kernel, &made.initrd] {
            if path.exists() {
                let synced = File::open(path).and_then(|file| file.sync_all());
                synced.map_err(failed("sync", path))?;
                has_boot_files = true;
            }
        }
        if has_boot_files {
            atomic::publish(&made.boot, &boot).map_err(failed("publish", &boot))?;
            failpoint::reach("layer: boot files published");
        }
        let blob = self.blob_path(&staged.layer);
        atomic::publish(&made.blob, &blob).map_err(failed("publish", &blob))?;
        failpoint::reach("layer: blob published");
        let found = self.find(&staged.layer)?;
        found.ok_or_else(|| {
            let source = io::Error::other("what was written is no EROFS image of this layer");
            failed("use", &blob)(source)
        })
    }

    /// Removes a layer to which nothing refers any more: the blob first, then the boot files.
    ///
    /// # Errors
    /// A file is there and cannot be removed.
    pub fn remove(&self, layer: &Digest, lock: &LayerLock) -> Result<(), BlobError> {
        debug_assert_eq!(*layer, lock.layer, "the lock of another layer");
        let blob = self.blob_path(layer);
        match fs::remove_file(&blob) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &blob)(error));
            }
            _ => {}
        }
        remove_tree(&self.boot_folder(layer))
    }

    /// The layers and disk images of which anything is on disk, whole or not.
    ///
    /// # Errors
    /// A folder cannot be listed.
    pub fn list(&self) -> Result<BTreeSet<Digest>, BlobError> {
        let mut layers = BTreeSet::new();
        for folder in [&self.blobs, &self.boot] {
            for entry in fs::read_dir(folder).map_err(failed("list", folder))? {
                let name = entry.map_err(failed("list", folder))?.file_name();
                let name = name.to_string_lossy();
                let hex = name
                    .strip_suffix(".erofs")
                    .or_else(|| name.strip_suffix(".qcow2"))
                    .unwrap_or(&name);
                // Whatever has another name was not put there by this module.
                layers.extend(format!("sha256:{hex}").parse::<Digest>());
            }
        }
        Ok(layers)
    }

    /// The work folders whose owners are dead; they are removed unless `dry_run`.
    ///
    /// # Errors
    /// The staging folder cannot be listed, or one in it not removed.
    pub fn sweep_staging(&self, dry_run: bool) -> Result<Vec<PathBuf>, BlobError> {
        let mut swept = Vec::new();
        let entries = fs::read_dir(&self.staging).map_err(failed("list", &self.staging))?;
        for entry in entries {
            let entry = entry.map_err(failed("list", &self.staging))?;
            let path = entry.path();
            let name = entry.file_name();
            if !name.to_string_lossy().starts_with(STAGING_PREFIX) || !path.is_dir() {
                continue;
            }
            let owner = own(&path).map_err(failed("lock", &path))?;
            if owner.is_some() {
                if !dry_run {
                    remove_tree(&path)?;
                }
                swept.push(path);
            }
        }
        Ok(swept)
    }
}

impl Staging {
    /// Where to make `layer`.
    ///
    /// # Errors
    /// The folder for its boot files cannot be made.
    pub fn layer(&self, layer: &Digest) -> Result<StagedLayer, BlobError> {
        Ok(self.place(&layer.hex())?.of(layer))
    }

    /// Where to make a layer whose digest will be known when it is made.
    ///
    /// # Errors
    /// The folder for its boot files cannot be made.
    pub fn layer_to_be(&self) -> Result<LayerToBe, BlobError> {
        self.place("layer")
    }

    fn place(&self, name: &str) -> Result<LayerToBe, BlobError> {
        let boot = self.folder.path().join(format!("{name}.boot"));
        fs::create_dir(&boot).map_err(failed("make the folder", &boot))?;
        failpoint::reach("layer: folder for boot files made");
        Ok(LayerToBe {
            blob: self.folder.path().join(format!("{name}.erofs")),
            kernel: boot.join("vmlinuz"),
            initrd: boot.join("initrd.img"),
            boot,
        })
    }

    /// A file without a name, for what is needed while the work lasts.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn file(&self) -> Result<File, BlobError> {
        let folder = self.folder.path();
        tempfile::tempfile_in(folder).map_err(failed("make a file in", folder))
    }
}

impl LayerToBe {
    /// The place of `layer`, which has been made there.
    pub fn of(self, layer: &Digest) -> StagedLayer {
        StagedLayer {
            layer: *layer,
            place: self,
        }
    }

    /// The paths for the converter.
    pub fn paths(&self) -> LayerPaths<'_> {
        LayerPaths {
            blob: &self.blob,
            kernel: &self.kernel,
            initrd: &self.initrd,
        }
    }
}

impl StagedLayer {
    /// Removes what was made there.
    ///
    /// # Errors
    /// A file is there and cannot be removed.
    pub fn discard(self) -> Result<(), BlobError> {
        let LayerToBe { blob, boot, .. } = &self.place;
        match fs::remove_file(blob) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", blob)(error))
            }
            _ => remove_tree(boot),
        }
    }

    /// The paths for the converter.
    pub fn paths(&self) -> LayerPaths<'_> {
        self.place.paths()
    }
}

/// The UUID of a layer's file system: the first bytes of its digest, as a UUID of version 8
/// (RFC 9562, section 5.8), so that one layer is the same image wherever it is made.
pub fn uuid_of(layer: &Digest) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&layer.as_bytes()[..16]);
    uuid[6] = (uuid[6] & 0x0f) | 0x80;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    uuid
}

/// The size of a blob that is whole by its own superblock and is that of `layer`.
fn whole_blob(path: &Path, layer: &Digest) -> io::Result<Option<u64>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let size = file.metadata()?.len();
    let mut superblock = [0; SUPERBLOCK_SIZE];
    file.seek(SeekFrom::Start(SUPERBLOCK_OFFSET))?;
    match file.read_exact(&mut superblock) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let mut blocks = [0; 4];
    blocks.copy_from_slice(&superblock[BLOCKS]);
    let blocks = u64::from(u32::from_le_bytes(blocks));
    let promised = blocks.checked_shl(superblock[BLOCK_BITS].into());
    let whole = superblock.starts_with(&SUPERBLOCK_MAGIC)
        && superblock[UUID] == uuid_of(layer)
        && promised.is_some_and(|promised| size >= promised);
    Ok(whole.then_some(size))
}

/// Takes the owner lock of a work folder, or none if someone else has it or took the folder away.
fn own(folder: &Path) -> io::Result<Option<FileLock>> {
    let path = folder.join("owner.lock");
    let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let owner = match FileLock::try_exclusive(&path) {
        Ok(Some(owner)) => owner,
        Ok(None) => return Ok(None),
        Err(error) if absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    match fs::metadata(&path) {
        Ok(there) if there.ino() == owner.file().metadata()?.ino() => Ok(Some(owner)),
        Ok(_) => Ok(None),
        Err(error) if absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn file_size(path: &Path) -> Result<Option<u64>, BlobError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > 0 => Ok(Some(metadata.len())),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("look at", path)(error)),
    }
}

fn remove_tree(path: &Path) -> Result<(), BlobError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BlobError + use<> {
    let path = path.to_owned();
    move |source| BlobError {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (TempDir, BlobStore) {
        let dir = tempfile::tempdir().unwrap();
        let sub = |name| dir.path().join(name);
        let store = BlobStore::open(sub("blobs"), sub("boot"), sub("staging")).unwrap();
        (dir, store)
    }

    /// A superblock that promises two blocks of 4 KiB, and these blocks.
    fn blob_of(layer: &Digest) -> Vec<u8> {
        let mut blob = vec![0; 8192];
        blob[1024..1028].copy_from_slice(&SUPERBLOCK_MAGIC);
        blob[1024 + BLOCK_BITS] = 12;
        blob[1024 + BLOCKS.start] = 2;
        blob[1024 + UUID.start..1024 + UUID.end].copy_from_slice(&uuid_of(layer));
        blob
    }

    #[test]
    fn a_layer_is_present_once_it_is_published_with_its_boot_files() {
        let (_dir, store) = store();
        let layer = Digest::of(b"layer");
        let staging = store.stage().unwrap();
        let lock = store.try_lock(&layer).unwrap().unwrap();
        let staged = staging.layer(&layer).unwrap();
        fs::write(staged.paths().blob, blob_of(&layer)).unwrap();
        fs::write(staged.paths().kernel, b"kernel").unwrap();
        assert_eq!(store.find(&layer).unwrap(), None);
        // Left by a crash of an earlier pull.
        fs::create_dir(store.boot_folder(&layer)).unwrap();
        fs::write(store.initrd_path(&layer), b"stale").unwrap();
        let stored = store.publish(&staged, &lock).unwrap();
        let expected = StoredLayer {
            blob_size: 8192,
            kernel_size: Some(6),
            initrd_size: None,
        };
        assert_eq!(stored, expected);
        assert_eq!(store.find(&layer).unwrap(), Some(expected));
        assert_eq!(store.list().unwrap(), [layer].into());
        store.remove(&layer, &lock).unwrap();
        assert!(store.list().unwrap().is_empty());
        assert_eq!(store.find(&layer).unwrap(), None);
        assert!(!store.boot_folder(&layer).exists());
    }

    #[test]
    fn empty_cut_and_foreign_blobs_do_not_count_as_present() {
        let (_dir, store) = store();
        let layer = Digest::of(b"layer");
        let whole = blob_of(&layer);
        let other = blob_of(&Digest::of(b"other"));
        for content in [
            &[][..],
            &whole[..1100],
            &whole[..8191],
            &other[..],
            &[0; 8192],
        ] {
            fs::write(store.blob_path(&layer), content).unwrap();
            assert_eq!(store.find(&layer).unwrap(), None);
        }
        fs::write(store.blob_path(&layer), &whole).unwrap();
        assert!(store.find(&layer).unwrap().is_some());
    }

    #[test]
    fn work_files_go_with_their_owner_and_a_sweep_takes_only_dead_ones() {
        let (_dir, store) = store();
        let dead = store.staging.join("pull-dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("owner.lock"), b"").unwrap();
        fs::write(dead.join("part"), b"x").unwrap();
        let _lock = store.try_lock(&Digest::of(b"x")).unwrap().unwrap();
        let staging = store.stage().unwrap();
        let alive = staging.folder.path().to_owned();
        assert_eq!(
            store.sweep_staging(true).unwrap(),
            std::slice::from_ref(&dead)
        );
        assert_eq!(
            store.sweep_staging(false).unwrap(),
            std::slice::from_ref(&dead)
        );
        assert!(alive.exists() && !dead.exists());
        drop(staging);
        assert!(!alive.exists());
        assert!(store.sweep_staging(false).unwrap().is_empty());
    }

    #[test]
    fn uuids_have_version_8_and_differ_by_layer() {
        let uuid = uuid_of(&Digest::of(b"a"));
        assert_eq!((uuid[6] >> 4, uuid[8] >> 6), (8, 2));
        assert_ne!(uuid, uuid_of(&Digest::of(b"b")));
    }
}
