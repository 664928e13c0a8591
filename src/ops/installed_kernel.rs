//! The kernel that is installed on a VM's own disk: found, copied out, booted without firmware.
//!
//! ```text
//! <vm>/cow.raw ─▶ installed::find ─▶ <vm>/boot/{vmlinuz,initrd.img,installed.json} ─▶ Boot::Direct
//! ```
//! It is looked for whenever the guest boots, so that a kernel that was installed in the guest is the next
//! one to run.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::disk::{RawDisk, ReadAt};
use crate::installed::{self, Installed, InstalledError};
use crate::store::Durability;
use crate::store::atomic;
use crate::vm::spec::{Boot, Disk};

/// What was found when the guest was booted last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Chosen {
    /// What the boot menu on the disk calls it.
    title: String,
    /// The kernel's path on the disk.
    kernel: String,
    /// Those of the initial RAM disks, which are one behind the other.
    initrd: Vec<String>,
    /// But for the console.
    cmdline: String,
}

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("nothing on the VM's own disk can be booted without firmware")]
    Nothing(#[source] InstalledError),
}

/// What the boot menu on the disk would boot.
///
/// # Errors
/// There is nothing, or the disk cannot be read.
pub(super) fn find(disk: &Path) -> Result<Installed, KernelError> {
    let file = File::open(disk).map_err(failed("read", disk))?;
    let image = RawDisk::new(file).map_err(failed("read", disk))?;
    let image: Rc<dyn ReadAt> = Rc::new(image);
    installed::find(&image).map_err(KernelError::Nothing)
}

/// Copies kernel and initial RAM disk from `disk` into `folder`, for an engine to boot.
///
/// # Errors
/// There is none, or the files cannot be read or written.
pub(super) fn take_out(disk: &Disk, folder: &Path) -> Result<Boot, KernelError> {
    let found = find(&disk.path)?;
    std::fs::create_dir_all(folder).map_err(failed("make the folder", folder))?;
    let (kernel, initrd) = (folder.join("vmlinuz"), folder.join("initrd.img"));
    let write = |path: &Path, copy: &dyn Fn(&mut File) -> Result<u64, InstalledError>| {
        let mut file = create(path).map_err(failed("write", path))?;
        copy(&mut file).map(drop).map_err(KernelError::Nothing)
    };
    write(&kernel, &|file| found.copy_kernel(file))?;
    write(&initrd, &|file| found.copy_initrd(file))?;
    let chosen = Chosen::of(&found);
    let text = serde_json::to_vec_pretty(&chosen).unwrap_or_default();
    let path = record(folder);
    atomic::write(&path, &text, Durability::UntilReboot).map_err(failed("write", &path))?;
    Ok(Boot::Direct {
        kernel,
        initrd,
        cmdline: chosen.cmdline,
    })
}

/// What was found at the last boot, if there was one.
pub(super) fn chosen(folder: &Path) -> Option<Chosen> {
    serde_json::from_slice(&std::fs::read(record(folder)).ok()?).ok()
}

fn record(folder: &Path) -> PathBuf {
    folder.join("installed.json")
}

impl Chosen {
    fn of(found: &Installed) -> Self {
        Self {
            title: found.title.clone(),
            kernel: found.kernel.path.clone(),
            initrd: found.initrd.iter().map(|file| file.path.clone()).collect(),
            cmdline: found.cmdline.clone(),
        }
    }
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)
}

fn failed<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> KernelError + use<'a> {
    move |source| KernelError::File {
        action,
        path: path.to_owned(),
        source,
    }
}
