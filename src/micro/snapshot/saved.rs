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
use crate::micro::growth::{Growth, Room, Size};
use crate::micro::layout::MEMORY_SLOTS;
use crate::micro::memory::Pieces;
use crate::micro::virtio::mmio::state::TransportState;
use crate::vm::spec::{MEMORY_BLOCK, VmSpec};

/// Everything but RAM.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    pub(crate) memory: Pieces,
    /// What the guest was told of when it booted.
    pub(crate) room: Room,
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
    #[error("its memory is in pieces that no VM has")]
    Pieces,
    #[error("its guest has room for {room} CPUs, not {specified}, until it boots again")]
    CpuRoom { room: u32, specified: u32 },
    #[error(
        "its guest has no room for more memory until it boots again: {slots} slots, all in use"
    )]
    MemoryRoom { slots: u32 },
    #[error(
        "it cannot be given {bytes} bytes more of memory: memory comes in blocks of {MEMORY_BLOCK}"
    )]
    Block { bytes: u64 },
}

impl Saved {
    /// Checks that it is of a VM like `spec`'s, which has `transports` virtio devices; returns by how much
    /// that one is larger.
    ///
    /// # Errors
    /// What differs, and is no growth that the saved guest has room for.
    pub(crate) fn check(&self, spec: &VmSpec, transports: usize) -> Result<Growth, Misfit> {
        let watchdogs = [self.watchdog.is_some(), spec.watchdog].map(usize::from);
        for (what, saved, specified) in [
            ("devices", self.transports.len(), transports),
            ("watchdogs", watchdogs[0], watchdogs[1]),
        ] {
            if saved != specified {
                return Err(Misfit::Count {
                    what,
                    saved,
                    specified,
                });
            }
        }
        Ok(Growth {
            cpus: self.missing_cpus(spec)?,
            memory: self.missing_memory(spec)?,
        })
    }

    fn missing_cpus(&self, spec: &VmSpec) -> Result<u32, Misfit> {
        let specified = Size::of(spec).cpus;
        let saved = u32::try_from(self.vcpus.len()).unwrap_or(u32::MAX);
        let room = self.room.cpus;
        match specified.checked_sub(saved) {
            Some(0) => Ok(0),
            // Those of the boot are no growth.
            Some(missing) if missing <= spec.cpus.added => match specified <= room {
                true => Ok(missing),
                false => Err(Misfit::CpuRoom { room, specified }),
            },
            _ => Err(Misfit::Count {
                what: "CPUs",
                saved: self.vcpus.len(),
                specified: specified as usize,
            }),
        }
    }

