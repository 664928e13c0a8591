//! How cocoon asks the VMM thread: a closure down a channel, a tick on an eventfd, the answer back
//! by another channel.

use std::error::Error as _;
use std::mem;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use cocoon::vmm::engine::RestoredMemory;
use vmm::api::{
    ApiAction, ApiError, ApiRequest, ApiResponsePayload, VmCounters, VmInfo, VmInfoResponse,
    VmPause, VmPowerButton, VmResize, VmResizeData, VmResizeDisk, VmResizeDiskData, VmRestore,
    VmResume, VmSnapshot, VmSnapshotConfig, VmmShutdown,
};
use vmm::config::{MemoryRestoreMode, RestoreConfig};
use vmm::vm::{Error as VmError, VmState};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Cause, Error, chain};

/// Wait for an answer that takes no I/O. A busy host may hold the VMM up, and a guest's reboot
/// (4 s under emulation) comes before the answer.
pub(crate) const PROMPT: Duration = Duration::from_secs(60);

/// Wait for what reads files or gives memory back, as a boot or a shutdown of a large VM does.
pub(crate) const PATIENT: Duration = Duration::from_secs(300);

/// Between two looks at whether a VM has all its memory: nothing tells when.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The sending end of the VMM's requests.
pub(crate) struct Client {
    requests: Sender<ApiRequest>,
    wake: EventFd,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the VMM that receives from `requests` when `wake` ticks.
    pub(crate) fn new(requests: Sender<ApiRequest>, wake: EventFd) -> Self {
        Self { requests, wake }
    }

    /// Sends one request and waits for its answer.
    pub(crate) fn ask<A: ApiAction>(
        &self,
        action: &A,
        body: A::RequestBody,
        patience: Duration,
    ) -> Result<ApiResponsePayload, Error> {
        let (reply_to, reply) = channel();
        self.requests
            .send(action.request(body, reply_to))
            .map_err(|_| Error::Gone)?;
        self.wake.write(1).map_err(Error::Wake)?;
        match reply.recv_timeout(patience) {
            Ok(Ok(payload)) => Ok(payload),
            Ok(Err(ApiError::VmSnapshot(VmError::VmRestoring))) => Err(Error::StillRestoring),
            Ok(Err(error)) => Err(Error::Refused(reason(&error))),
            Err(RecvTimeoutError::Disconnected) => Err(Error::Gone),
            Err(RecvTimeoutError::Timeout) => {
                // A VMM that cannot deliver its answer ends itself: keep an ear open for it.
                mem::forget(reply);
                Err(Error::Silent(patience))
            }
        }
    }

    /// The VM's configuration and state.
    pub(crate) fn info(&self) -> Result<VmInfoResponse, Error> {
        match self.ask(&VmInfo, (), PROMPT)? {
            ApiResponsePayload::VmInfo(info) => Ok(info),
            _ => Err(Error::Answer),
        }
    }

    /// The counters of the VM's devices, as JSON text.
    pub(crate) fn counters(&self) -> Result<Vec<u8>, Error> {
        match self.ask(&VmCounters, (), PROMPT)? {
            ApiResponsePayload::VmAction(Some(json)) => Ok(json),
            _ => Err(Error::Answer),
        }
    }

    /// Presses the VM's power button.
    pub(crate) fn press_power_button(&self) -> Result<(), Error> {
        self.ask(&VmPowerButton, (), PROMPT).map(drop)
    }

    /// Pauses the VM, unless it is.
    pub(crate) fn pause(&self) -> Result<(), Error> {
        if self.info()?.state == VmState::Paused {
            return Ok(());
        }
        self.ask(&VmPause, (), PATIENT).map(drop)
    }

    /// Lets the VM go on, unless it does.
    pub(crate) fn resume(&self) -> Result<(), Error> {
        if self.info()?.state == VmState::Running {
            return Ok(());
        }
        self.ask(&VmResume, (), PATIENT).map(drop)
    }

    /// Writes the paused VM into a folder. One that was restored on demand is first given the rest
    /// of its memory, which the VMM does by itself.
    pub(crate) fn save(&self, into: &Path) -> Result<(), Error> {
        let destination_url = url(into)?;
        let deadline = Instant::now() + PATIENT;
        loop {
            let config = VmSnapshotConfig {
                destination_url: destination_url.clone(),
            };
            match self.ask(&VmSnapshot, config, PATIENT) {
                Err(Error::StillRestoring) if Instant::now() < deadline => {
                    thread::sleep(LOOK_AGAIN);
                }
                done => return done.map(drop),
            }
        }
    }

    /// Restores the VM that a folder describes and lets it run. Its memory is read when the guest
    /// wants it, or at once where the host has no userfaultfd.
    pub(crate) fn restore(&self, from: &Path) -> Result<RestoredMemory, Error> {
        let config = RestoreConfig {
            source_url: url(from)?.into(),
            prefault: false,
            memory_restore_mode: MemoryRestoreMode::OnDemand,
            net_fds: None,
            resume: true,
        };
        let Err(lazily) = self.ask(&VmRestore, config.clone(), PATIENT) else {
            return Ok(RestoredMemory::OnDemand);
        };
        log::warn!("cannot restore on demand: {}", chain(&lazily));
        let config = RestoreConfig {
            memory_restore_mode: MemoryRestoreMode::Copy,
            ..config
        };
        self.ask(&VmRestore, config, PATIENT)?;
        Ok(RestoredMemory::Copied)
    }

    /// Plugs processors and memory into the running VM, up to so many, and so many bytes. Memory that is
    /// still being restored on demand is no hindrance: what is plugged is not of it.
    pub(crate) fn plug(&self, cpus: Option<u32>, memory: Option<u64>) -> Result<(), Error> {
        let sizes = VmResizeData {
            desired_vcpus: cpus,
            desired_ram: memory,
            desired_balloon: None,
        };
        self.ask(&VmResize, sizes, PATIENT).map(drop)
    }

    /// Tells the guest that its disk `id` has so many bytes, which its file has already.
    pub(crate) fn grow_disk(&self, id: String, bytes: u64) -> Result<(), Error> {
        let size = VmResizeDiskData {
            id,
            desired_size: bytes,
        };
        self.ask(&VmResizeDisk, size, PATIENT).map(drop)
    }

    /// Ends the VM and the VMM's main thread. A VMM that is gone already is no error, and one that
    /// fails to take its VM down ends all the same.
    pub(crate) fn shut_down(&self) -> Result<(), Error> {
        match self.ask(&VmmShutdown, (), PATIENT) {
            Ok(_) | Err(Error::Gone) => Ok(()),
            Err(Error::Refused(cause)) => {
                log::warn!("the VM did not shut down cleanly: {}", chain(&cause));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// How the VMM wants a folder to be named.
fn url(folder: &Path) -> Result<String, Error> {
    match folder.to_str() {
        Some(path) => Ok(format!("file://{path}")),
        None => Err(Error::FolderPath(folder.to_owned())),
    }
}

/// Why a request failed; the error itself only says which request it was, as our callers do.
fn reason(error: &ApiError) -> Cause {
    Cause::of(error.source().unwrap_or(error))
}
