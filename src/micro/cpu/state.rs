//! All of a vCPU: saved from KVM, and set again in a new one.
//!
//! ```text
//!  save      mp_state ▸ regs sregs xsave xcrs debugregs lapic msrs ▸ events
//!  restore   cpuid ▸ tsc_khz ▸ mp_state regs sregs ▸ xcrs xsave debugregs ▸ lapic ▸ msrs ▸ events ▸ clock
//! ```
//! Why in these orders:
//! - asking for `mp_state` makes KVM take a pending INIT or SIPI, which changes the rest: it is first;
//! - CPUID decides which registers exist and which values they take;
//! - the frequency scales the TSC that the MSRs set;
//! - `sregs` hold the APIC base, which says whether and in which mode there is a local APIC: before it;
//! - the deadline timer's MSR is ignored unless the local APIC's timer is in deadline mode: MSRs after
//!   the local APIC, and the deadline after the TSC that it is measured by;
//! - setting registers drops what is being injected, so the events come last of these;
//! - the clock is told of the pause once the MSR with its page is set.
//!
//! A vCPU that joins the restored ones is as if it had been there from the beginning and never been
//! started: their CPUID and frequency, and their time, which KVM keeps in step when it is set within a
//! second of theirs.
//!
//! Invariants: a vCPU is saved between two runs, and none of its exits is half done (a run with
//! `immediate_exit` completes one). Sizes in a state that was read from a file are checked before KVM
//! sees them; values are KVM's to check.

#![expect(
    unsafe_code,
    reason = "the floating-point state is as long as KVM says"
)]

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MAX_MSR_ENTRIES, Msrs, Xsave, kvm_cpuid_entry2,
    kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::registers::lapic_register;
use super::{CpuError, cpuid, refused, set_reset_state};

/// MSRs of one vCPU that are read from a file; KVM lists some 120 of Linux 6.18.
const MAX_MSRS: usize = 1024;

/// Time stamp counter, and the deadline that is measured by it.
const TSC: u32 = 0x10;
const TSC_DEADLINE: u32 = 0x6e0;

/// The timer's entry in the local vector table, its mode, and the mode with a deadline.
const LVT_TIMER: usize = 0x320;
const TIMER_MODES: u32 = 3 << 17;
const DEADLINE_MODE: u32 = 2 << 17;

/// A frequency within this part of the saved one, 250 ppm, needs no scaling: Linux's own clock
/// correction covers it (as in Firecracker).
const FREQUENCY_TOLERANCE: u32 = 4000;

/// Memory type ranges, which older kernels leave out of their list: variable, fixed, default.
const MTRRS: [std::ops::RangeInclusive<u32>; 5] = [
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    0x2ff..=0x2ff,
];

/// All of a vCPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: Option<kvm_xcrs>,
    xsave: Vec<u32>,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

/// What there is to save of vCPUs of this VM.
#[derive(Clone, Debug)]
pub(crate) struct Extent {
    /// Bytes of floating-point state, where it may be more than the old 4 KiB.
    xsave2_bytes: Option<usize>,
    xcrs: bool,
    msrs: Vec<u32>,
}

impl Extent {
    /// Asks KVM.
    ///
    /// # Errors
    /// It does not say.
    pub(crate) fn ask(kvm: &Kvm, vm: &VmFd) -> Result<Self, CpuError> {
        let list = kvm.get_msr_index_list().map_err(|source| CpuError::Ask {
            what: "the MSRs that it saves",
            source,
        })?;
        let mut msrs = list.as_slice().to_vec();
        msrs.extend(MTRRS.into_iter().flatten());
        msrs.sort_unstable();
        msrs.dedup();
        let xsave2_bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        Ok(Self {
            xsave2_bytes: (xsave2_bytes > 0).then_some(xsave2_bytes),
            xcrs: kvm.check_extension(Cap::Xcrs),
            msrs,
        })
    }

    fn xsave_bytes(&self) -> usize {
        self.xsave2_bytes.unwrap_or(size_of::<kvm_xsave>())
    }

    /// Room for the floating-point state.
    fn empty_xsave(&self) -> Result<Xsave, kvm_ioctls::Error> {
        let extra = self.xsave_bytes().saturating_sub(size_of::<kvm_xsave>());
        Xsave::new(extra.div_ceil(size_of::<u32>())).map_err(|_| too_long())
    }
}

