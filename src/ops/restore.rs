//! `vm restore`: back to what one of its snapshots holds, under the same name and addresses.
//!
//! ```text
//! snapshot ──read──▶ Source ──stage──▶ its disk beside the VM's ──▶ VM ends ──▶ VM's own disk put aside,
//!       checks all of it                                                        saved disk in its place
//!                                      own disk goes ◀── VM restored ◀──────────────────┘
//! ```
//!
//! Invariants: until all is checked and staged, the VM has not noticed; its own disk stays until it runs
//! again, and what each disk is called says whose it is, so whoever comes after a kill takes back the
//! VM's own: see [`leftover`].

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::clone::{self, Source};
use super::grow::{self, Saved, Sizes};
use super::identity::{self, Introduced};
use super::stop::{self, Manner};
use super::{Error, Host, error, leftover, list, require_root, specify, start, vm_process};
use crate::snapshot::manifest::Depth;
use crate::store::Durability;
use crate::store::layout::{disk_before, replaced_disk};
use crate::store::lock::VmLock;
use crate::sys::interrupt::Interrupt;
use crate::sys::{failpoint, kvm};
use crate::units::{ByteSize, VmId};
use crate::vm::VmState;
use crate::vm::config::Root;
use crate::vm::records::{self, VmRecord};

/// A VM that runs as a snapshot has it.
#[derive(Debug)]
pub struct Restored {
    /// Whether its guest knows the time.
    pub introduced: Introduced,
    /// Whether it has more than was saved; a guest without an agent may not use it by itself.
    pub grown: bool,
}

/// Takes a VM back to a snapshot of its own. It may run or be stopped; afterwards it runs, its guest
/// knows the time, and it is as large as it was unless the request says something else.
///
/// # Errors
/// The VM is as it was; or it had to end, has its own disk again, and is stopped.
pub fn restore(
    host: &Host,
    id: VmId,
    request: &clone::Request,
    interrupt: &Interrupt,
) -> Result<Restored, Error> {
    require_root()?;
    kvm::check(host.config.ignore_kvm_check)?;
    let lock = VmLock::wait(&host.layout, id)?;
    let vm = list::get_locked(host, &lock)?;
    let source = Source::read(host, &request.snapshot, interrupt, Depth::Full)?;
    if source.manifest.vm != id {
        return Err(Error::NotItsSnapshot {
            vm: vm.record.name,
            snapshot: request.snapshot.clone(),
        });
    }
    let saved = Saved::of(&source.manifest);
    let sizes = saved.decide(&request.sizes, Sizes::of(&vm.record.config))?;
    let config = sizes.of_another(&vm.record.config);
    if matches!(vm.record.state, VmState::Creating | VmState::Removing) {
        return Err(Error::WrongState {
            name: vm.record.name,
            state: vm.record.state,
        });
    }
    let of = specify::Of {
        id,
        name: &vm.record.name,
        config: &config,
        layout: host.layout.vm(id),
        cidata: vm.record.first_booted_at.is_none(),
    };
    let spec = source.specify(host, &of, vm.network.as_ref());
    host.engine(Some(vm.record.config.engine))?.check(&spec)?;
    // Its own pages are free by the time when these are needed.
    saved.check_pool(sizes.memory, own_pages(host, &vm.record))?;
    leftover::put_away(host, &lock)?;
    let disks = Disks::stage(host, id, &source, config.storage, interrupt)?;
    failpoint::reach("restore: disk staged");
    if let Err(error) = stop::stop_locked(host, &lock, Manner::Force, interrupt) {
        remove(&disks.staged);
        return Err(error);
    }
    // From here on the VM does not run as it did.
    let network = vm.network.map(|network| start::make_ready(host, network));
    network
        .transpose()
        .and_then(|_| disks.exchange())
        .and_then(|()| start::launch(host, &lock, &spec, interrupt))
        .map_err(|error| match disks.take_back() {
            Ok(()) => error,
            Err(failure) => error.and_not_undone(vec![failure]),
        })?;
    disks.discard_old();
    failpoint::reach("restore: old disk gone");
    // It runs, and as large as this; a crash before here leaves a record that says less.
    host.database()?.write(Durability::Full, |tx| {
        let now = Timestamp::now();
        records::set_config(tx, &lock, &config, now)?;
        match config.root {
            Root::Layers(_) => Ok(()),
            Root::Disk(_) => records::set_first_boot(tx, &lock, source.had_booted().then_some(now)),
        }
    })?;
    failpoint::reach("restore: sizes recorded");
    Ok(Restored {
        introduced: settle(host, &of, &source, interrupt)?,
        grown: saved.grows_to(sizes),
    })
}

/// How much of the host's pool of huge pages the VM's process has; none, as far as one can know, of one
/// that another cocoon has started.
fn own_pages(host: &Host, vm: &VmRecord) -> ByteSize {
    let spec = vm_process::read_spec(&host.layout.vm(vm.id).spec());
    match spec {
        Ok(spec) if vm.state.is_alive() => grow::of_pool(spec.memory),
        _ => ByteSize::default(),
    }
}

/// The guest learns the time, and takes into use what it has more of. It runs, whatever its agent says.
fn settle(
    host: &Host,
    vm: &specify::Of<'_>,
    source: &Source,
    interrupt: &Interrupt,
) -> Result<Introduced, Error> {
    let saved = Saved::of(&source.manifest);
    identity::refresh(host, vm, source.manifest.agent, interrupt)
        .and_then(|introduced| grow::take_into_use(host, vm, &saved, introduced, interrupt))
        .or_else(|error| match error {
            Error::Agent { .. } => Ok(Introduced::Done(vec![error::chain(&error)])),
            error => Err(error),
        })
}

/// The VM's disk, and beside it the one that takes its place.
struct Disks {
    own: PathBuf,
    staged: PathBuf,
}

impl Disks {
    fn stage(
        host: &Host,
        id: VmId,
        source: &Source,
        size: ByteSize,
        interrupt: &Interrupt,
    ) -> Result<Self, Error> {
        let layout = host.layout.vm(id);
        let disks = Self {
            own: layout.cow_disk(),
            staged: layout.staged_disk(),
        };
        match source.copy_disk(&disks.staged, size, interrupt) {
            Ok(()) => Ok(disks),
            Err(error) => {
                remove(&disks.staged);
                Err(error)
            }
        }
    }

    /// Puts the saved disk in the place of the VM's own, which is put aside. No process has either open.
    fn exchange(&self) -> Result<(), Error> {
        // Of a killed restore, if its process lived until now.
        leftover::take_back(&self.own)?;
        leftover::rename(&self.own, &disk_before(&self.own))?;
        failpoint::reach("restore: own disk put aside");
        leftover::rename(&self.staged, &self.own)?;
        failpoint::reach("restore: saved disk in place");
        Ok(())
    }

    /// The VM has its own disk again; if that fails, all stay.
    fn take_back(&self) -> Result<(), Error> {
        let replaced = replaced_disk(&self.own);
        if replaced.exists() {
            // The VM process had said that it runs, and failed all the same.
            leftover::rename(&replaced, &self.own)?;
        }
        leftover::take_back(&self.own)?;
        remove(&self.staged);
        Ok(())
    }

    /// The VM runs on the saved disk: what it had before is not wanted any more.
    fn discard_old(self) {
        remove(&replaced_disk(&self.own));
    }
}

fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, "cannot remove {}", path.display());
        }
        _ => {}
    }
}
