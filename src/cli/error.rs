//! What a command says when it fails: the chain of errors once, a hint, an exit code.
//!
//! This is the one place where an error gets its hint.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use super::output;
use crate::config::InvalidConfig;
use crate::image::reference::InvalidReference;
use crate::network::conflist::ConflistError;
use crate::ops;
use crate::store::DatabaseError;
use crate::sys::kvm::KvmError;
use crate::units::VmName;
use crate::vm::records::RecordError;

/// Exit code of a command that the user interrupted: 128 + SIGINT, as shells have it.
const EXIT_INTERRUPTED: u8 = 130;

/// Exit code of a command that was used wrongly, as clap's own.
const EXIT_USAGE: u8 = 2;

/// A command that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Operation(#[from] ops::Error),
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    #[error("cannot read the config file {}", path.display())]
    ConfigFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write the log file {}", path.display())]
    LogFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot handle signals")]
    Signals(#[source] io::Error),
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    #[error("the console of {vm} failed")]
    Console {
        vm: String,
        #[source]
        source: crate::console::relay::RelayError,
    },
    #[error("{image} is not an image reference")]
    Reference {
        image: String,
        #[source]
        source: InvalidReference,
    },
    #[error("VM {name} was created, but did not start")]
    CreatedOnly {
        name: VmName,
        #[source]
        source: Box<Failure>,
    },
    #[error("{} commands failed", .0.len())]
    Several(Vec<Failure>),
}

impl Failure {
    /// Success, or what failed.
    pub(super) fn all(mut failures: Vec<Self>) -> Result<(), Self> {
        match failures.len() {
            0 => Ok(()),
            1 => Err(failures.remove(0)),
            _ => Err(Self::Several(failures)),
        }
    }

    /// The error and its sources in one line, as JSON output has it.
    pub(super) fn line(&self) -> String {
        chain(self).join(": ")
    }

    /// Says on standard error what went wrong and what may help, and returns the exit code.
    pub(super) fn report(&self) -> ExitCode {
        match self {
            Self::Several(failures) => failures.iter().for_each(Self::print),
            failure => failure.print(),
        }
        ExitCode::from(self.exit_code())
    }

    fn print(&self) {
        let links = chain(self);
        let mut links = links.iter();
        if let Some(first) = links.next() {
            output::note(format_args!("error: {first}"));
        }
        links.for_each(|cause| output::note(format_args!("  caused by: {cause}")));
        if let Some(hint) = self.hint() {
            output::note(format_args!("hint: {hint}"));
        }
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Operation(ops::Error::Interrupted | ops::Error::StopInterrupted(_)) => {
                EXIT_INTERRUPTED
            }
            Self::Config(_) | Self::ConfigFile { .. } | Self::Reference { .. } => EXIT_USAGE,
            Self::CreatedOnly { source, .. } => source.exit_code(),
            _ => 1,
        }
    }

    fn hint(&self) -> Option<String> {
        if let Some(hint) = self.system_hint() {
            return Some(hint.to_owned());
        }
        match self {
            Self::Operation(error) => operation_hint(error),
            Self::CreatedOnly { name, source } => Some(match source.hint() {
                Some(hint) => format!("{hint}; then: cocoon vm start {name}"),
                None => format!(
                    "look at it: cocoon vm logs --vmm {name}; remove it: cocoon vm rm {name}"
                ),
            }),
            Self::Config(InvalidConfig::RunDirTooLong(_)) => {
                Some("choose a shorter --run-dir or --root-dir".into())
            }
            Self::Reference { .. } => Some(
                "write [registry/]repository[:tag][@sha256:digest], such as ubuntu:24.04".into(),
            ),
            _ => None,
        }
    }

    /// What helps against a failure of the system, wherever in the chain it stands.
    fn system_hint(&self) -> Option<&'static str> {
        let mut link: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = link {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                let hint = match error.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(
                        "the disk is full: free some space, for example by cocoon gc, and try again",
                    ),
                    io::ErrorKind::PermissionDenied => {
                        Some("run cocoon as root, for example by sudo")
                    }
                    io::ErrorKind::ReadOnlyFilesystem => {
                        Some("choose a --root-dir on a file system that can be written")
                    }
                    _ => None,
                };
                if hint.is_some() {
                    return hint;
                }
            }
            if let Some(rusqlite::Error::SqliteFailure(failure, _)) =
                error.downcast_ref::<rusqlite::Error>()
            {
                match failure.code {
                    rusqlite::ErrorCode::DiskFull => {
                        return Some(
                            "the disk is full: free some space, for example by cocoon gc, and try again",
                        );
                    }
                    rusqlite::ErrorCode::CannotOpen | rusqlite::ErrorCode::PermissionDenied => {
                        return Some(
                            "run cocoon as root, or give a --root-dir that may be written",
                        );
                    }
                    _ => {}
                }
            }
            link = error.source();
        }
        None
    }
}

