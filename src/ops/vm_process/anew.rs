//! A guest that resets itself, and boots from its own disk.
//!
//! An engine boots a VM once in the life of its process, and again what it was given then. But on the
//! guest's disk there may be another kernel by now, and what cloud-init has read is not wanted again, or is now
//! for the first time, in a clone that nobody has told who it is. So this process executes itself, and begins once
//! more: same process id, same alive lock, same run.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::specify;
use super::read_spec;
use crate::store::{Durability, atomic};
use crate::sys::flock::FileLock;
use crate::units::RunId;
use crate::vm::cmdline::CIDATA_SERIAL;
use crate::vm::spec::{Boot, VmSpec};
use crate::vmm::logging;

/// This very program, also after its file was replaced.
const SELF: &str = "/proc/self/exe";

/// Why it did not.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnewError {
    #[error(transparent)]
    Spec(#[from] super::Error),
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot hold on the alive lock")]
    Alive(#[source] io::Error),
    #[error("cannot execute cocoon")]
    Execute(#[source] io::Error),
}

/// Whether a guest of this VM boots from its own disk.
pub(super) fn concerns(spec: &VmSpec) -> bool {
    !matches!(spec.boot, Boot::Direct { .. })
}

/// Executes cocoon in the place of this process; with `cidata`, cloud-init is told who the guest is. Returns only
/// if that fails.
pub(super) fn execute(path: &Path, run: RunId, alive: &FileLock, cidata: bool) -> AnewError {
    if let Err(error) = prepare(path, alive, cidata) {
        return error;
    }
    let mut command = Command::new(SELF);
    command
        .arg("__vmm")
        .arg(path)
        .arg(run.to_string())
        .arg("--again");
    logging::flush();
    AnewError::Execute(command.exec())
}

fn prepare(path: &Path, alive: &FileLock, cidata: bool) -> Result<(), AnewError> {
    let mut spec = read_spec(path)?;
    // It boots now, wherever it came from.
    spec.saved = None;
    spec.disks.retain(|disk| disk.serial != CIDATA_SERIAL);
    let volume = spec.disks.first().filter(|_| cidata);
    spec.disks.extend(volume.and_then(specify::cidata_beside));
    let text = serde_json::to_vec_pretty(&spec).unwrap_or_default();
    atomic::write(path, &text, Durability::UntilReboot).map_err(|source| AnewError::Write {
        path: path.to_owned(),
        source,
    })?;
    rustix::stdio::dup2_stdin(alive.file()).map_err(|error| AnewError::Alive(error.into()))
}