    fn missing_memory(&self, spec: &VmSpec) -> Result<u64, Misfit> {
        let (saved, specified) = (self.memory.bytes(), Size::of(spec).memory);
        if !self.memory.are_sound() {
            return Err(Misfit::Pieces);
        }
        let slots = self.room.memory_slots;
        match specified.checked_sub(saved) {
            Some(0) => Ok(0),
            Some(bytes) if bytes <= spec.memory.added.bytes() => {
                if self.memory.plugged_count() >= slots.min(MEMORY_SLOTS) as usize {
                    return Err(Misfit::MemoryRoom { slots });
                }
                if !bytes.is_multiple_of(MEMORY_BLOCK.bytes()) {
                    return Err(Misfit::Block { bytes });
                }
                Ok(bytes)
            }
            _ => Err(Misfit::Memory { saved, specified }),
        }
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

    /// Of a VM like [`SPEC`]'s, with 6 devices, and room for 4 CPUs and more memory.
    fn saved(spec: &VmSpec) -> Saved {
        Saved {
            memory: spec.memory.size.into(),
            room: Room {
                cpus: 4,
                memory_slots: 8,
            },
            vcpus: (0..spec.cpus.boot).map(|_| zero()).collect(),
            watchdog: spec.watchdog.then(zero),
            transports: (0..6).map(|_| zero()).collect(),
            ..zero()
        }
    }

    type Change = fn(&mut VmSpec, &mut Saved);

    fn checked(change: Change) -> Result<Growth, String> {
        let mut spec: VmSpec = serde_json::from_str(SPEC).unwrap();
        let mut saved = saved(&spec);
        change(&mut spec, &mut saved);
        let checked = saved.check(&spec, 6);
        checked.map_err(|misfit| misfit.to_string())
    }

    fn add_memory(spec: &mut VmSpec, mib: u64) {
        spec.memory.added = ByteSize::from_mib(mib);
    }

    /// Pieces of these lengths: a number of the boot's, and a list.
    fn pieces(boot: u64, plugged: &[u64]) -> Pieces {
        postcard::from_bytes(&postcard::to_stdvec(&(boot, plugged)).unwrap()).unwrap()
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_more_than_was_saved_is_growth() {
        let cases: [(Change, u32, u64); 7] = [
            (|_, _| {}, 0, 0),
            (|spec, _| spec.cpus.added = 2, 2, 0),
            (|spec, _| add_memory(spec, 512), 0, 512),
            (
                |spec, saved| {
                    (spec.cpus.added, saved.vcpus) = (2, (0..3).map(|_| zero()).collect());
                    add_memory(spec, 512);
                    saved.memory = pieces(1024 * MIB, &[128 * MIB, 128 * MIB]);
                },
                1,
                256,
            ),
            // A VM that was saved after growing, as it is.
            (
                |spec, saved| {
                    (spec.cpus.added, saved.vcpus) = (2, (0..4).map(|_| zero()).collect());
                    add_memory(spec, 128);
                    saved.memory = pieces(1024 * MIB, &[128 * MIB]);
                },
                0,
                0,
            ),
            // One whose guest booted again after growing.
            (
                |spec, saved| {
                    add_memory(spec, 256);
                    saved.memory = ByteSize::from_mib(1024 + 128).into();
                },
                0,
                128,
            ),
            // All slots are in use, and it needs no more.
            (
                |spec, saved| {
                    add_memory(spec, 1024);
                    saved.memory = pieces(1024 * MIB, &[128 * MIB; 8]);
                },
                0,
                0,
            ),
        ];
        for (number, (change, cpus, mib)) in cases.into_iter().enumerate() {
            let memory = mib * MIB;
            assert_eq!(checked(change), Ok(Growth { cpus, memory }), "{number}");
        }
    }

    #[test]
    fn each_difference_that_is_no_growth_is_told() {
        let cases: [(Change, &str); 18] = [
            (
                |_, saved| saved.memory = ByteSize::from_bytes((1 << 30) + 1).into(),
                "it was saved with 1073741825 bytes of memory, not 1073741824",
            ),
            (
                |spec, _| spec.memory.size = ByteSize::from_mib(512),
                "it was saved with 1073741824 bytes of memory, not 536870912",
            ),
            (
                |spec, saved| {
                    add_memory(spec, 512);
                    saved.memory = ByteSize::from_mib(512).into();
                },
                "it was saved with 536870912 bytes of memory, not 1610612736",
            ),
            (
                |_, saved| saved.memory = pieces(1024 * MIB, &[128 * MIB]),
                "it was saved with 1207959552 bytes of memory, not 1073741824",
            ),
            (
                |_, saved| saved.memory = pieces(2, &[!(128 * MIB - 1)]),
                "it was saved with 18446744073575333890 bytes of memory, not 1073741824",
            ),
            (
                |_, saved| saved.memory = pieces(1023 * MIB, &[MIB]),
                "its memory is in pieces that no VM has",
            ),
            (
                |spec, _| spec.memory.added = ByteSize::from_bytes(4096),
                "it cannot be given 4096 bytes more of memory: memory comes in blocks of 128MiB",
            ),
            (
                |spec, saved| {
                    saved.room.memory_slots = 0;
                    add_memory(spec, 128);
                },
                "its guest has no room for more memory until it boots again: 0 slots, all in use",
            ),
            (
                |spec, saved| {
                    saved.room.memory_slots = u32::MAX;
                    saved.memory = pieces(1024 * MIB, &[128 * MIB; 8]);
                    add_memory(spec, 2048);
                },
                "its guest has no room for more memory until it boots again: 4294967295 slots, all in use",
            ),
            (
                |spec, _| spec.cpus.added = 3,
                "its guest has room for 4 CPUs, not 5, until it boots again",
            ),
            (
                |_, saved| drop(saved.vcpus.pop()),
                "it was saved with 1 CPUs, not 2",
            ),
            (
                |spec, saved| (spec.cpus.added, saved.vcpus) = (1, vec![zero()]),
                "it was saved with 1 CPUs, not 3",
            ),
            (
                |_, saved| saved.vcpus.push(zero()),
                "it was saved with 3 CPUs, not 2",
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
            assert_eq!(checked(change), Err(expected.to_owned()));
        }
    }
}
