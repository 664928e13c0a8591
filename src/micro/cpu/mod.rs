//! Virtual processors: what they say they are, how they start, their state as a whole.
//!
//! ```text
//!  cpuid        what KVM supports, as one socket of `count` cores without threads
//!  registers    the boot processor at the kernel's entry; the others wait for INIT and SIPI
//!  state        all of a vCPU, saved and set again; and one that joins those that were saved
//! ```
//! Invariants: a vCPU's number is its APIC id; guests do not see the host's virtualization (VMX, SVM),
//! so a vCPU has no nested state that would have to be saved.

mod cpuid;
mod registers;
pub(crate) mod state;

use kvm_bindings::{CpuId, kvm_fpu};
use kvm_ioctls::{Kvm, VcpuFd};

use super::boot::Entry;

/// Why a vCPU cannot be had as it is wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CpuError {
    /// KVM refuses.
    #[error("cannot {operation} of vCPU {vcpu}")]
    Kvm {
        /// The rest of the sentence.
        operation: &'static str,
        /// Number of the vCPU.
        vcpu: u32,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM does not say what it supports.
    #[error("cannot ask KVM for {what}")]
    Ask {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// More CPUID entries or MSRs than KVM takes.
    #[error("vCPU {vcpu} has {count} {what}; at most {limit} can be")]
    TooMany {
        /// Number of the vCPU.
        vcpu: u32,
        /// What there is too much of.
        what: &'static str,
        /// How many.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// The floating-point state is of another processor.
    #[error("vCPU {vcpu} was saved with {bytes} bytes of floating-point state; here it has {here}")]
    FloatingPointSize {
        /// Number of the vCPU.
        vcpu: u32,
        /// Bytes saved.
        bytes: usize,
        /// Bytes here.
        here: usize,
    },
    /// A register of a saved vCPU does not exist here.
    #[error("KVM does not take {value:#x} for MSR {index:#x} of vCPU {vcpu}")]
    Msr {
        /// Number of the vCPU.
        vcpu: u32,
        /// Number of the register.
        index: u32,
        /// Its saved value.
        value: u64,
    },
}

/// Makes an error of what KVM refused.
fn refused(operation: &'static str, vcpu: u32) -> impl FnOnce(kvm_ioctls::Error) -> CpuError {
    move |source| CpuError::Kvm {
        operation,
        vcpu,
        source,
    }
}

/// CPUID of vCPU `vcpu` of `count`.
///
/// # Errors
/// KVM does not say what it supports.
pub(crate) fn cpuid(kvm: &Kvm, vcpu: u32, count: u32) -> Result<CpuId, CpuError> {
    cpuid::of_vcpu(kvm, vcpu, count)
}

/// Makes a new vCPU ready to run: with an `entry` it starts a kernel there, without one it waits until
/// another processor starts it. The VM has its interrupt controllers already.
///
/// # Errors
/// KVM refuses something.
pub(crate) fn set_up(
    fd: &VcpuFd,
    number: u32,
    cpuid: &CpuId,
    entry: Option<&Entry>,
) -> Result<(), CpuError> {
    set_reset_state(fd, number, cpuid, 0)?;
    if let Some(entry) = entry {
        registers::set_entry(fd, number, entry)?;
    }
    Ok(())
}

/// What a processor has when its firmware leaves it, and what `tsc` says on its time stamp counter.
fn set_reset_state(fd: &VcpuFd, number: u32, cpuid: &CpuId, tsc: u64) -> Result<(), CpuError> {
    fd.set_cpuid2(cpuid)
        .map_err(refused("set the CPUID", number))?;
    registers::set_msrs(fd, number, tsc)?;
    let fpu = kvm_fpu {
        // As the processor's reset (Intel SDM volume 1, 8.1.5 and 11.6.4) would have them after FINIT.
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    };
    fd.set_fpu(&fpu)
        .map_err(refused("set the floating-point registers", number))?;
    registers::set_local_interrupts(fd, number)
}

#[cfg(test)]
mod tests;
