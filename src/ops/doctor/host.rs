//! The machine: who asks, the processor, KVM and what a VM of it costs, memory.
//!
//! Where a VM is slow to make, two settings are the known causes, and both are harmless where it is not:
//! so they are looked at always, and warned of only then. Sources: Firecracker,
//! `docs/prod-host-setup.md`, "Linux 6.1 boot time regressions" (both, with their remedies); Linux,
//! `Documentation/admin-guide/kernel-parameters.txt` (`kvm.nx_huge_pages`, `cgroup_favordynmods`) and
//! `Documentation/admin-guide/cgroup-v2.rst` (`favordynmods`).

use std::fs;
use std::io;
use std::time::Duration;

use super::{Finding, line};
use crate::config::Config;
use crate::sys::cpu::HostCpu;
use crate::sys::kvm::{self, Costs, KvmError};
use crate::sys::{hugepages, userfaultfd};
use crate::units::ByteSize;

/// What is slow: a healthy host makes a VM, or a processor, in 0.1 to 0.3 ms, and a clone has 10 ms
/// for everything; the known regressions cost 5 to 50 ms.
const SLOW: Duration = Duration::from_millis(2);

/// Every check of this file.
pub(super) fn check(config: &Config) -> Vec<Finding> {
    let cpu = HostCpu::of_this_host().unwrap_or_default();
    let opened = kvm::check(config.ignore_kvm_check);
    // What cannot be opened cannot be measured, either; what is emulated can.
    let costs = kvm::costs();
    let slow = costs.as_ref().is_ok_and(|costs| costs.create_vm >= SLOW);
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    vec![
        user(rustix::process::geteuid().is_root()),
        processor(&cpu, config.ignore_kvm_check),
        usable(&opened),
        cost("kvm-create-vm", "VM", &costs, |costs| costs.create_vm),
        cost("kvm-create-vcpu", "VM's first processor", &costs, |costs| {
            costs.first_vcpu
        }),
        nx_huge_pages(
            setting("/sys/module/kvm/parameters/nx_huge_pages").as_deref(),
            setting("/sys/devices/system/cpu/vulnerabilities/itlb_multihit").as_deref(),
            slow,
        ),
        favordynmods(cgroups(&mounts), slow),
        faults(&userfaultfd::probe()),
        huge_pages(
            ByteSize::from_bytes(hugepages::free_bytes()),
            ByteSize::from_bytes(hugepages::pool_bytes()),
        ),
    ]
}

fn setting(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn user(is_root: bool) -> Finding {
    let name = "root-user";
    if is_root {
        return Finding::pass(name, "this is root");
    }
    Finding::warn(
        name,
        "this is not root: commands that make VMs will refuse, and some checks cannot look",
        "run cocoon as root, for example by sudo",
    )
}

fn processor(cpu: &HostCpu, ignore: bool) -> Finding {
    let name = "cpu-virtualization";
    let found = ["vmx", "svm"].iter().find(|f| cpu.features.contains(**f));
    let says = "the processor shows neither svm nor vmx";
    let fix = "enable virtualization in the firmware, or nested virtualization on the host that runs this one";
    match found {
        Some(feature) => Finding::pass(name, format!("the processor shows {feature}")),
        // Other processors do not show it among their features; whether KVM opens tells.
        None if !cfg!(target_arch = "x86_64") => Finding::pass(name, "see kvm"),
        None if ignore => Finding::warn(name, says, fix),
        None => Finding::fail(name, says, fix),
    }
}

fn usable(opened: &Result<(), KvmError>) -> Finding {
    let name = "kvm";
    let Err(error) = opened else {
        return Finding::pass(name, "/dev/kvm opens, and can run ordinary guests");
    };
    let fix = match error {
        KvmError::Missing => {
            "enable virtualization in the firmware, and load the module (cocoon doctor --fix, or: modprobe kvm_intel or kvm_amd)"
        }
        KvmError::Forbidden => "run cocoon as root, or as a member of the device's group (kvm)",
        KvmError::Emulated => {
            "use a host with hardware or nested virtualization; to try all the same: COCOON_IGNORE_KVM_CHECK=1"
        }
        KvmError::Open(_) | KvmError::Version(_) => "use a Linux host with a working KVM",
    };
    Finding::fail(name, line(error), fix)
}

fn cost(
    name: &'static str,
    what: &str,
    costs: &io::Result<Costs>,
    which: impl Fn(&Costs) -> Duration,
) -> Finding {
    let costs = match costs {
        Ok(costs) => costs,
        Err(error) => {
            let says = format!("not measured, since KVM makes no VM: {error}");
            return Finding::warn(name, says, "see kvm");
        }
    };
    let took = which(costs);
    let says = format!(
        "KVM makes a {what} in {:.2} ms (median)",
        took.as_secs_f64() * 1e3
    );
    if took < SLOW {
        return Finding::pass(name, says);
    }
    let says = format!(
        "{says}, a healthy host in less than {} ms",
        SLOW.as_millis()
    );
    Finding::warn(
        name,
        says,
        "see nx-huge-pages and favordynmods; or the host has a slow timer (CONFIG_HZ=100) or is busy",
    )
}

/// Unless it is `never`, each VM has a thread that puts huge pages together again, whose start waits for
/// the control groups' lock (at the latest when its first processor runs, from Linux 6.13 on).
fn nx_huge_pages(setting: Option<&str>, multihit: Option<&str>, slow: bool) -> Finding {
    let name = "nx-huge-pages";
    let is_needed = multihit.is_some_and(|text| text != "Not affected");
    match setting {
        None => Finding::pass(name, "this KVM does not have it"),
        Some("never") => Finding::pass(name, "it is off for good"),
        Some(value) if is_needed => Finding::pass(
            name,
            format!("it is {value}; this processor needs it (iTLB multihit)"),
        ),
        Some(value) if !slow => {
            Finding::pass(name, format!("it is {value}, at no cost that is seen"))
        }
        Some(value) => Finding::warn(
            name,
            format!(
                "it is {value}: each VM waits for a thread that this processor does not need, as it has no iTLB multihit"
            ),
            "boot with kvm.nx_huge_pages=never, or load kvm with nx_huge_pages=never",
        ),
    }
}

/// How control groups are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cgroups {
    /// Version 2 at /sys/fs/cgroup.
    Unified { favordynmods: bool },
    /// Version 1, or none.
    Legacy,
}

