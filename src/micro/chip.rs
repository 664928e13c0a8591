//! What the kernel keeps for a whole VM: the interrupt chips and the clock.
//!
//! ```text
//!  two PICs (8259) ── IOAPIC ──▶ local APICs      (theirs is each vCPU's state)
//!  clock: nanoseconds since the VM began, which kvmclock shows to the guest
//! ```
//! Invariants:
//! - Saved while all vCPUs are paused and all lanes parked; restored after the vCPUs' own state, so
//!   that interrupts which the IOAPIC sends again reach local APICs that stay as they are, and before
//!   any vCPU runs.
//! - The guest's clock goes on from where it was, without a jump: the time between save and restore
//!   has not been for it. Its wall clock is therefore late by that time until someone sets it. (That
//!   guests do not take the pause for a hang is told per vCPU, by KVM_KVMCLOCK_CTRL.)

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

/// State of the chips and the clock of a VM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ChipState {
    pic_master: kvm_irqchip,
    pic_slave: kvm_irqchip,
    ioapic: kvm_irqchip,
    /// Nanoseconds since the VM began.
    clock_ns: u64,
}

/// The kernel does not give or take a state.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} the state of the VM's {part}")]
pub(crate) struct ChipError {
    operation: &'static str,
    part: &'static str,
    #[source]
    source: kvm_ioctls::Error,
}

/// Reads the state of a VM's chips and clock.
///
/// # Errors
/// The VM has no such chips.
pub(crate) fn save(vm: &VmFd) -> Result<ChipState, ChipError> {
    let failed = |part| failed("read", part);
    let clock = vm.get_clock().map_err(failed("clock"))?;
    Ok(ChipState {
        pic_master: chip(vm, KVM_IRQCHIP_PIC_MASTER).map_err(failed("first PIC"))?,
        pic_slave: chip(vm, KVM_IRQCHIP_PIC_SLAVE).map_err(failed("second PIC"))?,
        ioapic: chip(vm, KVM_IRQCHIP_IOAPIC).map_err(failed("IOAPIC"))?,
        clock_ns: clock.clock,
    })
}

/// Puts a saved state into a VM.
///
/// # Errors
/// The VM has no such chips.
pub(crate) fn restore(vm: &VmFd, state: &ChipState) -> Result<(), ChipError> {
    for (part, chip_id, saved) in [
        ("first PIC", KVM_IRQCHIP_PIC_MASTER, &state.pic_master),
        ("second PIC", KVM_IRQCHIP_PIC_SLAVE, &state.pic_slave),
        ("IOAPIC", KVM_IRQCHIP_IOAPIC, &state.ioapic),
    ] {
        // A file says what is in a chip, not which one it is.
        let chip = kvm_irqchip { chip_id, ..*saved };
        vm.set_irqchip(&chip).map_err(failed("set", part))?;
    }
    // No flags: those that KVM_GET_CLOCK sets are refused before Linux 5.16, and KVM_CLOCK_REALTIME
    // would add the time since the save.
    let clock = kvm_clock_data {
        clock: state.clock_ns,
        ..kvm_clock_data::default()
    };
    vm.set_clock(&clock).map_err(failed("set", "clock"))
}

fn chip(vm: &VmFd, chip_id: u32) -> Result<kvm_irqchip, kvm_ioctls::Error> {
    let mut chip = kvm_irqchip {
        chip_id,
        ..kvm_irqchip::default()
    };
    vm.get_irqchip(&mut chip)?;
    Ok(chip)
}

fn failed(
    operation: &'static str,
    part: &'static str,
) -> impl FnOnce(kvm_ioctls::Error) -> ChipError {
    move |source| ChipError {
        operation,
        part,
        source,
    }
}

#[cfg(test)]
#[expect(
    unsafe_code,
    reason = "what is in a chip stands in a union, which tests look into"
)]
mod tests {
    use super::*;
    use kvm_ioctls::Kvm;

    fn vm(kvm: &Kvm) -> VmFd {
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        vm
    }

    fn kvm() -> Option<Kvm> {
        Kvm::new()
            .inspect_err(|error| println!("SKIPPED: /dev/kvm does not open: {error}"))
            .ok()
    }

    #[test]
    fn chips_and_clock_of_one_vm_become_those_of_another() {
        let Some(kvm) = kvm() else { return };
        let first = vm(&kvm);
        let mut pic = chip(&first, KVM_IRQCHIP_PIC_MASTER).unwrap();
        pic.chip.pic.irq_base = 0x30;
        first.set_irqchip(&pic).unwrap();
        let mut ioapic = chip(&first, KVM_IRQCHIP_IOAPIC).unwrap();
        // Masked, vector 0x42: bits 16 and 0 to 7 of an IOAPIC's redirection entry.
        // SAFETY: the chip is an IOAPIC, of which KVM has filled all bytes.
        let entries = unsafe { &mut ioapic.chip.ioapic.redirtbl };
        entries[6].bits = 0x1_0042;
        first.set_irqchip(&ioapic).unwrap();
        let hour_ns = 3_600_000_000_000;
        let clock = kvm_clock_data {
            clock: hour_ns,
            ..kvm_clock_data::default()
        };
        first.set_clock(&clock).unwrap();

        let saved = save(&first).unwrap();
        let bytes = postcard::to_stdvec(&saved).unwrap();
        let second = vm(&kvm);
        restore(&second, &postcard::from_bytes(&bytes).unwrap()).unwrap();

        let again = save(&second).unwrap();
        // SAFETY: the chip is a PIC, of which KVM has filled all bytes.
        assert_eq!(unsafe { again.pic_master.chip.pic.irq_base }, 0x30);
        // SAFETY: the chip is a PIC, of which KVM has filled all bytes.
        assert_eq!(unsafe { again.pic_slave.chip.pic.irq_base }, 0);
        // SAFETY: the chip is an IOAPIC, of which KVM has filled all bytes.
        let entry = unsafe { again.ioapic.chip.ioapic.redirtbl[6].bits };
        assert_eq!(entry, 0x1_0042);
        assert!(saved.clock_ns >= hour_ns);
        let passed_ns = again.clock_ns.checked_sub(saved.clock_ns);
        // It ran on while this test did, and did not begin anew.
        assert!(passed_ns.is_some_and(|ns| ns < hour_ns), "{passed_ns:?}");
    }

    #[test]
    fn time_between_save_and_restore_has_not_been_for_the_guest() {
        let Some(kvm) = kvm() else { return };
        let first = vm(&kvm);
        let saved = save(&first).unwrap();
        // As long after as one likes: only what is saved counts.
        let later_ns = 7 * 24 * 3_600_000_000_000;
        let clock = kvm_clock_data {
            clock: later_ns,
            ..kvm_clock_data::default()
        };
        first.set_clock(&clock).unwrap();
        restore(&first, &saved).unwrap();
        assert!(save(&first).unwrap().clock_ns < later_ns / 2);
    }

    #[test]
    fn a_vm_without_chips_is_named_in_the_error() {
        let Some(kvm) = kvm() else { return };
        let error = save(&kvm.create_vm().unwrap()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read the state of the VM's first PIC"
        );
    }
}
