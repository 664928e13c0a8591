//! At which step this process is to end, from the environment; see [`crate::sys::failpoint`]. No part of
//! the program that is shipped.
//!
//! ```text
//! COCOON_FAILPOINT=<step>             the command ends there, by SIGKILL
//! COCOON_FAILPOINT_STOP=<step>        it stands still there, by SIGSTOP
//! COCOON_FAILPOINT_LIST=<file>        gets a line for each step that the command reaches
//! COCOON_VM_FAILPOINT{,_STOP,_LIST}   the same for the VM process that the command starts
//! ```
//! Invariant: a command obeys the first three alone, a VM process the others alone, though it inherits
//! them all.

use std::env;

use super::Command;
use crate::sys::failpoint::{self, Points};

/// Arms this process.
pub(super) fn arm(command: &Command) {
    let prefix = match command {
        Command::Vmm(_) => "COCOON_VM_FAILPOINT",
        _ => "COCOON_FAILPOINT",
    };
    failpoint::arm(Points {
        kill: env::var(prefix).ok(),
        stop: env::var(format!("{prefix}_STOP")).ok(),
        list: env::var_os(format!("{prefix}_LIST")).map(Into::into),
    });
}