fn cgroups(mounts: &str) -> Cgroups {
    let fields = |line: &str| -> Vec<String> { line.split(' ').map(str::to_owned).collect() };
    let mut mounts = mounts.lines().map(fields);
    let unified = mounts.find(|mount| {
        matches!(&mount[..], [_, at, kind, ..] if at == "/sys/fs/cgroup" && kind == "cgroup2")
    });
    let Some(unified) = unified else {
        return Cgroups::Legacy;
    };
    let options = unified.get(3).map(String::as_str).unwrap_or_default();
    Cgroups::Unified {
        favordynmods: options.split(',').any(|option| option == "favordynmods"),
    }
}

/// Without it, whatever moves a thread between control groups waits for an RCU grace period.
fn favordynmods(cgroups: Cgroups, slow: bool) -> Finding {
    let name = "favordynmods";
    let says = "control groups are mounted without it";
    match cgroups {
        Cgroups::Unified { favordynmods: true } => {
            Finding::pass(name, "control groups are mounted with it")
        }
        _ if !slow => Finding::pass(name, format!("{says}, at no cost that is seen")),
        Cgroups::Unified { .. } => Finding::warn(
            name,
            format!("{says}: each new thread of a VM may wait for all processors"),
            "mount -o remount,favordynmods /sys/fs/cgroup",
        ),
        Cgroups::Legacy => Finding::warn(
            name,
            format!("{says} (version 1): each new thread of a VM may wait for all processors"),
            "boot with cgroup_favordynmods=true, or use control groups of version 2",
        ),
    }
}

fn faults(probed: &io::Result<()>) -> Finding {
    let name = "userfaultfd";
    let Err(error) = probed else {
        return Finding::pass(name, "memory of clones can come in when it is touched");
    };
    let fix = match error.kind() {
        io::ErrorKind::PermissionDenied => "run cocoon as root",
        _ => "use a kernel with CONFIG_USERFAULTFD",
    };
    Finding::warn(
        name,
        format!(
            "there is none ({error}): the cloud-hypervisor engine copies a clone's memory before it runs"
        ),
        fix,
    )
}

