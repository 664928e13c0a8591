//! The states of a VM, and what the record and the alive lock say together.
//!
//! ```text
//!                           paused
//!                            ▲│
//!   creating ──▶ created ──▶ running ──▶ stopped      a clone: creating ──▶ running
//!                   │          ▲  │         │
//!                   │          └──┼─────────┘
//!                   └──▶ error ◀──┘      any ──▶ removing ──▶ (no row)
//! ```
//!
//! Invariants: a VM's process writes down that the VM runs, and that it has stopped, while it holds the
//! alive lock; so a free lock means that the VM does not run, whatever the record says. A held one says
//! nothing: its process may be about to begin, or to end. A clone is `creating` until it may be used,
//! whether it has a process or not, and becomes `running` at once.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The state of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// Reserved; its disk and network are being made, or it is a clone that may not be used yet.
    Creating,
    /// Complete, never started.
    Created,
    /// Its process lives.
    Running,
    /// Its process lives, and the guest is halted until it is resumed.
    Paused,
    /// Its process has ended; the reason is recorded.
    Stopped,
    /// Its last start failed.
    Error,
    /// It is being removed; only removal can go on from here.
    Removing,
}

impl VmState {
    /// The state's name, as records and tables have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Error => "error",
            Self::Removing => "removing",
        }
    }

    /// Whether a start may be tried.
    pub fn may_start(self) -> bool {
        matches!(
            self,
            Self::Created | Self::Running | Self::Stopped | Self::Error
        )
    }

    /// Whether the VM has a process.
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }

    /// What is true of a VM whose record says `self`, given whether its process lives.
    #[must_use]
    pub fn observed(self, alive: bool) -> Self {
        if self.is_alive() && !alive {
            // The process died without being able to say so.
            Self::Stopped
        } else {
            self
        }
    }
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that names no state.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no state of a VM")]
pub struct UnknownState(String);

impl FromStr for VmState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        let all = [
            Self::Creating,
            Self::Created,
            Self::Running,
            Self::Paused,
            Self::Stopped,
            Self::Error,
            Self::Removing,
        ];
        all.into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownState(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_lock_overrules_the_record() {
        for (recorded, alive, observed) in [
            (VmState::Running, true, VmState::Running),
            (VmState::Running, false, VmState::Stopped),
            (VmState::Paused, true, VmState::Paused),
            (VmState::Paused, false, VmState::Stopped),
            (VmState::Created, true, VmState::Created),
            (VmState::Stopped, true, VmState::Stopped),
            (VmState::Error, false, VmState::Error),
            (VmState::Creating, false, VmState::Creating),
            (VmState::Removing, true, VmState::Removing),
        ] {
            assert_eq!(recorded.observed(alive), observed, "{recorded} {alive}");
        }
    }

    #[test]
    fn states_round_trip_through_their_names() {
        for name in [
            "creating", "created", "running", "paused", "stopped", "error", "removing",
        ] {
            assert_eq!(name.parse::<VmState>().unwrap().to_string(), name);
        }
        assert!("paws".parse::<VmState>().is_err());
    }
}
