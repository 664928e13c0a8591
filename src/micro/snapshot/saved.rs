//! The state of a whole VM at rest, and whether it fits a specification.
//!
//! Invariant: it is foreign input until each part has been checked: here against the specification,
//! and each device's and vCPU's by itself when it is made anew.

use serde::{Deserialize, Serialize};

use crate::micro::chip::ChipState;
use crate::micro::cpu::state::VcpuState;
use crate::micro::devices::power::persist::PowerState;
use crate::micro::devices::serial::persist::SerialState;
use crate::micro::devices::watchdog::persist::WatchdogState;
use crate::micro::virtio::mmio::state::TransportState;
use crate::units::ByteSize;
use crate::vm::spec::VmSpec;

/// Everything but RAM.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    /// Bytes of RAM.
    pub(crate) memory: u64,
    pub(crate) vcpus: Vec<VcpuState>,
    pub(crate) chips: ChipState,
    pub(crate) serial: SerialState,
    pub(crate) power: PowerState,
    pub(crate) watchdog: Option<WatchdogState>,
    /// In the order of their addresses.
    pub(crate) transports: Vec<TransportState>,
}

/// Why a saved state is not of such a VM as is specified.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misfit {
    #[error("it was saved with {saved} of memory, not {specified}")]
    Memory {
        saved: ByteSize,
        specified: ByteSize,
    },
    #[error("it was saved with {saved} {what}, not {specified}")]
    Count {
        what: &'static str,
        saved: usize,
        specified: usize,
    },
}

impl Saved {
    /// Checks that it is of a VM like `spec`'s, which has `transports` virtio devices.
    ///
    /// # Errors
    /// What differs.
    pub(crate) fn check(&self, spec: &VmSpec, transports: usize) -> Result<(), Misfit> {
        if self.memory != spec.memory.size.bytes() {
            return Err(Misfit::Memory {
                saved: ByteSize::from_bytes(self.memory),
                specified: spec.memory.size,
            });
        }
        for (what, saved, specified) in [
            ("CPUs", self.vcpus.len(), spec.cpus.boot as usize),
            ("devices", self.transports.len(), transports),
            (
                "watchdogs",
                usize::from(self.watchdog.is_some()),
                usize::from(spec.watchdog),
            ),
        ] {
            if saved != specified {
                return Err(Misfit::Count {
                    what,
                    saved,
                    specified,
                });
            }
        }
        Ok(())
    }
}
