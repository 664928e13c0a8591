//! Registers of a vCPU at its start.
//!
//! | Mode         | CR0          | CR4 | EFER     | told by |
//! |--------------|--------------|-----|----------|---------|
//! | 64-bit       | PE ET PG     | PAE | LME, LMA | RSI     |
//! | 32-bit (PVH) | PE ET        | 0   | 0        | EBX     |
//!
//! Sources: Linux, Documentation/arch/x86/boot.rst (64-bit protocol); Xen, docs/misc/pvh; Intel SDM
//! volumes 3 (registers, local APIC) and 4 (MSRs).

use kvm_bindings::{Msrs, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::{CpuError, refused};
use crate::micro::boot::{Entry, Mode};

const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_EXTENSION: u64 = 1 << 5;
const EFER_LONG: u64 = 1 << 8 | 1 << 10;

/// RFLAGS with nothing in it but the bit that is always set.
const FLAGS: u64 = 2;

/// The time stamp counter.
const TSC: u32 = 0x10;

/// MSRs as a processor has them after its firmware: zero but for the last two.
const MSRS: [(u32, u64); 10] = [
    (0x174, 0),       // SYSENTER_CS
    (0x175, 0),       // SYSENTER_ESP
    (0x176, 0),       // SYSENTER_EIP
    (0xc000_0081, 0), // STAR
    (0xc000_0082, 0), // LSTAR
    (0xc000_0083, 0), // CSTAR
    (0xc000_0084, 0), // SFMASK
    (0xc000_0102, 0), // KERNEL_GS_BASE
    (0x1a0, 1),       // MISC_ENABLE: fast strings
    (0x2ff, 0x806),   // MTRR_DEF_TYPE: enabled, write-back; without it Linux has no PAT
];

/// Local vector table entries of the local APIC's pins.
const LINT0: usize = 0x350;
const LINT1: usize = 0x360;

/// Delivery modes.
const NMI: u32 = 4 << 8;
const EXTERNAL: u32 = 7 << 8;
const DELIVERY_MODES: u32 = 7 << 8;

/// Sets the MSRs; `tsc` is written but once, since KVM keeps counters in step that are set alike.
pub(super) fn set_msrs(fd: &VcpuFd, number: u32, tsc: u64) -> Result<(), CpuError> {
    let entry = |&(index, data): &(u32, u64)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries: Vec<_> = MSRS.iter().chain(&[(TSC, tsc)]).map(entry).collect();
    let set = Msrs::from_entries(&entries)
        .map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
        .and_then(|msrs| fd.set_msrs(&msrs))
        .map_err(refused("set the MSRs", number))?;
    match entries.get(set) {
        None => Ok(()),
        Some(entry) => Err(CpuError::Msr {
            vcpu: number,
            index: entry.index,
            value: entry.data,
        }),
    }
}

/// Lets the vCPU start at `entry`.
pub(super) fn set_entry(fd: &VcpuFd, number: u32, entry: &Entry) -> Result<(), CpuError> {
    let sregs = fd
        .get_sregs()
        .map_err(refused("read the special registers", number))?;
    fd.set_sregs(&special(sregs, entry))
        .map_err(refused("set the special registers", number))?;
    fd.set_regs(&general(entry))
        .map_err(refused("set the registers", number))
}

fn general(entry: &Entry) -> kvm_regs {
    let regs = kvm_regs {
        rip: entry.address.0,
        rflags: FLAGS,
        ..Default::default()
    };
    let told = entry.parameters.0;
    match entry.mode {
        Mode::Long { .. } => kvm_regs { rsi: told, ..regs },
        Mode::Protected => kvm_regs { rbx: told, ..regs },
    }
}

/// `sregs` with all that the mode decides.
fn special(mut sregs: kvm_sregs, entry: &Entry) -> kvm_sregs {
    let (segments, table) = entry.segments();
    sregs.gdt.base = table.0;
    sregs.gdt.limit = segments.limit();
    // Interrupts are off, and the kernel brings its own table.
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = segments.code();
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = segments.data();
    }
    sregs.tr = segments.task();
    sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION;
    (sregs.cr3, sregs.cr4, sregs.efer) = (0, 0, 0);
    if let Mode::Long { page_tables } = entry.mode {
        sregs.cr0 |= CR0_PAGING;
        sregs.cr3 = page_tables.0;
        sregs.cr4 = CR4_PHYSICAL_EXTENSION;
        sregs.efer = EFER_LONG;
    }
    sregs
}

/// Pin 0 takes interrupts of the old controller, pin 1 takes NMIs, as firmware leaves it.
pub(super) fn set_local_interrupts(fd: &VcpuFd, number: u32) -> Result<(), CpuError> {
    let mut lapic = fd
        .get_lapic()
        .map_err(refused("read the local APIC", number))?;
    for (register, mode) in [(LINT0, EXTERNAL), (LINT1, NMI)] {
        let value = lapic_register(&lapic, register) & !DELIVERY_MODES | mode;
        for (byte, new) in lapic.regs[register..].iter_mut().zip(value.to_le_bytes()) {
            *byte = new.cast_signed();
        }
    }
    fd.set_lapic(&lapic)
        .map_err(refused("set the local APIC", number))
}

/// A register of the local APIC.
pub(super) fn lapic_register(lapic: &kvm_lapic_state, at: usize) -> u32 {
    let byte = |index: usize| lapic.regs[at + index].cast_unsigned();
    u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    #[test]
    fn each_mode_has_its_registers() {
        let dirty = kvm_sregs {
            cr0: 0x6000_0010,
            cr4: 0xffff,
            efer: 0xffff,
            apic_base: 0xfee0_0900,
            ..Default::default()
        };
        let page_tables = GuestAddress(0x4000);
        for (mode, cr0, cr3, cr4, efer, long) in [
            (
                Mode::Long { page_tables },
                0x8000_0011,
                0x4000,
                0x20,
                0x500,
                1,
            ),
            (Mode::Protected, 0x11, 0, 0, 0, 0),
        ] {
            let entry = Entry {
                mode,
                address: GuestAddress(0x10_0200),
                parameters: GuestAddress(0x2000),
            };
            let sregs = special(dirty, &entry);
            assert_eq!((sregs.cr0, sregs.cr3), (cr0, cr3));
            assert_eq!((sregs.cr4, sregs.efer), (cr4, efer));
            assert_eq!((sregs.cs.l, sregs.cs.db), (long, 1 - long));
            assert_eq!(sregs.apic_base, dirty.apic_base);
            let regs = general(&entry);
            let (rsi, rbx) = if long == 1 { (0x2000, 0) } else { (0, 0x2000) };
            assert_eq!((regs.rip, regs.rflags), (0x10_0200, 2));
            assert_eq!((regs.rsi, regs.rbx), (rsi, rbx));
        }
    }
}
