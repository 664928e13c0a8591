//! What a vCPU says it is: KVM's supported CPUID, with the topology made the guest's.
//!
//! ```text
//!  leaf                     made
//!  1, b, 1f, 8000001e       APIC id = number of the vCPU
//!  1, 4, b, 1f              one socket, `count` cores, no threads; the last cache shared by all. Cores
//!                           that may come are counted: what was said of a socket stays true
//!  80000008, 8000001d, 1e   the same, as AMD says it
//!  1                        hypervisor; TSC deadline timer where KVM has it (it is not in the list)
//!  1, 80000001              no VMX, no SVM
//!  7, 1d, 1e                no AMX unless its state is permitted to this process
//!  80000002 … 4             the host's brand string
//!  40000000 …               KVM's own leaves, as they are
//! ```
//! Sources: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; Linux, Documentation/virt/kvm/api.rst
//! (`KVM_GET_SUPPORTED_CPUID`, `KVM_CAP_TSC_DEADLINE_TIMER`).

use std::arch::x86_64::__cpuid;

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm};

use super::CpuError;

/// Leaf 1, ECX.
const VMX: u32 = 1 << 5;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;

/// Leaf 1, EDX: the count of logical processors in EBX is valid.
const MULTI_THREADING: u32 = 1 << 28;

/// Leaf 80000001, ECX.
const CMP_LEGACY: u32 = 1 << 1;
const SVM: u32 = 1 << 2;

/// Leaf 7, EDX: tiles and what works on them.
const AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25;

/// Leaf 7.1, EAX and EDX.
const AMX_FP16: u32 = 1 << 21;
const AMX_COMPLEX: u32 = 1 << 8;

/// Leaf d, EAX: tile configuration and data may be enabled in XCR0.
const XCR0_TILES: u32 = 1 << 17 | 1 << 18;

/// The place of a vCPU among the others.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Its APIC id.
    id: u32,
    /// All of them, there or not.
    count: u32,
}

/// CPUID of vCPU `vcpu` of `count`.
pub(super) fn of_vcpu(kvm: &Kvm, vcpu: u32, count: u32) -> Result<CpuId, CpuError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(|source| CpuError::Ask {
            what: "the CPUID that it supports",
            source,
        })?;
    let place = Place { id: vcpu, count };
    let mut entries = supported.as_slice().to_vec();
    shape(
        &mut entries,
        place,
        kvm.check_extension(Cap::TscDeadlineTimer),
    );
    set_brand(&mut entries);
    CpuId::from_entries(&entries).map_err(|_| CpuError::TooMany {
        vcpu,
        what: "CPUID entries",
        count: entries.len(),
        limit: KVM_MAX_CPUID_ENTRIES,
    })
}

/// What vCPU `vcpu` says that joins one which says `peer`: the same but for who it is. So all of a VM
/// have the same features, wherever it was saved, and the same idea of their socket.
pub(super) fn of_joining(peer: &[kvm_cpuid_entry2], vcpu: u32) -> Vec<kvm_cpuid_entry2> {
    let mut entries = peer.to_vec();
    for entry in &mut entries {
        match entry.function {
            1 => entry.ebx = entry.ebx & 0xff_ffff | (vcpu & 0xff) << 24,
            0xb | 0x1f => entry.edx = vcpu,
            0x8000_001e => (entry.eax, entry.ebx) = (vcpu, entry.ebx & !0xff | vcpu & 0xff),
            _ => {}
        }
    }
    entries
}

impl Place {
    /// Bits of an APIC id that tell cores apart.
    fn bits(self) -> u32 {
        self.count.next_power_of_two().trailing_zeros()
    }

    /// The highest id that these bits can tell.
    fn highest(self) -> u32 {
        self.count.next_power_of_two() - 1
    }
}

/// Makes KVM's list that of one vCPU.
fn shape(entries: &mut Vec<kvm_cpuid_entry2>, place: Place, tsc_deadline: bool) {
    let amd = entries
        .iter()
        .any(|entry| entry.function == 0 && is_amd(entry));
    let tiles = |entry: &kvm_cpuid_entry2| {
        (entry.function, entry.index) == (0xd, 0) && entry.eax & XCR0_TILES == XCR0_TILES
    };
    let amx = entries.iter().any(tiles);
    // Newer than what is made here, and preferred by Linux: it would show the host's.
    entries.retain(|entry| entry.function != 0x8000_0026);
    for leaf in [0xb, 0x1f] {
        let had = entries.len();
        entries.retain(|entry| entry.function != leaf);
        if entries.len() < had {
            entries.extend(topology(leaf, place));
        }
    }
    for entry in entries {
        match (entry.function, entry.index) {
            (1, _) => set_features(entry, place, tsc_deadline),
            (4, _) => set_intel_cache(entry, place),
            (7, 0) if !amx => entry.edx &= !AMX,
            (7, 1) if !amx => {
                entry.eax &= !AMX_FP16;
                entry.edx &= !AMX_COMPLEX;
            }
            (0x1d | 0x1e, _) if !amx => set(entry, [0; 4]),
            (0x8000_0001, _) => {
                entry.ecx &= !(SVM | CMP_LEGACY);
                if amd && place.count > 1 {
                    entry.ecx |= CMP_LEGACY;
                }
            }
            (0x8000_0008, _) if amd => {
                // Cores less one, and the bits of an APIC id that tell them apart.
                entry.ecx = (place.count - 1).min(0xff) | place.bits() << 12;
            }
            (0x8000_001d, _) => set_amd_cache(entry, place),
            // One thread a core, one node.
            (0x8000_001e, _) => set(entry, [place.id, place.id & 0xff, 0, 0]),
            _ => {}
        }
    }
}