/// Saves vCPU `number`, which does not run.
///
/// # Errors
/// KVM refuses something.
pub(crate) fn save(fd: &VcpuFd, number: u32, extent: &Extent) -> Result<VcpuState, CpuError> {
    let read = |what| refused(what, number);
    Ok(VcpuState {
        mp_state: fd.get_mp_state().map_err(read("read the run state"))?,
        regs: fd.get_regs().map_err(read("read the registers"))?,
        sregs: fd.get_sregs().map_err(read("read the special registers"))?,
        xsave: get_xsave(fd, extent).map_err(read("read the floating-point state"))?,
        xcrs: extent
            .xcrs
            .then(|| fd.get_xcrs())
            .transpose()
            .map_err(read("read the extended control registers"))?,
        debug_regs: fd
            .get_debug_regs()
            .map_err(read("read the debug registers"))?,
        lapic: fd.get_lapic().map_err(read("read the local APIC"))?,
        msrs: get_msrs(fd, &extent.msrs).map_err(read("read the MSRs"))?,
        cpuid: fd
            .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
            .map_err(read("read the CPUID"))?
            .as_slice()
            .to_vec(),
        tsc_khz: fd.get_tsc_khz().map_err(read("read the TSC frequency"))?,
        events: fd
            .get_vcpu_events()
            .map_err(read("read the pending events"))?,
    })
}

/// Makes new vCPU `number` what `state` says.
///
/// # Errors
/// A size in it is none that can be, or KVM refuses something.
pub(crate) fn restore(
    fd: &VcpuFd,
    number: u32,
    extent: &Extent,
    state: &VcpuState,
) -> Result<(), CpuError> {
    check(number, extent, state)?;
    let set = |what| refused(what, number);
    fd.set_cpuid2(&list(&state.cpuid, number)?)
        .map_err(set("set the CPUID"))?;
    set_frequency(fd, number, state.tsc_khz)?;
    fd.set_mp_state(state.mp_state)
        .map_err(set("set the run state"))?;
    fd.set_regs(&state.regs).map_err(set("set the registers"))?;
    fd.set_sregs(&state.sregs)
        .map_err(set("set the special registers"))?;
    if let Some(xcrs) = state.xcrs.as_ref().filter(|_| extent.xcrs) {
        fd.set_xcrs(xcrs)
            .map_err(set("set the extended control registers"))?;
    }
    set_xsave(fd, extent, &state.xsave).map_err(set("set the floating-point state"))?;
    fd.set_debug_regs(&state.debug_regs)
        .map_err(set("set the debug registers"))?;
    fd.set_lapic(&state.lapic)
        .map_err(set("set the local APIC"))?;
    set_msrs(fd, number, &in_order(&state.msrs, &state.lapic))?;
    fd.set_vcpu_events(&state.events)
        .map_err(set("set the pending events"))?;
    // Tells the guest's watchdogs of the pause; a guest without KVM's clock cannot be told.
    let _ = fd.kvmclock_ctrl();
    Ok(())
}

/// Makes new vCPU `number` one that joins those of which `peer` is one, whose state has been restored. It
/// waits for INIT and SIPI, as all processors do that the guest has not started.
///
/// # Errors
/// KVM refuses something.
pub(crate) fn join(fd: &VcpuFd, number: u32, peer: &VcpuState) -> Result<(), CpuError> {
    set_frequency(fd, number, peer.tsc_khz)?;
    let cpuid = cpuid::of_joining(&peer.cpuid, number);
    let now = peer.msrs.iter().find(|msr| msr.index == TSC);
    let now = now.map_or(0, |msr| msr.data);
    set_reset_state(fd, number, &list(&cpuid, number)?, now)
}

fn list(cpuid: &[kvm_cpuid_entry2], vcpu: u32) -> Result<CpuId, CpuError> {
    CpuId::from_entries(cpuid).map_err(|_| CpuError::TooMany {
        vcpu,
        what: "CPUID entries",
        count: cpuid.len(),
        limit: KVM_MAX_CPUID_ENTRIES,
    })
}

fn set_frequency(fd: &VcpuFd, vcpu: u32, saved_khz: u32) -> Result<(), CpuError> {
    let here = fd
        .get_tsc_khz()
        .map_err(refused("read the TSC frequency", vcpu))?;
    if needs_scaling(saved_khz, here) {
        fd.set_tsc_khz(saved_khz)
            .map_err(refused("set the TSC frequency", vcpu))?;
    }
    Ok(())
}

