//! What may help against a failure. This is the one place where an error gets its hint.

use std::error::Error as StdError;
use std::io;

use super::error::Failure;
use crate::agent::AgentError;
use crate::config::InvalidConfig;
use crate::disk::MakeError;
use crate::disk::qcow2::HeaderError;
use crate::image::assembly::AssemblyError;
use crate::image::cloud::content::Foreign;
use crate::image::cloud::{CloudError, TransferError};
use crate::image::fetch::FetchError;
use crate::image::import::Reason;
use crate::image::layer::LayerError;
use crate::image::pull::PullError;
use crate::image::records::ImageRecordError;
use crate::image::registry::RegistryError;
use crate::network::NetworkError;
use crate::network::conflist::ConflistError;
use crate::network::plugin::PluginError;
use crate::ops;
use crate::ops::doctor::repair::RepairError;
use crate::ops::doctor::upgrade::UpgradeError;
use crate::snapshot::ManifestError;
use crate::snapshot::records::SnapshotRecordError;
use crate::store::DatabaseError;
use crate::sys::kvm::KvmError;
use crate::vm::VmState;
use crate::vm::records::RecordError;
use crate::vmm::client::ClientError;
use crate::vmm::launch::LaunchError;

const DISK_FULL: &str =
    "the disk is full: free some space, for example by cocoon gc, and try again";
const MAKE_VM_IMAGE: &str = "os-image/README.md tells how to make a VM image of any Linux";
const IMAGES: &str =
    "cocoon image list shows what is here; cocoon image pull IMAGE fetches an image";
const INSTALL_PLUGINS: &str = "install the CNI plugins: cocoon doctor --upgrade; or apt-get install \
    containernetworking-plugins, and --cni-bin-dir /usr/lib/cni";
const CHECK_PROXY: &str = "check the proxy, which HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names; what NO_PROXY \
    names is asked directly";
const AS_ROOT: &str = "run cocoon as root, for example by sudo";

/// The hint for a failure: the system's own troubles first, wherever in the chain they stand.
pub(super) fn of(failure: &Failure) -> Option<String> {
    if let Some(hint) = links(failure).find_map(system) {
        return Some(hint.to_owned());
    }
    match failure {
        Failure::Operation(error) => operation(error),
        Failure::CreatedOnly { name, source } => Some(match of(source) {
            Some(hint) => format!("{hint}; then: cocoon vm start {name}"),
            None => {
                format!("look at it: cocoon vm logs --vmm {name}; remove it: cocoon vm rm {name}")
            }
        }),
        Failure::Exec(failure) => of(failure),
        Failure::CopySides => {
            Some("write VM:PATH for a path in a guest, such as web:/etc/hosts".into())
        }
        Failure::Config(InvalidConfig::RunDirTooLong(_)) => {
            Some("choose a shorter --run-dir or --root-dir".into())
        }
        Failure::Unhealthy { repaired, .. } => Some(if *repaired {
            "each FAIL above has its fix".into()
        } else {
            "cocoon doctor --fix repairs what it can; each FAIL above has its fix".into()
        }),
        Failure::ArchiveToTerminal => Some("name a file, or pipe it to another program".into()),
        Failure::Reference { .. } => {
            Some("write [registry/]repository[:tag][@sha256:digest], such as ubuntu:24.04".into())
        }
        _ => None,
    }
}

/// An error and its sources, outermost first.
fn links<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| {
        (*error).source()
    })
}

fn system(error: &(dyn StdError + 'static)) -> Option<&'static str> {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(DISK_FULL),
            io::ErrorKind::PermissionDenied => Some(AS_ROOT),
            io::ErrorKind::ReadOnlyFilesystem => {
                Some("choose a --root-dir on a file system that can be written")
            }
            _ => None,
        };
    }
    let rusqlite::Error::SqliteFailure(failure, _) = error.downcast_ref::<rusqlite::Error>()?
    else {
        return None;
    };
    match failure.code {
        rusqlite::ErrorCode::DiskFull => Some(DISK_FULL),
        rusqlite::ErrorCode::CannotOpen
        | rusqlite::ErrorCode::PermissionDenied
        | rusqlite::ErrorCode::ReadOnly => {
            Some("run cocoon as root, or give a --root-dir that may be written")
        }
        _ => None,
    }
}

/// Whether another process says that the disk is full, in the words of the system or of SQLite.
fn says_full(reason: &str) -> bool {
    ["No space left", "disk is full"]
        .iter()
        .any(|full| reason.contains(full))
}

fn operation(error: &ops::Error) -> Option<String> {
    let of_disk = disk_image(error).map(str::to_owned);
    of_disk.or_else(|| any_operation(error))
}

