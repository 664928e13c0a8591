//! The Cloud Hypervisor engine: its crates, linked into cocoon and run in cocoon's own process.
//!
//! ```text
//!  VmSpec ──convert──▶ VmConfig
//!  saved folder ─saved, patch─▶ the same, for this spec
//!                         │ requests          ┌─ Cloud Hypervisor's threads, each under seccomp ─┐
//!  CloudMachine ──────────┴── client ───────▶ │ vmm   vcpu*  _disk* _net*  http-server  signals  │
//!       ▲ Event                               │ event-monitor       and a child process that     │
//!       │                                     └──────┬──────────────watches the terminal's size──┘
//!       │            ┌─ ours, unfiltered ─┐          │
//!       └─ life ◀────┤ ch-events  ch-join │◀─────────┘
//!                    └────────────────────┘
//! ```
//!
//! ## Invariants
//! - One VM per process, and one only: Cloud Hypervisor's event monitor can be set but once.
//! - The process needs no HTTP to steer its VM: requests are closures sent to the VMM thread. The
//!   API socket is there for Cloud Hypervisor's standard client.
//! - No thread of ours starts from a filtered one, so ours may do what they like, and those of
//!   Cloud Hypervisor do nothing for us but answer.
//! - Nothing outside of this package names Cloud Hypervisor.
//!
//! ## What its own client may do to the VM
//! `vm.shutdown` through the API socket ends the VM like the guest's own power-off. `vmm.shutdown`
//! looks like a failure of the engine, because nothing tells the two apart.

mod client;
mod command;
mod convert;
mod error;
mod life;
mod machine;
mod patch;
mod process;
mod saved;
mod terminal;
mod threads;

use std::path::Path;

use cocoon::vm::spec::{EngineName, VmSpec};
use cocoon::vmm::engine::{EngineError, Flag, Unsupported};
use cocoon::vmm::{Engine, Machine};

/// The tag of Cloud Hypervisor whose crates are linked. Stands also in `Cargo.toml`.
pub const VERSION: &str = "v53.0";

/// The Cloud Hypervisor engine.
#[derive(Clone, Copy, Debug)]
pub struct CloudHypervisor;

impl Engine for CloudHypervisor {
    fn name(&self) -> EngineName {
        EngineName::CloudHypervisor
    }

    fn version(&self) -> String {
        VERSION.to_owned()
    }

    fn boots_firmware(&self) -> bool {
        true
    }

    /// Its `resume` gives KVM's clock back what it showed at the pause.
    fn clock_outlives_pause(&self) -> bool {
        false
    }

    fn check(&self, spec: &VmSpec) -> Result<(), Unsupported> {
        convert::check(spec).map_err(|feature| Unsupported {
            engine: self.name(),
            feature,
        })
    }

    fn boot(&self, spec: &VmSpec) -> Result<Box<dyn Machine>, EngineError> {
        Ok(Box::new(machine::boot(spec)?))
    }

    fn restore(&self, spec: &VmSpec, from: &Path) -> Result<Box<dyn Machine>, EngineError> {
        Ok(Box::new(machine::restore(spec, from)?))
    }

    fn command_line(&self, spec: &VmSpec) -> Option<Vec<Flag>> {
        Some(command::flags(spec))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_crate_of_cloud_hypervisor_is_locked_at_the_version_we_claim() {
        let sources: Vec<&str> = include_str!("../Cargo.lock")
            .lines()
            .filter(|line| line.contains("cloud-hypervisor/cloud-hypervisor"))
            .collect();
        assert!(!sources.is_empty());
        for source in sources {
            assert!(source.contains(&format!("tag={VERSION}#")), "{source}");
        }
    }
}
