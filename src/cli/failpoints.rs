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

use crate::sys::failpoint::{self, Points};

/// Arms this process, a command or the process of a VM.
pub(super) fn arm(is_vm: bool) {
    let prefix = if is_vm {
        "COCOON_VM_FAILPOINT"
    } else {
        "COCOON_FAILPOINT"
    };
    failpoint::arm(Points {
        kill: env::var(prefix).ok(),
        stop: env::var(format!("{prefix}_STOP")).ok(),
        list: env::var_os(format!("{prefix}_LIST")).map(Into::into),
    });
}
