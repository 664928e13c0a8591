//! Whether this host's KVM can run ordinary guests.
//!
//! A nested paravirtual KVM opens and creates VMs, but emulates the guest instruction by
//! instruction: a kernel prints for half a minute and dies. Its mark is a processor that shows
//! neither `svm` nor `vmx`.
//!
//! And what it costs to make a VM of it: some hosts take a hundred times as long as others.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the kernel offers KVM.
const DEVICE: &str = "/dev/kvm";

/// The stable KVM API, of Linux 2.6.22 and later.
const API_VERSION: i32 = 12;

/// Why guests cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The kernel offers no KVM.
    #[error("this host has no {DEVICE}")]
    Missing,
    /// The user may not use KVM.
    #[error("{DEVICE} may not be opened by this user")]
    Forbidden,
    /// KVM does not open.
    #[error("cannot open {DEVICE}")]
    Open(#[source] io::Error),
    /// KVM is not the one that this program knows.
    #[error("{DEVICE} speaks version {0} of its API, not {API_VERSION}")]
    Version(i32),
    /// KVM without hardware virtualization below it.
    #[error(
        "{DEVICE} is there, but the processor shows neither svm nor vmx: ordinary kernels do not run on such a KVM"
    )]
    Emulated,
}

/// Checks that KVM opens and speaks the known API, and, unless `ignore_emulated`, that hardware
/// virtualization is behind it.
///
/// # Errors
/// Guests cannot run here, and why.
pub fn check(ignore_emulated: bool) -> Result<(), KvmError> {
    let kvm = kvm_ioctls::Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Missing,
        libc::EACCES | libc::EPERM => KvmError::Forbidden,
        errno => KvmError::Open(io::Error::from_raw_os_error(errno)),
    })?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(KvmError::Version(version));
    }
    let cpuinfo = std::fs::read_to_string(Path::new("/proc/cpuinfo")).unwrap_or_default();
    if cfg!(target_arch = "x86_64") && !ignore_emulated && !has_virtualization(&cpuinfo) {
        return Err(KvmError::Emulated);
    }
    Ok(())
}

/// What KVM takes to make a VM and its first processor: medians of some tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Costs {
    /// Of `KVM_CREATE_VM`.
    pub create_vm: Duration,
    /// Of the first `KVM_CREATE_VCPU` of a VM that has its interrupt controllers.
    pub first_vcpu: Duration,
}

/// Tries of which the median is taken: one that the scheduler held up does not count, and all together
/// take a few milliseconds on a host in order.
const TRIES: usize = 5;

/// Makes some VMs of nothing, one after the other, and measures that.
///
/// # Errors
/// KVM does not open, or makes none.
pub fn costs() -> io::Result<Costs> {
    let kvm = kvm_ioctls::Kvm::new().map_err(of_kvm)?;
    let (mut vms, mut vcpus) = (Vec::new(), Vec::new());
    for _ in 0..TRIES {
        let begun = Instant::now();
        let vm = kvm.create_vm().map_err(of_kvm)?;
        vms.push(begun.elapsed());
        // The first processor waits for what the controllers have begun (their I/O buses' grace period).
        #[cfg(target_arch = "x86_64")]
        vm.create_irq_chip().map_err(of_kvm)?;
        let begun = Instant::now();
        let _vcpu = vm.create_vcpu(0).map_err(of_kvm)?;
        vcpus.push(begun.elapsed());
    }
    Ok(Costs {
        create_vm: median(vms),
        first_vcpu: median(vcpus),
    })
}

fn of_kvm(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Whether the first processor of `/proc/cpuinfo` shows `svm` or `vmx`. What cannot be read speaks
/// for nothing, so it does not refuse.
fn has_virtualization(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_none_or(|line| {
        line.split_ascii_whitespace()
            .any(|flag| matches!(flag, "svm" | "vmx"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_without_virtualization_is_told_by_its_flags() {
        for (cpuinfo, expected) in [
            ("flags\t\t: fpu svm nx\n", true),
            ("vendor_id : x\nflags\t: fpu vmx\n", true),
            ("flags\t\t: fpu nx hypervisor\n", false),
            ("flags\t\t: fpu svm_lock\n", false),
            ("", true),
        ] {
            assert_eq!(has_virtualization(cpuinfo), expected, "{cpuinfo}");
        }
    }

    #[test]
    fn one_slow_try_is_not_the_median() {
        let times = [3, 1, 900, 2, 4].map(Duration::from_millis).to_vec();
        assert_eq!(median(times), Duration::from_millis(3));
    }

    #[test]
    fn where_kvm_opens_its_costs_are_measured() {
        match costs() {
            Ok(costs) => assert!(costs.create_vm + costs.first_vcpu > Duration::ZERO),
            Err(error) => println!("SKIPPED: no VM can be made here: {error}"),
        }
    }
}
