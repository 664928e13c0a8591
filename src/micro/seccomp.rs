//! What the threads that face the guest may ask of the kernel.
//!
//! ```text
//!  every thread     memory that is not executable, locks, its end, and saying why it ends
//!    vcpu           + KVM_RUN, a vCPU's state, what activating a device takes
//!    lane           + waiting for events, moving bytes between descriptors
//! ```
//! No list has `open`, `execve`, `clone`, `ptrace` or executable memory: a guest that takes over a
//! thread of its VM process has what the process has open, and gets no more. What a list lacks ends
//! the process with a line that says which call it was (`sys::seccomp`); so does a panic with
//! `RUST_BACKTRACE` set, after its message.
//!
//! Invariant: filters are compiled before the first thread starts and installed by each thread itself,
//! as its prologue.
//!
//! libc opens files of its own accord, to see how much memory its arenas may keep: so a process of a VM has one
//! arena, which does not (`sys::malloc`).
//!
//! Two things get around a filter: what io_uring does is not looked at (a ring that works only on
//! registered files and four kinds of requests is the disk's affair), and libc makes new processes
//! with all signals held back, so that attempt ends the process without the line.

mod calls;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::lane::Prologue;
use crate::sys::seccomp::{confine, name_forbidden_calls};
use calls::Call;

/// Filters cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeccompError {
    /// The list makes no filter.
    #[error("cannot compile the system call filter of {thread}")]
    Compile {
        /// Whose.
        thread: &'static str,
        /// Why.
        #[source]
        source: seccompiler::BackendError,
    },
    /// A forbidden call could not be told.
    #[error("cannot listen to forbidden system calls")]
    Listen(#[source] io::Error),
}

/// For the threads of vCPUs.
///
/// # Errors
/// None that is not this file's fault.
pub(crate) fn vcpu() -> Result<Prologue, SeccompError> {
    prologue("a vCPU's thread", &[calls::EVERY, calls::VCPU])
}

/// For I/O threads.
///
/// # Errors
/// None that is not this file's fault.
pub(crate) fn lane() -> Result<Prologue, SeccompError> {
    prologue("an I/O thread", &[calls::EVERY, calls::LANE])
}

fn prologue(thread: &'static str, lists: &[&[Call]]) -> Result<Prologue, SeccompError> {
    let compile = |source| SeccompError::Compile { thread, source };
    name_forbidden_calls().map_err(SeccompError::Listen)?;
    let filter = filter(lists).map_err(compile)?;
    Ok(Arc::new(move || confine(&filter, thread)))
}

/// Allows what is in `lists` and ends the process at anything else.
fn filter(lists: &[&[Call]]) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in lists.iter().copied().flatten() {
        rules
            .entry(call.number)
            .or_default()
            .extend(conditions(call)?);
    }
    SeccompFilter::new(
        rules,
        SeccompAction::Trap,
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?
    .try_into()
}

/// One rule for each value that the call's argument may have; none where it may have any.
fn conditions(call: &Call) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let Some(only) = &call.only else {
        return Ok(Vec::new());
    };
    let rule = |&value: &u32| {
        let operator = SeccompCmpOp::MaskedEq(only.mask.into());
        let length = SeccompCmpArgLen::Dword;
        let condition = SeccompCondition::new(only.argument, length, operator, value.into())?;
        SeccompRule::new(vec![condition])
    };
    only.values.iter().map(rule).collect()
}

#[cfg(test)]
mod tests;