/// Whether leaf 0 names a processor that says its topology as AMD's do.
fn is_amd(leaf_0: &kvm_cpuid_entry2) -> bool {
    let name = [leaf_0.ebx, leaf_0.edx, leaf_0.ecx].map(u32::to_le_bytes);
    matches!(name.as_flattened(), b"AuthenticAMD" | b"HygonGenuine")
}

fn set(entry: &mut kvm_cpuid_entry2, registers: [u32; 4]) {
    [entry.eax, entry.ebx, entry.ecx, entry.edx] = registers;
}

/// Leaf 1.
fn set_features(entry: &mut kvm_cpuid_entry2, place: Place, tsc_deadline: bool) {
    let ids = (place.highest() + 1).min(0xff);
    entry.ebx = entry.ebx & 0xffff | ids << 16 | (place.id & 0xff) << 24;
    entry.ecx = entry.ecx & !VMX | HYPERVISOR;
    if tsc_deadline {
        entry.ecx |= TSC_DEADLINE;
    }
    if place.count > 1 {
        entry.edx |= MULTI_THREADING;
    } else {
        entry.edx &= !MULTI_THREADING;
    }
}

/// Leaf 4: one cache. The third level is shared by all, the others are a core's own.
fn set_intel_cache(entry: &mut kvm_cpuid_entry2, place: Place) {
    if entry.eax & 0x1f == 0 {
        return;
    }
    let level = entry.eax >> 5 & 7;
    let sharing = if level >= 3 { place.highest() } else { 0 };
    entry.eax = entry.eax & 0x3fff | sharing.min(0xfff) << 14 | place.highest().min(0x3f) << 26;
}

/// Leaf 8000001d: one cache, as above.
fn set_amd_cache(entry: &mut kvm_cpuid_entry2, place: Place) {
    if entry.eax & 0x1f == 0 {
        return;
    }
    let level = entry.eax >> 5 & 7;
    let sharing = if level >= 3 { place.count - 1 } else { 0 };
    entry.eax = entry.eax & 0x3fff | sharing.min(0xfff) << 14;
}

/// Leaves b and 1f: threads, cores, and the end of the list.
fn topology(leaf: u32, place: Place) -> [kvm_cpuid_entry2; 3] {
    const THREAD: u32 = 1 << 8;
    const CORE: u32 = 2 << 8;
    let level = |index, shift, processors, kind| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: index | kind,
        edx: place.id,
        ..Default::default()
    };
    [
        level(0, 0, 1, THREAD),
        level(1, place.bits(), place.count, CORE),
        level(2, 0, 0, 0),
    ]
}