fn any_operation(error: &ops::Error) -> Option<String> {
    use ops::Error;
    let hint = match error {
        Error::NotRoot | Error::Repair(RepairError::NotRoot) => AS_ROOT,
        Error::Repair(RepairError::SubnetInUse { .. }) => {
            "give guests other addresses: cocoon doctor --fix --subnet 10.X.0.0/16"
        }
        Error::Upgrade(UpgradeError::Fetch { source, .. }) => return fetched(source),
        Error::NoEngine | Error::EngineNotLinked(_) => {
            "cocoon version lists the engines of this build"
        }
        Error::StillRunning(name) => {
            return Some(format!(
                "stop it first: cocoon vm stop {name}; or: cocoon vm rm --force {name}"
            ));
        }
        Error::BadRequest { what, given, .. } => return with_unit(what, given),
        Error::BelowSaved { what, .. } => return Some(format!("leave {what} out to have that")),
        Error::NotRunning(name) => return Some(format!("start it: cocoon vm start {name}")),
        Error::WrongState {
            name,
            state: VmState::Paused,
        } => return Some(format!("let it go on: cocoon vm resume {name}")),
        Error::WrongState { name, .. } => {
            return Some(format!(
                "cocoon gc finishes what was cut off; or remove it: cocoon vm rm {name}"
            ));
        }
        Error::Agent {
            source: AgentError::NotThere { .. },
            ..
        } => {
            "the image must have cocoon-agent in it, see os-image/README.md; for a guest that still boots, wait longer: --wait SECONDS"
        }
        Error::StopInterrupted(name) => {
            return Some(format!(
                "to end it without asking the guest: cocoon vm stop --force {name}"
            ));
        }
        Error::BlobMissing { image, .. } => {
            return Some(format!("fetch it again: cocoon image pull {image}"));
        }
        Error::SavedHugepagesShort { .. } => "free some, or raise vm.nr_hugepages",
        Error::HugepagesShort { .. } => "free some, raise vm.nr_hugepages, or use --hugepages off",
        Error::NoMkfs(_) => "install it: apt-get install e2fsprogs",
        Error::Format { output, .. } if says_full(output) => DISK_FULL,
        Error::Busy => "try again when it is done",
        Error::OtherEngineVersion { .. } => {
            "clone it with the cocoon that saved it, and save it there again"
        }
        Error::NoIdentity(_) => {
            "clone it without --require-identity; os-image/README.md tells how an image gets the agent"
        }
        Error::SavedNics { .. } => "leave --nics out; a VM with more is made by cocoon vm run",
        Error::NoRoom { .. } => {
            "room is made when a guest boots: boot one with more, save that, and use its snapshot"
        }
        Error::NotItsSnapshot { snapshot, .. } => {
            return Some(format!("make another VM of it: cocoon vm clone {snapshot}"));
        }
        Error::OtherCpu { .. } => "clone it on a host with such a processor",
        Error::Kvm(error) => kvm(error),
        Error::Image(ImageRecordError::NotFound { near, .. }) => {
            return Some(meant(near.as_deref(), IMAGES));
        }
        Error::Image(_) => IMAGES,
        Error::Record(error) => return record(error),
        Error::Snapshot(error) => return snapshot(error),
        Error::SnapshotState { snapshot, .. } => {
            return Some(format!("finish that: cocoon snapshot rm {snapshot}"));
        }
        Error::ImageAbsent { image, .. } => {
            return Some(format!(
                "fetch it, as it was then: cocoon image pull {image}"
            ));
        }
        Error::NotEmpty(_) => "name an empty folder, one that does not exist, or a file",
        Error::Manifest(ManifestError::Damaged { .. }) => {
            "remove it, or import it again from a copy that is whole"
        }
        Error::Client(ClientError::Refused(reason)) if says_full(reason) => DISK_FULL,
        Error::Launch(LaunchError::Failed(reasons)) if reasons.iter().any(|one| says_full(one)) => {
            DISK_FULL
        }
        Error::Conflist(ConflistError::NoFolder(_) | ConflistError::NoneFound(_)) => {
            "cocoon doctor --fix writes a CNI configuration there; or name another folder by --cni-conf-dir, or run without a network: --nics 0"
        }
        Error::Pull(error) => return pull(error),
        Error::Import(error) => return import(&error.reason).map(str::to_owned),
        Error::Database(DatabaseError::TooNew { .. }) => "use the newer cocoon",
        Error::NotUndone { source, .. } => {
            let first = operation(source)
                .map(|hint| format!("{hint}; "))
                .unwrap_or_default();
            return Some(format!("{first}cocoon gc removes what was left behind"));
        }
        Error::Network(NetworkError::Plugin(PluginError::Missing { .. })) => INSTALL_PLUGINS,
        _ => return None,
    };
    Some(hint.to_owned())
}

