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
    // In bytes, where people would read the same number twice otherwise.
    #[error("it was saved with {saved} bytes of memory, not {specified}")]
    Memory { saved: u64, specified: u64 },
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
        let (saved, specified) = (self.memory, spec.memory.size.bytes());
        if saved != specified {
            return Err(Misfit::Memory { saved, specified });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::ByteSize;
    use serde::de::DeserializeOwned;

    /// What `ops::start` writes for a VM with two layers and a NIC.
    const SPEC: &str = include_str!("../../../vmm-glue/tests/golden/oci.spec.json");

    /// To postcard, zeroes are numbers that are 0 and lists that are empty.
    fn zero<T: DeserializeOwned>() -> T {
        let (zero, _) = postcard::take_from_bytes(&[0; 16 << 10]).unwrap();
        zero
    }

    /// Of a VM like [`SPEC`]'s, with 6 devices.
    fn saved(spec: &VmSpec) -> Saved {
        Saved {
            memory: spec.memory.size.bytes(),
            vcpus: (0..spec.cpus.boot).map(|_| zero()).collect(),
            watchdog: spec.watchdog.then(zero),
            transports: (0..6).map(|_| zero()).collect(),
            ..zero()
        }
    }

    #[test]
    fn each_difference_between_what_was_saved_and_specified_is_told() {
        type Change = fn(&mut VmSpec, &mut Saved);
        let cases: [(Change, &str); 9] = [
            (|_, _| {}, ""),
            (
                |_, saved| saved.memory += 1,
                "it was saved with 1073741825 bytes of memory, not 1073741824",
            ),
            (
                |spec, _| spec.memory.size = ByteSize::from_mib(512),
                "it was saved with 1073741824 bytes of memory, not 536870912",
            ),
            (
                |_, saved| drop(saved.vcpus.pop()),
                "it was saved with 1 CPUs, not 2",
            ),
            (
                |spec, _| spec.cpus.boot = 1,
                "it was saved with 2 CPUs, not 1",
            ),
            (
                |_, saved| saved.transports.push(zero()),
                "it was saved with 7 devices, not 6",
            ),
            (
                |_, saved| drop(saved.transports.pop()),
                "it was saved with 5 devices, not 6",
            ),
            (
                |_, saved| saved.watchdog = None,
                "it was saved with 0 watchdogs, not 1",
            ),
            (
                |spec, _| spec.watchdog = false,
                "it was saved with 1 watchdogs, not 0",
            ),
        ];
        for (change, expected) in cases {
            let mut spec: VmSpec = serde_json::from_str(SPEC).unwrap();
            let mut saved = saved(&spec);
            change(&mut spec, &mut saved);
            let said = saved.check(&spec, 6).err();
            let said = said.map(|misfit| misfit.to_string());
            assert_eq!(said.unwrap_or_default(), expected);
        }
    }
}
