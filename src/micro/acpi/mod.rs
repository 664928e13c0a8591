//! ACPI tables: how a guest finds its processors and devices, without PCI and without guessing.
//!
//! ```text
//!  e0000 RSDP ─▶ XSDT ─┬▶ FADT (hardware-reduced: sleep and reset registers) ─▶ DSDT
//!                      ├▶ MADT (local APICs, IOAPIC)
//!                      └▶ WDAT (watchdog)
//! ```
//! Source: ACPI 6.5; for WDAT, Microsoft's "Hardware Watchdog Timers Design Specification" (2006).
//! Invariants: what a table names stands in [`layout`]; the same platform gives the same bytes.

mod dsdt;
mod madt;
mod plug;
pub(crate) mod wdat;

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::growth::Room;
use super::layout;

/// Who made the tables.
const OEM: [u8; 6] = *b"COCOON";

/// Which tables these are.
const OEM_TABLE: [u8; 8] = *b"COCOONVM";

/// Version of the tables.
const OEM_REVISION: u32 = 1;

/// Tables begin at multiples of this.
const ALIGNMENT: u64 = 16;

/// Virtio devices and processors are named by three hexadecimal digits.
const MAX_NAMED: usize = 0x1000;

/// `SLP_TYP` of S5, which the sleep control register is given in bits 2 to 4 together with bit 5
/// (`SLP_EN`) when the guest powers itself off.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;

/// In what is read from [`layout::EVENT_PORT`]: the power button was pressed.
pub(crate) const EVENT_POWER_BUTTON: u32 = 1;

/// In what is read from [`layout::EVENT_PORT`]: the generation id has changed.
pub(crate) const EVENT_GENERATION_ID: u32 = 1 << 1;

/// In what is read from [`layout::EVENT_PORT`]: there are more processors.
pub(crate) const EVENT_CPUS: u32 = 1 << 2;

/// In what is read from [`layout::EVENT_PORT`]: there is more memory.
pub(crate) const EVENT_MEMORY: u32 = 1 << 3;

/// What the guest is to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Platform {
    /// Number of processors; their APIC ids count from 0.
    pub(crate) cpus: u32,
    /// What it may find later; of processors all, not only those that may come.
    pub(crate) room: Room,
    /// Virtio devices.
    pub(crate) virtio: Vec<VirtioNode>,
    /// Whether there is a watchdog at [`layout::WATCHDOG_PORT`].
    pub(crate) watchdog: bool,
}

/// A virtio-mmio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VirtioNode {
    /// Its place: [`layout::virtio_address`] and [`layout::virtio_gsi`] follow from it.
    pub(crate) index: usize,
}

/// Why the tables cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcpiError {
    /// More than can be named.
    #[error("{count} {what} are more than ACPI tables can name: {MAX_NAMED}")]
    TooMany {
        /// Processors or devices.
        what: &'static str,
        /// How many.
        count: usize,
    },
    /// The tables need more room than there is.
    #[error("ACPI tables of {bytes} bytes do not fit into {room} bytes")]
    TooLarge {
        /// Their size.
        bytes: u64,
        /// Room for them.
        room: u64,
    },
    /// The room is not in RAM.
    #[error("cannot write the ACPI tables into guest RAM")]
    Write(#[source] GuestMemoryError),
}

/// Writes the tables; returns the address of the root pointer.
///
/// # Errors
/// There is more than can be named, or it does not fit.
pub(crate) fn write(ram: &GuestMemoryMmap, platform: &Platform) -> Result<GuestAddress, AcpiError> {
    let start = GuestAddress(layout::ACPI_START);
    let tables = tables(platform)?;
    let (bytes, room) = (tables.len() as u64, layout::ACPI_END - layout::ACPI_START);
    if bytes > room {
        return Err(AcpiError::TooLarge { bytes, room });
    }
    ram.write_slice(&tables, start).map_err(AcpiError::Write)?;
    Ok(start)
}

/// All tables as they stand from [`layout::ACPI_START`] on.
fn tables(platform: &Platform) -> Result<Vec<u8>, AcpiError> {
    check_names(platform)?;
    let mut area = Area(vec![0; Rsdp::len()]);
    let dsdt = area.put(&dsdt::dsdt(platform));
    let mut roots = vec![area.put(&fadt(dsdt)), area.put(&madt::madt(platform))];
    if platform.watchdog {
        roots.push(area.put(&wdat::wdat()));
    }
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for address in roots {
        xsdt.add_entry(address);
    }
    let xsdt = area.put(&bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM, xsdt));
    area.0[..rsdp.len()].copy_from_slice(&rsdp);
    Ok(area.0)
}

fn check_names(platform: &Platform) -> Result<(), AcpiError> {
    let last = platform.virtio.iter().map(|node| node.index).max();
    for (what, count) in [
        ("processors", platform.room.cpus as usize),
        ("virtio devices", last.map_or(0, |index| index + 1)),
    ] {
        if count > MAX_NAMED {
            return Err(AcpiError::TooMany { what, count });
        }
    }
    Ok(())
}

/// Tables one after the other, from [`layout::ACPI_START`] on.
struct Area(Vec<u8>);

impl Area {
    /// Adds a table; returns its address.
    fn put(&mut self, table: &[u8]) -> u64 {
        let offset = (self.0.len() as u64).next_multiple_of(ALIGNMENT);
        let padding = offset - self.0.len() as u64;
        self.0.extend((0..padding).map(|_| 0));
        self.0.extend_from_slice(table);
        layout::ACPI_START + offset
    }
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

/// What is bytes already, as part of more.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// A table with `contents` behind its header.
fn table(signature: [u8; 4], revision: u8, contents: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(signature, 36, revision, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(contents);
    table.as_slice().to_vec()
}

/// A register in I/O space, `bytes` wide.
fn port(port: u16, bytes: u8, access: AccessSize) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        bytes * 8,
        0,
        access,
        u64::from(port),
    )
}

/// The fixed description: no legacy hardware, sleep and reset by registers of our own.
fn fadt(dsdt: u64) -> Vec<u8> {
    // Of IAPC_BOOT_ARCH (ACPI 6.5, 5.2.9.3): no VGA, no MSI, no CMOS clock. What is not set says that
    // there are no legacy devices and no 8042.
    const NO_VGA: u16 = 1 << 2;
    const NO_MSI: u16 = 1 << 3;
    const NO_CMOS: u16 = 1 << 5;
    let byte = |at| port(at, 1, AccessSize::ByteAccess);
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = (NO_VGA | NO_MSI | NO_CMOS).into();
    fadt.reset_reg = byte(layout::RESET_PORT);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = byte(layout::SLEEP_PORT);
    fadt.sleep_status_reg = byte(layout::SLEEP_STATUS_PORT);
    bytes(&fadt.finalize())
}

#[cfg(test)]
mod tests;