/// A size that somebody wrote without a unit, with the unit that was meant.
fn with_unit(what: &str, given: &str) -> Option<String> {
    let number: u64 = match given.strip_suffix("KiB") {
        Some(kibibytes) => kibibytes.parse::<u64>().ok()? * 1024,
        None => given.strip_suffix('B')?.parse().ok()?,
    };
    let unit = if number < 64 { 'G' } else { 'M' };
    (number > 0).then(|| format!("a number alone is bytes: write {what} {number}{unit}"))
}

/// What a word that is nothing's may have meant, and where to look.
fn meant(near: Option<&str>, look: &str) -> String {
    match near {
        Some(name) => format!("is it {name}? {look}"),
        None => look.to_owned(),
    }
}

fn record(error: &RecordError) -> Option<String> {
    match error {
        RecordError::Database(_) => None,
        RecordError::NotFound { near, .. } => {
            Some(meant(near.as_deref(), "cocoon vm list shows all VMs"))
        }
        RecordError::Ambiguous { .. } => Some("give more digits of the id, or the name".into()),
        RecordError::NameTaken { name, .. } => Some(format!(
            "choose another --name, or remove that VM: cocoon vm rm {name}"
        )),
    }
}

fn snapshot(error: &SnapshotRecordError) -> Option<String> {
    match error {
        SnapshotRecordError::Database(_) => None,
        SnapshotRecordError::NotFound { near, .. } => Some(meant(
            near.as_deref(),
            "cocoon snapshot list shows all snapshots",
        )),
        SnapshotRecordError::Ambiguous { .. } => {
            Some("give more digits of the id, or the name".into())
        }
        SnapshotRecordError::NameTaken { name, .. } => Some(format!(
            "choose another --name, or remove that snapshot: cocoon snapshot rm {name}; cocoon gc frees the name of a save that was killed"
        )),
    }
}

fn pull(error: &PullError) -> Option<String> {
    let hint = match error {
        PullError::Registry { source, .. } => return registry(source).map(str::to_owned),
        PullError::Hosts(_) => {
            "README.md tells which fields of hosts.toml cocoon knows; registry_config_dir names another folder"
        }
        PullError::Assembly(AssemblyError::NotBootable { .. }) => MAKE_VM_IMAGE,
        PullError::Assembly(
            AssemblyError::LayerDigest { .. }
            | AssemblyError::DiffId { .. }
            | AssemblyError::Decode { .. },
        ) => "pull again; if it fails again, the registry's copy is damaged: push the image anew",
        _ => return None,
    };
    Some(hint.to_owned())
}

fn disk_image(error: &ops::Error) -> Option<&'static str> {
    match error {
        ops::Error::NothingInstalled { .. } => Some(
            "boot it by firmware, which cocoon doctor --upgrade installs: --boot firmware, on the engine cloud-hypervisor",
        ),
        ops::Error::NoFirmware(_) => Some(
            "cocoon doctor --upgrade installs it; or boot the kernel that is on the disk: --boot direct",
        ),
        ops::Error::Cloud(error) => cloud(error),
        _ => None,
    }
}

fn cloud(error: &CloudError) -> Option<&'static str> {
    match error {
        CloudError::Digest { .. } => Some(
            "compare it with the list of sums at the same address; the image may have been replaced",
        ),
        CloudError::Foreign {
            found: Foreign::Tar,
            depth: 1..,
            ..
        } => Some("unpack it on the way, for example: xz -dc FILE | cocoon image import NAME -"),
        CloudError::Foreign {
            found: Foreign::Tar,
            ..
        } => Some("a root file system is imported as it is: cocoon image import NAME FILE"),
        CloudError::Foreign {
            found: Foreign::WebPage,
            ..
        } => Some("give the address of the file itself, which often ends in .img or .qcow2"),
        CloudError::Foreign { .. } => {
            Some("convert it first, for example: qemu-img convert -O qcow2 FILE disk.qcow2")
        }
        CloudError::Normalise {
            source: MakeError::NoQemuImg(_),
            ..
        } => Some("install it: apt-get install qemu-utils"),
        CloudError::Header {
            source: HeaderError::Backing(_) | HeaderError::DataFile,
            ..
        } => Some(
            "make one file of it, where the other one is: qemu-img convert -O qcow2 FILE disk.qcow2",
        ),
        CloudError::Header {
            source: HeaderError::Short(_),
            ..
        }
        | CloudError::Unpack { .. }
        | CloudError::Sectors { .. } => Some("it is damaged or not whole: fetch it again"),
        CloudError::NoSpace { .. } => Some(DISK_FULL),
        CloudError::Transfer(error) => transfer(error),
        _ => None,
    }
}

