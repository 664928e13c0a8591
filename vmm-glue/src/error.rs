//! What can go wrong between cocoon and Cloud Hypervisor.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use cocoon::vm::spec::EngineName;
use cocoon::vmm::engine::EngineError;

/// A failure to run or to ask the VMM.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The engine was asked for a second VM.
    #[error("this process has had its VM already")]
    SecondVm,
    /// The process cannot be made ready for a VMM.
    #[error("cannot {what}")]
    Prepare {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// Signals must be blocked before threads start, or they interrupt vCPUs.
    #[error("cannot block signal {signal}")]
    BlockSignal {
        signal: i32,
        #[source]
        source: Cause,
    },
    /// Cloud Hypervisor would make a TAP device that leads nowhere.
    #[error("there is no TAP device {tap} in the VM's network namespace")]
    NoTap {
        tap: String,
        #[source]
        source: io::Error,
    },
    /// The API socket's path must be text.
    #[error("the path of the API socket is not UTF-8: {}", .0.display())]
    SocketPath(PathBuf),
    /// The path of a saved VM must be text.
    #[error("the path of the saved VM is not UTF-8: {}", .0.display())]
    FolderPath(PathBuf),
    /// A file of a saved VM.
    #[error("cannot {what} {}", path.display())]
    Saved {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The configuration of a saved VM is not one.
    #[error("{} is not the configuration of a saved VM", path.display())]
    SavedConfig {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// The state of a saved VM is not one, or not of this VM.
    #[error("{} is not the state of this saved VM", path.display())]
    SavedState {
        path: PathBuf,
        #[source]
        what: Cause,
    },
    /// A saved VM can only be restored as what it was.
    #[error("the saved VM has {saved}, this one is to have {wanted}")]
    Shape { saved: String, wanted: String },
    /// The VM's memory is not yet all there.
    #[error("the VM is still being restored")]
    StillRestoring,
    /// `/dev/kvm` is missing or unusable.
    #[error("cannot open the hypervisor")]
    Hypervisor(#[source] hypervisor::HypervisorError),
    /// A thread of the VMM did not start.
    #[error("cannot start the {thread} thread")]
    Start {
        thread: &'static str,
        #[source]
        source: Cause,
    },
    /// Waking the VMM failed.
    #[error("cannot wake the VMM")]
    Wake(#[source] io::Error),
    /// The VMM refused or failed.
    #[error("the VMM refused")]
    Refused(#[source] Cause),
    /// The VMM has ended.
    #[error("the VMM has ended")]
    Gone,
    /// The VMM is stuck.
    #[error("the VMM did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The VMM answered something else.
    #[error("the VMM's answer is not what was asked for")]
    Answer,
    /// The VM has no terminal, because it does not run.
    #[error("the VM does not run")]
    NotRunning,
    /// The pseudo-terminal of the guest's console cannot be opened.
    #[error("cannot open the terminal {}", path.display())]
    Terminal {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The guest resets itself faster than its terminal can be opened.
    #[error("the guest reboots over and over")]
    RebootLoop,
    /// The VMM's description of the VM is no JSON.
    #[error("cannot read the VMM's description of the VM")]
    Json(#[source] serde_json::Error),
}

impl Error {
    /// This failure, as the port wants it.
    pub(crate) fn during(self, operation: &'static str) -> EngineError {
        EngineError {
            engine: EngineName::CloudHypervisor,
            operation,
            source: Box::new(self),
        }
    }
}

/// An error of Cloud Hypervisor with its sources, in words: its own type holds closures and may not
/// be shared between threads.
#[derive(Debug)]
pub(crate) struct Cause {
    message: String,
    source: Option<Box<Cause>>,
}

impl Cause {
    /// The words of `error` and of its sources.
    pub(crate) fn of(error: &dyn StdError) -> Self {
        Self {
            message: error.to_string(),
            source: error.source().map(|source| Box::new(Self::of(source))),
        }
    }

    /// A failure that has only words.
    pub(crate) fn text(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            source: None,
        }
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Cause {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|cause| cause as _)
    }
}

/// `error` and its sources on one line, for the log.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line = format!("{line}: {error}");
        source = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_keeps_the_whole_chain() {
        let error = Error::Prepare {
            what: "jump",
            source: io::Error::other("no legs"),
        };
        let cause = Cause::of(&error);
        assert_eq!(cause.to_string(), "cannot jump");
        assert_eq!(cause.source().unwrap().to_string(), "no legs");
    }
}