fn huge_pages(free: ByteSize, pool: ByteSize) -> Finding {
    let name = "hugepages";
    if free.bytes() > 0 {
        return Finding::pass(name, format!("{free} of {pool} are free for guests"));
    }
    let says = if pool.bytes() > 0 {
        format!("all {pool} are in use: new guests have ordinary pages, and more TLB misses")
    } else {
        "none are reserved: guests have ordinary pages, and more TLB misses".to_owned()
    };
    Finding::warn(
        name,
        says,
        "sysctl -w vm.nr_hugepages=N, of 2 MiB each, if guests shall have them",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{self, Fail, Pass, Warn};
    use super::*;

    fn cpu(features: &[&str]) -> HostCpu {
        HostCpu {
            features: features.iter().map(|feature| (*feature).into()).collect(),
            ..HostCpu::default()
        }
    }

    #[test]
    fn a_user_who_is_not_root_is_warned() {
        assert_eq!(user(true).verdict, Pass);
        assert_eq!(user(false).verdict, Warn);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_processor_without_virtualization_fails_unless_that_is_ignored() {
        for (features, ignore, expected) in [
            (&["fpu", "vmx"][..], false, Pass),
            (&["svm"], false, Pass),
            (&["fpu", "hypervisor"], false, Fail),
            (&["fpu", "hypervisor"], true, Warn),
            (&[], false, Fail),
        ] {
            let found = processor(&cpu(features), ignore);
            assert_eq!(found.verdict, expected, "{features:?} {ignore}");
        }
    }

    #[test]
    fn kvm_passes_only_if_guests_run_and_each_trouble_has_its_fix() {
        assert_eq!(usable(&Ok(())).verdict, Pass);
        for (error, fix) in [
            (KvmError::Missing, "modprobe"),
            (KvmError::Forbidden, "root"),
            (KvmError::Emulated, "nested"),
            (KvmError::Version(11), "working KVM"),
            (KvmError::Open(io::ErrorKind::Other.into()), "working KVM"),
        ] {
            let found = usable(&Err(error));
            assert_eq!(found.verdict, Fail, "{found:?}");
            assert!(found.fix.as_ref().unwrap().contains(fix), "{found:?}");
        }
    }

    #[test]
    fn a_cost_is_told_in_milliseconds_and_warned_of_when_it_is_high() {
        let costs = |create_vm, first_vcpu| {
            Ok(Costs {
                create_vm: Duration::from_micros(create_vm),
                first_vcpu: Duration::from_micros(first_vcpu),
            })
        };
        for (costs, expected, says) in [
            (costs(157, 9_000_000), Pass, "0.16 ms"),
            (costs(1_999, 0), Pass, "2.00 ms"),
            (costs(2_000, 0), Warn, "2.00 ms"),
            (costs(25_000, 0), Warn, "25.00 ms"),
            (Err(io::ErrorKind::NotFound.into()), Warn, "not measured"),
        ] {
            let found = cost("kvm-create-vm", "VM", &costs, |costs| costs.create_vm);
            assert_eq!(found.verdict, expected, "{found:?}");
            assert!(found.says.contains(says), "{found:?}");
        }
    }

    #[test]
    fn nx_huge_pages_are_warned_of_where_they_cost_and_guard_nothing() {
        let multihit = "KVM: Mitigation: VMX disabled";
        for (setting, multihit, slow, expected) in [
            (None, Some("Not affected"), true, Pass),
            (Some("never"), Some("Not affected"), true, Pass),
            (Some("N"), Some("Not affected"), false, Pass),
            (Some("N"), Some("Not affected"), true, Warn),
            (Some("Y"), Some(multihit), true, Pass),
            (Some("Y"), None, true, Warn),
        ] {
            let found = nx_huge_pages(setting, multihit, slow);
            assert_eq!(found.verdict, expected, "{setting:?} {multihit:?} {slow}");
        }
    }

    #[test]
    fn favordynmods_are_read_from_the_mounts_and_warned_of_where_vms_are_slow() {
        let with = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate,favordynmods 0 0\n";
        let without = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw,favordynmods 0 0\n";
        for (mounts, slow, expected, fix) in [
            (with, true, Pass, None),
            (without, false, Pass, None),
            (without, true, Warn, Some("remount,favordynmods")),
            (hybrid, true, Warn, Some("cgroup_favordynmods=true")),
            (hybrid, false, Pass, None),
            ("", true, Warn, Some("version 2")),
        ] {
            let found = favordynmods(cgroups(mounts), slow);
            assert_eq!(found.verdict, expected, "{mounts} {slow}");
            let told = found.fix.unwrap_or_default();
            assert!(told.contains(fix.unwrap_or_default()), "{told}");
        }
    }

    #[test]
    fn what_only_makes_guests_slower_is_a_warning() {
        let none = |errno| faults(&Err(io::Error::from_raw_os_error(errno)));
        let size = ByteSize::from_mib;
        for (found, expected) in [
            (faults(&Ok(())), Pass),
            (none(libc::ENOSYS), Warn),
            (none(libc::EPERM), Warn),
            (huge_pages(size(2), size(4)), Pass),
            (huge_pages(size(0), size(4)), Warn),
            (huge_pages(size(0), size(0)), Warn),
        ] {
            assert_eq!(found.verdict, expected as Verdict, "{found:?}");
        }
    }
}
