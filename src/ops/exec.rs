//! `vm exec`: a command in a running VM, by its agent.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use cocoon_agent::protocol::Exec;

use super::{Error, Host, first_boot, list};
use crate::agent::{Agent, AgentError, ExecEnd, Session};
use crate::units::{VmId, VmName};
use crate::vm::{VmRecord, VmState};

/// Runs a command in a VM, and returns how it ended. An agent that does not listen yet is waited for.
///
/// # Errors
/// The VM does not run, no agent answers in it, or the command cannot be run.
pub fn exec(
    host: &Host,
    id: VmId,
    command: Exec,
    session: &Session<'_>,
    patience: Duration,
) -> Result<ExecEnd, Error> {
    let (vm, agent) = agent(host, id, session.stop)?;
    let end = agent
        .exec(command, session, patience)
        .map_err(|source| failed(vm.name.clone(), source))?;
    first_boot::ask(host, &vm, &agent);
    Ok(end)
}

/// A VM that runs, and its agent.
pub(super) fn agent<'a>(
    host: &Host,
    id: VmId,
    stop: BorrowedFd<'a>,
) -> Result<(VmRecord, Agent<'a>), Error> {
    let vm = list::get(host, id)?.record;
    if vm.state != VmState::Running {
        return Err(Error::NotRunning(vm.name));
    }
    let agent = Agent::new(&host.layout.vm(id).vsock_socket(), stop);
    Ok((vm, agent))
}

pub(super) fn failed(name: VmName, source: AgentError) -> Error {
    match source {
        AgentError::Interrupted => Error::Interrupted,
        source => Error::Agent { name, source },
    }
}