/// Checks the sizes of a state that may come from a file.
fn check(vcpu: u32, extent: &Extent, state: &VcpuState) -> Result<(), CpuError> {
    for (what, count, limit) in [
        ("CPUID entries", state.cpuid.len(), KVM_MAX_CPUID_ENTRIES),
        ("MSRs", state.msrs.len(), MAX_MSRS),
    ] {
        if count > limit {
            return Err(CpuError::TooMany {
                vcpu,
                what,
                count,
                limit,
            });
        }
    }
    let bytes = state.xsave.len().saturating_mul(size_of::<u32>());
    let here = extent.xsave_bytes().next_multiple_of(size_of::<u32>());
    if bytes != here {
        return Err(CpuError::FloatingPointSize { vcpu, bytes, here });
    }
    Ok(())
}

/// Whether a TSC of `saved` kHz must be scaled on a host with one of `here`.
fn needs_scaling(saved: u32, here: u32) -> bool {
    saved.abs_diff(here) > saved / FREQUENCY_TOLERANCE
}

fn get_xsave(fd: &VcpuFd, extent: &Extent) -> Result<Vec<u32>, kvm_ioctls::Error> {
    if extent.xsave2_bytes.is_none() {
        return fd.get_xsave().map(|xsave| xsave.region.to_vec());
    }
    let mut xsave = extent.empty_xsave()?;
    // SAFETY: it is as long as KVM says that the state is.
    unsafe { fd.get_xsave2(&mut xsave)? };
    let region = xsave.as_fam_struct_ref().xsave.region;
    Ok([&region, xsave.as_slice()].concat())
}

/// Sets `words`, whose length has been checked.
fn set_xsave(fd: &VcpuFd, extent: &Extent, words: &[u32]) -> Result<(), kvm_ioctls::Error> {
    let mut xsave = extent.empty_xsave()?;
    let extra = xsave.as_mut_slice();
    let (old, new) = words.split_at(words.len() - extra.len());
    extra.copy_from_slice(new);
    let mut region = [0; 1024];
    region.copy_from_slice(old);
    // SAFETY: the region is set whole; the length stays.
    unsafe { xsave.as_mut_fam_struct() }.xsave.region = region;
    // SAFETY: it is as long as KVM says that the state is.
    unsafe { fd.set_xsave2(&xsave) }
}

/// As KVM itself says of a list that it does not take.
fn too_long() -> kvm_ioctls::Error {
    kvm_ioctls::Error::new(libc::E2BIG)
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}

/// All MSRs of `indices` that can be read.
fn get_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, kvm_ioctls::Error> {
    let mut found = Vec::with_capacity(indices.len());
    let mut left = indices;
    while !left.is_empty() {
        let chunk = &left[..left.len().min(KVM_MAX_MSR_ENTRIES)];
        let entries: Vec<_> = chunk.iter().map(|index| entry(*index, 0)).collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| too_long())?;
        let read = fd.get_msrs(&mut msrs)?;
        found.extend_from_slice(&msrs.as_slice()[..read]);
        // KVM stops at the first that it cannot read: it is left out.
        left = &left[chunk.len().min(read + 1)..];
    }
    Ok(found)
}

/// The saved MSRs in the order to set them: the deadline last. A deadline of zero is a timer that has
/// fired or was never armed; fired may mean that the interrupt was not taken yet and is lost, and a
/// guest that waits for it hangs. So it fires again, at once: one interrupt too many harms nobody.
fn in_order(msrs: &[kvm_msr_entry], lapic: &kvm_lapic_state) -> Vec<kvm_msr_entry> {
    let is_deadline = |msr: &kvm_msr_entry| msr.index == TSC_DEADLINE;
    let (deadline, mut ordered): (Vec<_>, Vec<_>) = msrs.iter().copied().partition(is_deadline);
    let now = msrs.iter().find(|msr| msr.index == TSC);
    let in_use = lapic_register(lapic, LVT_TIMER) & TIMER_MODES == DEADLINE_MODE;
    ordered.extend(deadline.into_iter().map(|msr| match now {
        Some(now) if msr.data == 0 && in_use => entry(TSC_DEADLINE, now.data),
        _ => msr,
    }));
    ordered
}

