//! Real vCPUs, set up, saved and restored; none of them runs.

use super::state::{Extent, VcpuState, restore, save};
use super::*;
use crate::micro::boot::Mode;
use kvm_ioctls::VmFd;
use vm_memory::GuestAddress;

fn machine() -> Option<(Kvm, VmFd)> {
    let Ok(kvm) = Kvm::new() else {
        eprintln!("SKIPPED: /dev/kvm does not open");
        return None;
    };
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    Some((kvm, vm))
}

fn entry() -> Entry {
    Entry {
        mode: Mode::Long {
            page_tables: GuestAddress(0x4000),
        },
        address: GuestAddress(0x10_0200),
        parameters: GuestAddress(0x2000),
    }
}

/// A vCPU that was set up to start a kernel, and what is to be saved of it.
fn started() -> Option<(Kvm, VmFd, VcpuFd, Extent)> {
    let (kvm, vm) = machine()?;
    let fd = vm.create_vcpu(0).unwrap();
    set_up(&fd, 0, &cpuid(&kvm, 0, 2).unwrap(), Some(&entry())).unwrap();
    let extent = Extent::ask(&kvm, &vm).unwrap();
    Some((kvm, vm, fd, extent))
}

#[test]
fn kvm_takes_the_cpuid_and_registers_of_every_vcpu() {
    let Some((kvm, vm)) = machine() else { return };
    for number in 0..3 {
        let fd = vm.create_vcpu(number).unwrap();
        let number = u32::try_from(number).unwrap();
        let cpuid = cpuid(&kvm, number, 3).unwrap();
        let entry = entry();
        let entry = (number == 0).then_some(&entry);
        set_up(&fd, number, &cpuid, entry).unwrap();
        let regs = fd.get_regs().unwrap();
        let sregs = fd.get_sregs().unwrap();
        if number == 0 {
            assert_eq!((regs.rip, regs.rsi), (0x10_0200, 0x2000));
            assert_eq!((sregs.cr3, sregs.efer), (0x4000, 0x500));
        } else {
            assert_eq!(regs.rip, 0xfff0, "vCPU {number} waits where it was reset");
            assert_eq!(sregs.cr0 & 1, 0);
        }
        let lapic = fd.get_lapic().unwrap();
        assert_eq!(registers::lapic_register(&lapic, 0x350) & 0x700, 0x700);
        assert_eq!(registers::lapic_register(&lapic, 0x360) & 0x700, 0x400);
        let id = registers::lapic_register(&lapic, 0x20) >> 24;
        assert_eq!(id, number, "APIC id");
    }
}

#[test]
fn a_vcpu_restored_elsewhere_is_saved_the_same_again() {
    let Some((_, _, fd, extent)) = started() else {
        return;
    };
    let mut regs = fd.get_regs().unwrap();
    (regs.rax, regs.r15) = (0x1234_5678_9abc_def0, 15);
    fd.set_regs(&regs).unwrap();
    let lstar = kvm_bindings::kvm_msr_entry {
        index: 0xc000_0082,
        data: 0xffff_ffff_8000_0000,
        ..Default::default()
    };
    let msrs = kvm_bindings::Msrs::from_entries(&[lstar]).unwrap();
    assert_eq!(fd.set_msrs(&msrs).unwrap(), 1);
    let saved = save(&fd, 0, &extent).unwrap().with_xmm(3, 0x0707_0707);

    // Through a file's bytes.
    let bytes = postcard::to_stdvec(&saved).unwrap();
    let read: VcpuState = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(read, saved);

    let (kvm, vm) = machine().unwrap();
    let other = vm.create_vcpu(0).unwrap();
    let extent = Extent::ask(&kvm, &vm).unwrap();
    restore(&other, 0, &extent, &read).unwrap();
    assert_eq!(other.get_regs().unwrap(), regs);
    assert_eq!(other.get_fpu().unwrap().xmm[3], [7; 16]);
    let again = save(&other, 0, &extent).unwrap();
    // What clocks count went on meanwhile.
    assert_eq!(again.without_time(), saved.without_time());
    assert!(again.has_msr(lstar.index, lstar.data));
    eprintln!("a saved vCPU has {} bytes", bytes.len());
}

#[test]
fn a_vcpu_that_joins_saved_ones_waits_with_their_features_and_their_time() {
    let Some((_, _, fd, extent)) = started() else {
        return;
    };
    let peer = save(&fd, 0, &extent).unwrap();
    let (kvm, vm) = machine().unwrap();
    let fds = [0, 1].map(|number| vm.create_vcpu(number).unwrap());
    let extent = Extent::ask(&kvm, &vm).unwrap();
    restore(&fds[0], 0, &extent, &peer).unwrap();
    state::join(&fds[1], 1, &peer).unwrap();
    assert_eq!(fds[1].get_regs().unwrap().rip, 0xfff0);
    let waits = fds[1].get_mp_state().unwrap().mp_state;
    assert_eq!(waits, kvm_bindings::KVM_MP_STATE_UNINITIALIZED);
    let [first, late] = [0, 1].map(|number| {
        let at = usize::try_from(number).unwrap();
        save(&fds[at], number, &extent).unwrap()
    });
    assert_eq!(late.cpuid_but_for_the_id(), first.cpuid_but_for_the_id());
    let apart = late.tsc().abs_diff(first.tsc());
    assert!(apart < 1_000_000_000, "{apart} cycles apart");
}

#[test]
fn states_of_impossible_sizes_are_refused_before_kvm_sees_them() {
    let Some((_, vm, fd, extent)) = started() else {
        return;
    };
    let saved = save(&fd, 0, &extent).unwrap();
    let other = vm.create_vcpu(1).unwrap();
    for (state, words) in saved.of_impossible_sizes() {
        let error = restore(&other, 1, &extent, &state).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn an_msr_that_kvm_does_not_know_is_named_unless_it_is_zero() {
    let Some((_, vm, fd, extent)) = started() else {
        return;
    };
    let saved = save(&fd, 0, &extent).unwrap();
    let other = vm.create_vcpu(1).unwrap();
    restore(&other, 1, &extent, &saved.with_msr(0x4000_0fff, 0)).unwrap();
    let error = restore(&other, 1, &extent, &saved.with_msr(0x4000_0fff, 9)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "KVM does not take 0x9 for MSR 0x40000fff of vCPU 1"
    );
}