fn transfer(error: &TransferError) -> Option<&'static str> {
    match error {
        TransferError::Unreachable { proxy: Some(_), .. }
        | TransferError::Forbidden { proxy: Some(_), .. }
        | TransferError::Refused { proxy: Some(_), .. } => Some(CHECK_PROXY),
        TransferError::Unreachable { .. } | TransferError::Absent { .. } => {
            Some("check the address, and that its server is up")
        }
        TransferError::Forbidden { .. } => {
            Some("a login goes into the address: https://USER:PASSWORD@HOST/FILE")
        }
        TransferError::Busy { .. } | TransferError::Unstable { .. } => Some("try again later"),
        _ => None,
    }
}

fn import(reason: &Reason) -> Option<&'static str> {
    match reason {
        Reason::Assembly(AssemblyError::NotBootable { .. }) => Some(MAKE_VM_IMAGE),
        Reason::DiskImage(_) => {
            Some("import the tar of its root file system; os-image/README.md tells what it needs")
        }
        Reason::Compressed(_) => {
            Some("unpack it on the way, for example: xz -dc FILE | cocoon image import NAME -")
        }
        Reason::TooLarge { .. } => {
            Some("unpack it first: a file that is not compressed is read where it is")
        }
        Reason::SeveralImages { .. } => {
            Some("import one under the name that it has there, or save one alone")
        }
        Reason::Tar(LayerError::Truncated { .. })
        | Reason::Lacking { .. }
        | Reason::SizeMismatch { .. }
        | Reason::DigestMismatch { .. }
        | Reason::Assembly(
            AssemblyError::LayerDigest { .. }
            | AssemblyError::DiffId { .. }
            | AssemblyError::Decode { .. },
        ) => Some("it is damaged or not whole: save it again"),
        _ => None,
    }
}

fn registry(error: &RegistryError) -> Option<&'static str> {
    match error {
        RegistryError::Unauthorized { proxy: Some(_), .. } => Some(
            "check the proxy's password, and the image's name; if the image is private, log in first: docker login REGISTRY",
        ),
        RegistryError::Unreachable { proxy: Some(_), .. }
        | RegistryError::Refused { proxy: Some(_), .. } => Some(CHECK_PROXY),
        RegistryError::Unreachable { .. } => Some("check the registry's name, and that it is up"),
        RegistryError::NotFound { .. } => Some("check the image's name and tag"),
        RegistryError::Unauthorized { .. } | RegistryError::Login { .. } => {
            Some("check the image's name; if it is private, log in first: docker login REGISTRY")
        }
        RegistryError::Busy { .. } => Some("try again later"),
        _ => None,
    }
}

fn fetched(error: &FetchError) -> Option<String> {
    let hint = match error {
        FetchError::Unreachable { .. } | FetchError::Status { .. } => {
            "check that this host reaches it; or name a mirror in a copy of firmware/manifest.toml: --manifest FILE"
        }
        FetchError::Digest { .. } | FetchError::TooLong { .. } => {
            "nothing was installed; another file than cocoon knows is served there: tell whoever serves it"
        }
        FetchError::Interrupted { .. } => "try again",
        _ => return None,
    };
    Some(hint.to_owned())
}

fn kvm(error: &KvmError) -> &'static str {
    match error {
        KvmError::Missing => {
            "load its module (modprobe kvm_amd or kvm_intel), and enable virtualization in the firmware"
        }
        KvmError::Forbidden => AS_ROOT,
        KvmError::Emulated => {
            "use a host with hardware or nested virtualization; to try all the same: COCOON_IGNORE_KVM_CHECK=1"
        }
        KvmError::Open(_) | KvmError::Version(_) => "use a Linux host with a working KVM",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_own_troubles_are_hinted_wherever_they_stand() {
        for (kind, expected) in [
            (io::ErrorKind::StorageFull, "the disk is full"),
            (io::ErrorKind::PermissionDenied, "as root"),
        ] {
            let inner = ops::Error::File {
                action: "write",
                path: "/x".into(),
                source: kind.into(),
            };
            let nested = ops::Error::NotUndone {
                source: Box::new(inner),
                failures: vec![],
            };
            let hint = of(&Failure::Operation(nested)).unwrap();
            assert!(hint.contains(expected), "{hint}");
        }
    }

    #[test]
    fn a_vm_that_did_not_start_is_told_how_to_go_on() {
        let failure = |source: ops::Error| {
            let name = "web".parse().unwrap();
            of(&Failure::CreatedOnly {
                name,
                source: Box::new(source.into()),
            })
            .unwrap()
        };
        assert!(failure(KvmError::Missing.into()).ends_with("; then: cocoon vm start web"));
        assert!(failure(ops::Error::Interrupted).contains("cocoon vm logs --vmm web"));
    }
}