/// Sets all MSRs. One that KVM does not take is no loss where it has the value already, or had never
/// been used; else it is an error.
fn set_msrs(fd: &VcpuFd, vcpu: u32, msrs: &[kvm_msr_entry]) -> Result<(), CpuError> {
    let mut left = msrs;
    while !left.is_empty() {
        let chunk = &left[..left.len().min(KVM_MAX_MSR_ENTRIES)];
        let set = Msrs::from_entries(chunk)
            .map_err(|_| too_long())
            .and_then(|msrs| fd.set_msrs(&msrs))
            .map_err(refused("set the MSRs", vcpu))?;
        if let Some(refused_msr) = chunk.get(set) {
            let kvm_bindings::kvm_msr_entry { index, data, .. } = *refused_msr;
            let has = get_msrs(fd, &[index]).map_err(refused("read the MSRs", vcpu))?;
            if data != 0 && has.first().map(|msr| msr.data) != Some(data) {
                return Err(CpuError::Msr {
                    vcpu,
                    index,
                    value: data,
                });
            }
            tracing::debug!(vcpu, index, data, "an MSR cannot be set, and need not be");
        }
        left = &left[chunk.len().min(set + 1)..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    impl VcpuState {
        /// The state without what changes by itself.
        pub(in crate::micro::cpu) fn without_time(&self) -> Self {
            let mut state = self.clone();
            // The second is Hyper-V's reference counter, where KVM lists it.
            state
                .msrs
                .retain(|msr| !matches!(msr.index, TSC | 0x4000_0020));
            state
        }

        /// The state with four times `word` in an SSE register, and SSE marked as in use (Intel SDM
        /// volume 1, 13.4).
        pub(in crate::micro::cpu) fn with_xmm(mut self, register: usize, word: u32) -> Self {
            self.xsave[40 + register * 4..][..4].fill(word);
            self.xsave[128] |= 2;
            self
        }

        pub(in crate::micro::cpu) fn tsc(&self) -> u64 {
            let tsc = self.msrs.iter().find(|msr| msr.index == TSC);
            tsc.unwrap().data
        }

        /// Leaf 1 holds the id, too, and a flag that follows CR4.
        pub(in crate::micro::cpu) fn cpuid_but_for_the_id(&self) -> Vec<kvm_cpuid_entry2> {
            const OSXSAVE: u32 = 1 << 27;
            let mut entries = cpuid::of_joining(&self.cpuid, 0);
            let features = entries.iter_mut().find(|entry| entry.function == 1);
            features.unwrap().ecx &= !OSXSAVE;
            entries
        }

        pub(in crate::micro::cpu) fn has_msr(&self, index: u32, value: u64) -> bool {
            let same = |msr: &kvm_msr_entry| (msr.index, msr.data) == (index, value);
            self.msrs.iter().any(same)
        }

        pub(in crate::micro::cpu) fn with_msr(&self, index: u32, value: u64) -> Self {
            let mut state = self.clone();
            state.msrs.push(entry(index, value));
            state
        }

        /// States that no save can make, and what is said of them.
        pub(in crate::micro::cpu) fn of_impossible_sizes(&self) -> Vec<(Self, &'static str)> {
            let changed = |change: fn(&mut Self)| {
                let mut state = self.clone();
                change(&mut state);
                state
            };
            vec![
                (
                    changed(|state| state.cpuid.resize(257, Default::default())),
                    "257 CPUID entries",
                ),
                (
                    changed(|state| state.msrs.resize(1025, entry(TSC, 0))),
                    "1025 MSRs",
                ),
                (
                    changed(|state| state.xsave.push(0)),
                    "bytes of floating-point state",
                ),
                (changed(|state| state.xsave.clear()), "saved with 0 bytes"),
            ]
        }
    }

    #[test]
    fn frequencies_that_nearly_agree_are_not_scaled() {
        for (saved, here, expected) in [
            (2_000_000, 2_000_000, false),
            (2_000_000, 2_000_500, false),
            (2_000_000, 2_000_501, true),
            (2_000_000, 1_999_499, true),
            (0, 0, false),
            (0, 1, true),
        ] {
            assert_eq!(needs_scaling(saved, here), expected, "{saved} {here}");
        }
    }

    #[test]
    fn the_deadline_is_set_last_and_fires_again_only_where_the_timer_is_in_use() {
        let lapic = |mode: u32| {
            let mut lapic = kvm_lapic_state::default();
            lapic.regs[LVT_TIMER + 2] = i8::try_from(mode >> 16).unwrap();
            lapic
        };
        for (mode, saved, expected) in [
            (DEADLINE_MODE, 0, 500),
            (DEADLINE_MODE, 700, 700),
            (1 << 17, 0, 0),
            (0, 0, 0),
        ] {
            let msrs = [entry(TSC_DEADLINE, saved), entry(TSC, 500), entry(1, 2)];
            let ordered = in_order(&msrs, &lapic(mode));
            let all = [entry(TSC, 500), entry(1, 2), entry(TSC_DEADLINE, expected)];
            assert_eq!(ordered, all, "{mode:#x} {saved}");
        }
    }
}
