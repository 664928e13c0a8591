//! What goes wrong between a command and a guest's agent.

use std::fmt;
use std::io;

use cocoon_agent::frame::FrameError;
use cocoon_agent::protocol::{Failure, FailureKind, printable};
use cocoon_agent::tree::TreeError;

use super::channel::Stopped;

/// Why an answer is none. It quotes the guest, so it is made fit for a terminal, and has no source.
#[derive(Debug)]
pub struct Nonsense(String);

impl fmt::Display for Nonsense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A failed exchange with a guest's agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nobody listens in the guest.
    #[error("no agent answers in the guest (waited {waited_seconds} s)")]
    NotThere {
        /// How long it was waited for.
        waited_seconds: u64,
        /// How the last try ended.
        #[source]
        source: io::Error,
    },
    /// The user wants the command to stop.
    #[error("interrupted")]
    Interrupted,
    /// The connection failed or fell silent.
    #[error("lost the connection to the guest's agent")]
    Lost(#[source] io::Error),
    /// What came is not of this protocol.
    #[error("the guest's agent sent what is no answer: {0}")]
    Nonsense(Nonsense),
    /// The agent said no.
    #[error("{}", .0.sentence())]
    Refused(Failure),
    /// A tree of files could not be copied.
    #[error("cannot copy")]
    Copy(#[source] TreeError),
    /// A local terminal, pipe or file failed.
    #[error("cannot {action}")]
    Local {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl AgentError {
    /// What the agent's refusal means, if it is one.
    pub fn refusal(&self) -> Option<FailureKind> {
        match self {
            Self::Refused(failure) => Some(failure.kind),
            _ => None,
        }
    }

    pub(super) fn of_connection(error: io::Error) -> Self {
        match error.get_ref() {
            Some(inner) if inner.is::<Stopped>() => Self::Interrupted,
            _ => Self::Lost(error),
        }
    }

    pub(super) fn of_frame(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) => Self::of_connection(error),
            FrameError::Cut => Self::Lost(io::ErrorKind::UnexpectedEof.into()),
            FrameError::Header(error) => Self::Nonsense(Nonsense(printable(&error.to_string()))),
            error @ FrameError::TooLarge { .. } => Self::Nonsense(Nonsense(error.to_string())),
        }
    }

    pub(super) fn of_tree(error: TreeError) -> Self {
        match error {
            TreeError::Frame(error) => Self::of_frame(error),
            TreeError::Sender(failure) => Self::Refused(failure),
            error => Self::Copy(error),
        }
    }
}