fn operation_hint(error: &ops::Error) -> Option<String> {
    use ops::Error;
    let hint = match error {
        Error::NotRoot => "run cocoon as root, for example by sudo",
        Error::NoEngine | Error::EngineNotLinked(_) => {
            "cocoon version lists the engines of this build"
        }
        Error::StillRunning(name) => {
            return Some(format!(
                "stop it first: cocoon vm stop {name}; or: cocoon vm rm --force {name}"
            ));
        }
        Error::NotRunning(name) => return Some(format!("start it: cocoon vm start {name}")),
        Error::WrongState { name, .. } => {
            return Some(format!(
                "cocoon gc finishes what was cut off, then try again; or: cocoon vm rm {name}"
            ));
        }
        Error::StopInterrupted(name) => {
            return Some(format!(
                "to end it without asking the guest: cocoon vm stop --force {name}"
            ));
        }
        Error::BlobMissing { image, .. } => {
            return Some(format!("fetch it again: cocoon image pull {image}"));
        }
        Error::HugepagesShort { .. } => "free some, raise vm.nr_hugepages, or use --hugepages off",
        Error::NoMkfs(_) => "install it: apt-get install e2fsprogs",
        Error::Busy => "try again when it is done",
        Error::Kvm(error) => kvm_hint(error),
        Error::Image(_) => {
            return Some(
                "cocoon image list shows what is here; cocoon image pull IMAGE fetches an image"
                    .into(),
            );
        }
        Error::Record(RecordError::NotFound(_)) => "cocoon vm list shows all VMs",
        Error::Record(RecordError::Ambiguous { .. }) => "give more digits of the id, or the name",
        Error::Record(RecordError::NameTaken { name, .. }) => {
            return Some(format!(
                "choose another --name, or remove that VM: cocoon vm rm {name}"
            ));
        }
        Error::Conflist(ConflistError::NoFolder(_) | ConflistError::NoneFound(_)) => {
            "put a CNI configuration there, name another folder by --cni-conf-dir, or run without a network: --nics 0"
        }
        Error::Database(DatabaseError::TooNew { .. }) => "use the newer cocoon",
        Error::NotUndone { source, .. } => {
            let first = operation_hint(source)
                .map(|hint| format!("{hint}; "))
                .unwrap_or_default();
            return Some(format!("{first}cocoon gc removes what was left behind"));
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

fn kvm_hint(error: &KvmError) -> &'static str {
    match error {
        KvmError::Missing => {
            "load the kernel module (modprobe kvm_amd or kvm_intel), and enable virtualization in the firmware"
        }
        KvmError::Forbidden => "run cocoon as root, for example by sudo",
        KvmError::Emulated => {
            "use a host with hardware or nested virtualization; to try all the same: COCOON_IGNORE_KVM_CHECK=1"
        }
        KvmError::Open(_) | KvmError::Version(_) => "use a Linux host with a working KVM",
    }
}

/// The messages of an error and its sources; one that only repeats its source is left out.
fn chain(error: &Failure) -> Vec<String> {
    let mut links: Vec<String> = Vec::new();
    let mut link: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = link {
        let text = error.to_string();
        if links.last() != Some(&text) {
            links.push(text);
        }
        link = error.source();
    }
    links
}
