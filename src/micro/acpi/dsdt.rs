//! The devices, in ACPI's own language.
//!
//! ```text
//!  \_S5                              power off
//!  \_SB.Cnnn  ACPI0007               processors; those that may come: plug
//!      .COM1  PNP0501                serial console
//!      .Vnnn  LNRO0005               virtio-mmio devices
//!      .GED   ACPI0013 ── _EVT ─▶ reads EVENT_PORT, and notifies:
//!      .PWRB  PNP0C0C                 ◀─ bit 0
//!      .VGEN  VM_Gen_Counter          ◀─ bit 1
//!      .CNEW, .MNEW                   ◀─ bits 2 and 3: plug
//!      .PVPC  QEMU0001               where a panicking kernel says so
//! ```
//! Sources: ACPI 6.5, 5.6.9 (generic event device), 7.4.2 (_S5), 19 (the language); Linux,
//! Documentation/virt/kvm (`VM_GEN_COUNTER`, `VMGENCTR`, drivers/virt/vmgenid.c); QEMU,
//! docs/specs/{vmgenid,pvpanic}.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO,
    If, Interrupt, Local, Memory32Fixed, Method, MethodCall, Name, Notify, OpRegion, OpRegionSpace,
    Package, Path, ResourceTemplate, Scope, Store, ZERO,
};

use super::{
    EVENT_GENERATION_ID, EVENT_POWER_BUTTON, Platform, Raw, SLEEP_TYPE_OFF, VirtioNode, bytes,
    plug, table,
};
use crate::micro::layout;

/// The revision with 64-bit integers.
const REVISION: u8 = 2;

/// What the button and the generation id are notified with (ACPI 6.5, 4.8.3.1.1.2; QEMU, vmgenid).
const CHANGED: u8 = 0x80;

/// `_STA`: present, enabled, shown, working.
pub(super) const PRESENT: u8 = 0xf;

/// The table.
pub(super) fn dsdt(platform: &Platform) -> Vec<u8> {
    let mut devices = Vec::new();
    for number in 0..platform.cpus {
        devices.extend(processor(number));
    }
    devices.extend(plug::devices(platform));
    devices.extend(serial());
    for node in &platform.virtio {
        devices.extend(virtio(*node));
    }
    devices.extend(power_button());
    devices.extend(generation_id());
    devices.extend(events(platform));
    devices.extend(panic_port());
    let off = Name::new(
        "_S5_".into(),
        &Package::new(vec![&SLEEP_TYPE_OFF, &ZERO, &ZERO, &ZERO]),
    );
    let contents = [bytes(&off), Scope::raw("_SB_".into(), devices)].concat();
    table(*b"DSDT", REVISION, &contents)
}

pub(super) fn name(name: &str, value: &dyn Aml) -> Name {
    Name::new(name.into(), value)
}

pub(super) fn device(path: &str, children: Vec<&dyn Aml>) -> Vec<u8> {
    bytes(&Device::new(path.into(), children))
}

/// The line of a device of its own, or of several: edges, high.
fn line(gsi: u32, shared: bool) -> Interrupt {
    Interrupt::new(true, true, false, shared, gsi)
}

fn processor(number: u32) -> Vec<u8> {
    let path = format!("C{number:03X}");
    let id = name("_UID", &number);
    device(&path, vec![&name("_HID", &"ACPI0007"), &id])
}

fn serial() -> Vec<u8> {
    let ports = IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, 8);
    let line = line(layout::SERIAL_GSI, false);
    device(
        "COM1",
        vec![
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &ZERO),
            &name("_DDN", &"COM1"),
            &name("_CRS", &ResourceTemplate::new(vec![&ports, &line])),
        ],
    )
}

fn virtio(node: VirtioNode) -> Vec<u8> {
    let low = |value| u32::try_from(value).unwrap_or(u32::MAX);
    let at = low(layout::virtio_address(node.index));
    let registers = Memory32Fixed::new(true, at, low(layout::VIRTIO_SIZE));
    let line = line(layout::virtio_gsi(node.index), true);
    device(
        &format!("V{:03X}", node.index),
        vec![
            &name("_HID", &"LNRO0005"),
            &name("_UID", &node.index),
            // Its DMA sees what the processors' caches hold.
            &name("_CCA", &1_u8),
            &name("_CRS", &ResourceTemplate::new(vec![&registers, &line])),
        ],
    )
}

fn power_button() -> Vec<u8> {
    let id = EISAName::new("PNP0C0C");
    device("PWRB", vec![&name("_HID", &id), &name("_UID", &ZERO)])
}

/// The generation id. Its address is two halves, the lower first.
fn generation_id() -> Vec<u8> {
    let [low, high] = [
        layout::GENERATION_ID & 0xffff_ffff,
        layout::GENERATION_ID >> 32,
    ];
    device(
        "VGEN",
        vec![
            &name("_HID", &"COCO0001"),
            // The name as Microsoft has it, upper case as ACPI wants it, and the one that fits ACPI.
            &name("_CID", &Package::new(vec![&"VM_GEN_COUNTER", &"VMGENCTR"])),
            &name("_DDN", &"VM_Gen_Counter"),
            &name("ADDR", &Package::new(vec![&low, &high])),
        ],
    )
}

/// The generic event device: its one line says that there is something to read from the port.
fn events(platform: &Platform) -> Vec<u8> {
    let line = line(layout::EVENT_GSI, false);
    let register = Path::new("EVTS");
    let take = Store::new(&HAPPENED, &register);
    let act = Raw(reactions(platform));
    device(
        "GED_",
        vec![
            &name("_HID", &"ACPI0013"),
            &name("_UID", &ZERO),
            &name("_CRS", &ResourceTemplate::new(vec![&line])),
            &OpRegion::new(
                "EVTR".into(),
                OpRegionSpace::SystemIO,
                &layout::EVENT_PORT,
                &4_u8,
            ),
            &Field::new(
                "EVTR".into(),
                FieldAccessType::DWord,
                FieldLockRule::NoLock,
                FieldUpdateRule::Preserve,
                vec![FieldEntry::Named(*b"EVTS", 32)],
            ),
            &Method::new("_EVT".into(), 1, true, vec![&take, &act]),
        ],
    )
}

/// Where `_EVT` has what it read.
const HAPPENED: Local = Local(0);

/// What `_EVT` does about each event.
fn reactions(platform: &Platform) -> Vec<u8> {
    let on = |event: u32, act: &dyn Aml| {
        let happened = And::new(&ZERO, &HAPPENED, &event);
        bytes(&If::new(&happened, vec![act]))
    };
    let mut all = Vec::new();
    for (event, device) in [
        (EVENT_POWER_BUTTON, "\\_SB_.PWRB"),
        (EVENT_GENERATION_ID, "\\_SB_.VGEN"),
    ] {
        all.extend(on(event, &Notify::new(&Path::new(device), &CHANGED)));
    }
    for (event, method) in plug::reactions(platform) {
        all.extend(on(event, &MethodCall::new(Path::new(method), Vec::new())));
    }
    all
}

fn panic_port() -> Vec<u8> {
    let port = IO::new(layout::PANIC_PORT, layout::PANIC_PORT, 1, 1);
    device(
        "PVPC",
        vec![
            &name("_HID", &"QEMU0001"),
            &name("_UID", &ZERO),
            &name("_STA", &PRESENT),
            &name("_CRS", &ResourceTemplate::new(vec![&port])),
        ],
    )
}
