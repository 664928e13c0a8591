//! What goes wrong in an operation. The CLI gives each its hint and exit code.

use std::io;
use std::path::PathBuf;

use crate::agent::AgentError;
use crate::cidata::{CidataError, PasswordError};
use crate::console::log::LogError;
use crate::disk::MakeError;
use crate::image::blobs::BlobError;
use crate::image::cloud::CloudError;
use crate::image::import::ImportError;
use crate::image::pull::PullError;
use crate::image::records::ImageRecordError;
use crate::image::reference::InvalidReference;
use crate::installed::InstalledError;
use crate::network::conflist::ConflistError;
use crate::network::{NetworkError, SetupError, TeardownError};
use crate::snapshot::archive::ArchiveError;
use crate::snapshot::records::SnapshotRecordError;
use crate::snapshot::{ManifestError, SnapshotState};
use crate::store::DatabaseError;
use crate::store::layout::LayoutError;
use crate::store::lock::LockError;
use crate::sys::kvm::KvmError;
use crate::units::{ByteSize, Digest, EngineName, VmName};
use crate::vm::VmState;
use crate::vm::records::RecordError;
use crate::vmm::client::ClientError;
use crate::vmm::engine::{EngineError, Unsupported};
use crate::vmm::launch::LaunchError;

/// A failed operation.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the messages say it, and the fields are what they name"
)]
pub enum Error {
    #[error("this needs root: it makes network namespaces, TAP devices and KVM guests")]
    NotRoot,
    #[error("interrupted")]
    Interrupted,
    #[error("this build of cocoon links no engine that can run VMs")]
    NoEngine,
    #[error("this build of cocoon does not link the {0} engine")]
    EngineNotLinked(EngineName),
    #[error("{what} must be {rule}, not {given}")]
    BadRequest {
        what: &'static str,
        rule: String,
        given: String,
    },
    #[error("{what} must be at least what was saved, {saved}, not {given}")]
    BelowSaved {
        what: &'static str,
        saved: String,
        given: String,
    },
    #[error("VM {name} is {state}")]
    WrongState { name: VmName, state: VmState },
    #[error("VM {0} is running")]
    StillRunning(VmName),
    #[error("VM {0} is not running")]
    NotRunning(VmName),
    #[error("VM {name} did not end within {seconds} s of being killed")]
    Unkillable { name: VmName, seconds: u64 },
    #[error("interrupted while the guest was shutting down; VM {0} still runs")]
    StopInterrupted(VmName),
    #[error("{} is missing or empty, though image {image} needs it", path.display())]
    BlobMissing { image: String, path: PathBuf },
    #[error("it was saved by version {saved} of the {engine} engine; this cocoon links {linked}")]
    OtherEngineVersion {
        engine: EngineName,
        saved: String,
        linked: String,
    },
    #[error("it was saved on a {saved}, which can what this host's processor cannot: {lacking}")]
    OtherCpu { saved: String, lacking: String },
    #[error("{snapshot} is no snapshot of VM {vm}")]
    NotItsSnapshot { vm: VmName, snapshot: String },
    #[error(
        "it was saved with {saved} NICs, and cannot have {wanted}: they are devices of the guest that goes on"
    )]
    SavedNics { saved: u16, wanted: u16 },
    #[error("it was saved with room for at most {most} by {what}, not for {wanted}")]
    NoRoom {
        what: &'static str,
        wanted: String,
        most: String,
    },
    #[error("the guest of VM {0} has no agent that could be told who it is")]
    NoIdentity(VmName),
    #[error("the snapshot has no copy of the VM's own disk")]
    NoSavedDisk,
    #[error("{needed} of huge pages are needed, but only {free} are free")]
    HugepagesShort { needed: ByteSize, free: ByteSize },
    #[error(
        "the saved VM had its memory in huge pages: {needed} of them are needed, but only {free} are free"
    )]
    SavedHugepagesShort { needed: ByteSize, free: ByteSize },
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("mkfs.ext4 could not format {}: {output}", path.display())]
    Format { path: PathBuf, output: String },
    #[error("cannot run mkfs.ext4")]
    NoMkfs(#[source] io::Error),
    #[error("another cocoon command is making references to images")]
    Busy,
    #[error("snapshot {snapshot} is {state}")]
    SnapshotState {
        snapshot: String,
        state: SnapshotState,
    },
    #[error("the VM's own disk was not made")]
    Disk(#[source] MakeError),
    #[error("there is no firmware at {}", .0.display())]
    NoFirmware(PathBuf),
    #[error("the disk image {image} cannot be booted without firmware")]
    NothingInstalled {
        image: String,
        #[source]
        source: Box<InstalledError>,
    },
    #[error("this root password cannot be used")]
    Password(#[source] PasswordError),
    #[error("cannot make the volume for cloud-init")]
    Cidata(#[source] CidataError),
    #[error("{} is missing; the snapshot needs it of image {image}, whose digest is {digest}", path.display())]
    ImageAbsent {
        image: String,
        digest: Digest,
        path: PathBuf,
    },
    #[error("the folder {} is not empty", .0.display())]
    NotEmpty(PathBuf),
    #[error("cannot write the specification of VM {name}")]
    NotText {
        name: VmName,
        #[source]
        source: serde_json::Error,
    },
    #[error("cannot watch for changes at {}", path.display())]
    Watch {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot wait for the VM process")]
    Wait(#[source] io::Error),
    #[error("cannot read random bytes")]
    Random(#[source] io::Error),
    #[error("cannot attach to the console of VM {name}")]
    Console {
        name: VmName,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the agent of VM {name} could not do it")]
    Agent {
        name: VmName,
        #[source]
        source: AgentError,
    },
    #[error("what had been done could not all be taken back ({})", failures.join("; "))]
    NotUndone {
        #[source]
        source: Box<Error>,
        failures: Vec<String>,
    },
    #[error(transparent)]
    Repair(#[from] super::doctor::repair::RepairError),
    #[error(transparent)]
    Upgrade(#[from] super::doctor::upgrade::UpgradeError),
    #[error(transparent)]
    UpgradeManifest(#[from] super::doctor::manifest::InvalidManifest),
    #[error(transparent)]
    ConsoleLog(#[from] LogError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Image(#[from] ImageRecordError),
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    #[error(transparent)]
    Blobs(#[from] BlobError),
    #[error(transparent)]
    Pull(#[from] Box<PullError>),
    #[error(transparent)]
    Cloud(#[from] Box<CloudError>),
    #[error(transparent)]
    Import(#[from] Box<ImportError>),
    #[error(transparent)]
    Conflist(#[from] ConflistError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Teardown(#[from] TeardownError),
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    VmProcess(#[from] super::vm_process::Error),
    #[error(transparent)]
    Snapshot(#[from] SnapshotRecordError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl Error {
    /// `self`, and what undoing could not undo.
    pub(super) fn and_not_undone(self, failures: Vec<Self>) -> Self {
        if failures.is_empty() {
            return self;
        }
        Self::NotUndone {
            source: Box::new(self),
            failures: failures.iter().map(chain).collect(),
        }
    }
}

/// An error and its sources in one line.
pub(super) fn chain(error: &Error) -> String {
    let mut line = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        line = format!("{line}: {error}");
        source = error.source();
    }
    line
}