/// Gives the vCPU the host's brand string, which KVM leaves out.
fn set_brand(entries: &mut Vec<kvm_cpuid_entry2>) {
    const BRAND: std::ops::RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;
    if __cpuid(0x8000_0000).eax < *BRAND.end() {
        return;
    }
    entries.retain(|entry| !BRAND.contains(&entry.function));
    entries.extend(BRAND.map(|function| {
        let leaf = __cpuid(function);
        let mut entry = kvm_cpuid_entry2 {
            function,
            ..Default::default()
        };
        set(&mut entry, [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]);
        entry
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let mut entry = kvm_cpuid_entry2 {
            function,
            index,
            ..Default::default()
        };
        set(&mut entry, registers);
        entry
    }

    fn vendor(name: &[u8; 12]) -> kvm_cpuid_entry2 {
        let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
        leaf(0, 0, [0x20, word(0), word(8), word(4)])
    }

    /// A host's list with all bits set where it matters.
    fn host(name: &[u8; 12]) -> Vec<kvm_cpuid_entry2> {
        let all = u32::MAX;
        vec![
            vendor(name),
            leaf(1, 0, [7, all, all & !HYPERVISOR & !TSC_DEADLINE, all]),
            leaf(4, 0, [0xfc00_4121, 1, 2, 3]),
            leaf(4, 3, [0xfc1f_c163, 1, 2, 3]),
            leaf(4, 4, [0; 4]),
            leaf(7, 0, [1, all, all, all]),
            leaf(0xb, 0, [1, 2, 0x100, 99]),
            leaf(0xd, 0, [0x7, 0, 0, 0]),
            leaf(0x8000_0001, 0, [0, 0, all, 0]),
            leaf(0x8000_0008, 0, [0x3030, 0, all, 0]),
            leaf(0x8000_001d, 3, [0x3fff_c163, 0, 0, 0]),
            leaf(0x8000_001e, 0, [9, 9, 9, 9]),
            leaf(0x8000_0026, 0, [9, 9, 9, 9]),
        ]
    }

    fn shaped(name: &[u8; 12], id: u32, count: u32) -> impl Fn(u32, u32) -> [u32; 4] {
        let mut entries = host(name);
        shape(&mut entries, Place { id, count }, true);
        move |function, index| {
            let found = |e: &&kvm_cpuid_entry2| (e.function, e.index) == (function, index);
            let entry = entries.iter().find(found);
            entry.map_or([u32::MAX; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
        }
    }

    #[test]
    fn ids_and_counts_are_the_guests() {
        for (id, count, bits) in [(0, 1, 0), (1, 2, 1), (2, 3, 2), (4, 6, 3), (63, 64, 6)] {
            let at = shaped(b"GenuineIntel", id, count);
            let [_, ebx, ecx, edx] = at(1, 0);
            assert_eq!(ebx, 0xffff | (1 << bits) << 16 | id << 24, "{count}");
            assert_eq!(ecx, !VMX);
            assert_eq!(edx & MULTI_THREADING != 0, count > 1);
            assert_eq!(at(0xb, 0), [0, 1, 0x100, id]);
            assert_eq!(at(0xb, 1), [bits, count, 0x201, id]);
            assert_eq!(at(0xb, 2), [0, 0, 2, id]);
            assert_eq!(at(0x1f, 0), [u32::MAX; 4], "a leaf that was not there");
            let highest = (1 << bits) - 1;
            assert_eq!(at(4, 0)[0], 0x121 | highest << 26);
            assert_eq!(at(4, 3)[0], 0x163 | highest << 14 | highest << 26);
            assert_eq!(at(4, 4), [0; 4]);
        }
    }

    #[test]
    fn amd_says_the_same_its_own_way() {
        for (id, count, bits) in [(0, 1, 0), (2, 3, 2), (15, 16, 4), (254, 255, 8)] {
            let at = shaped(b"AuthenticAMD", id, count);
            assert_eq!(at(0x8000_0008, 0)[2], (count - 1) | bits << 12);
            assert_eq!(at(0x8000_001d, 3)[0], 0x163 | (count - 1) << 14);
            assert_eq!(at(0x8000_001e, 0), [id, id, 0, 0]);
            let features = at(0x8000_0001, 0)[2];
            assert_eq!(features & SVM, 0);
            assert_eq!(features & CMP_LEGACY != 0, count > 1);
            assert_eq!(at(0x8000_0026, 0), [u32::MAX; 4]);
        }
        assert_eq!(shaped(b"GenuineIntel", 0, 4)(0x8000_0008, 0)[2], u32::MAX);
    }

    #[test]
    fn who_joins_says_what_it_would_have_said_from_the_beginning() {
        for (name, id, count) in [
            (b"GenuineIntel", 3, 4),
            (b"AuthenticAMD", 3, 8),
            (b"AuthenticAMD", 253, 254),
        ] {
            let [mut first, mut late] = [host(name), host(name)];
            shape(&mut first, Place { id: 0, count }, true);
            shape(&mut late, Place { id, count }, true);
            assert_eq!(of_joining(&first, id), late);
        }
    }

    #[test]
    fn amx_is_shown_only_where_its_state_is_permitted() {
        for (xcr0, shown) in [(7, false), (7 | XCR0_TILES, true), (7 | 1 << 17, false)] {
            let mut entries = host(b"GenuineIntel");
            entries[7].eax = xcr0;
            shape(&mut entries, Place { id: 0, count: 1 }, false);
            let seven = entries.iter().find(|entry| entry.function == 7).unwrap();
            assert_eq!(seven.edx & AMX == AMX, shown, "{xcr0:#x}");
            assert_eq!(seven.edx | AMX, u32::MAX, "{xcr0:#x}");
            let one = entries.iter().find(|entry| entry.function == 1).unwrap();
            assert_eq!(one.ecx & (HYPERVISOR | TSC_DEADLINE), HYPERVISOR);
        }
    }
}
