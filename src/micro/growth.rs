//! How a VM grows: what it has, how far it may grow, and by how much it does.
//!
//! ```text
//!  spec.max ──▶ Room ── the guest's boot ─▶ ACPI tables, CPUID: fixed until it boots again
//!                └ saved with it
//!  spec.boot + spec.added ──▶ Size ── less what was saved ──▶ Growth ── restore ─▶ plugged in, and told
//! ```
//! A VM grows only while it is restored, as nothing of its process knows another size than the one it was
//! made with. What was plugged in stays: a guest that boots again boots with all of it, its memory in one,
//! and has all its slots again.
//!
//! A limit that is Linux's: with 64 GiB or more at its boot it chooses blocks of up to 2 GiB, by what its
//! RAM's end is a multiple of, and refuses memory that is no multiple of those.

use serde::{Deserialize, Serialize};

use super::layout::MEMORY_SLOTS;
use crate::vm::spec::VmSpec;

/// What a VM has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// Processors, those of the boot and those that were added.
    pub(crate) cpus: u32,
    /// Bytes of RAM, likewise.
    pub(crate) memory: u64,
}

impl Size {
    /// The size of `spec`'s VM.
    pub(crate) fn of(spec: &VmSpec) -> Self {
        let (size, added) = (spec.memory.size.bytes(), spec.memory.added.bytes());
        Self {
            cpus: spec.cpus.boot.saturating_add(spec.cpus.added),
            memory: size.saturating_add(added),
        }
    }
}

/// To which size a VM may grow before its guest boots again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Room {
    /// Processors that the guest was told of, there or not.
    pub(crate) cpus: u32,
    /// Pieces of memory for which it was told of a place, filled or not.
    pub(crate) memory_slots: u32,
}

impl Room {
    /// The room that a guest is told of which boots in `spec`'s VM. Room that nobody is to use is none:
    /// Linux keeps tables for each processor that may come.
    pub(crate) fn of(spec: &VmSpec) -> Self {
        let size = Size::of(spec);
        let grows = spec.memory.max.bytes() > size.memory;
        Self {
            cpus: spec.cpus.max.max(size.cpus),
            memory_slots: if grows { MEMORY_SLOTS } else { 0 },
        }
    }
}

/// By how much a VM grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Growth {
    /// Processors.
    pub(crate) cpus: u32,
    /// Bytes of RAM.
    pub(crate) memory: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::ByteSize;

    #[test]
    fn room_is_what_the_specification_leaves_above_the_size() {
        let golden = include_str!("../../vmm-glue/tests/golden/oci.spec.json");
        // Of CPUs: boot, added, max; of memory in MiB: size, added, max.
        for (cpus, memory, size, room) in [
            ((2, 0, 8), (1024, 0, 0), (2, 1024), (8, 0)),
            ((2, 0, 2), (1024, 0, 1024), (2, 1024), (2, 0)),
            ((2, 0, 0), (1024, 0, 1025), (2, 1024), (2, 8)),
            ((2, 3, 8), (1024, 512, 2048), (5, 1536), (8, 8)),
            ((2, 6, 8), (1024, 1024, 2048), (8, 2048), (8, 0)),
        ] {
            let mut spec: VmSpec = serde_json::from_str(golden).unwrap();
            (spec.cpus.boot, spec.cpus.added, spec.cpus.max) = cpus;
            spec.memory.size = ByteSize::from_mib(memory.0);
            spec.memory.added = ByteSize::from_mib(memory.1);
            spec.memory.max = ByteSize::from_mib(memory.2);
            let has = Size::of(&spec);
            assert_eq!((has.cpus, has.memory >> 20), size, "{cpus:?} {memory:?}");
            let has = Room::of(&spec);
            assert_eq!((has.cpus, has.memory_slots), room, "{cpus:?} {memory:?}");
        }
    }
}
