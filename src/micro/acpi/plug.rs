//! What can be plugged in: processors and memory that are not there yet, and how the guest learns that
//! they are.
//!
//! ```text
//!  \_SB.PLGR  the registers of devices::plug: CPUS, MEMS, MnAT and MnLN of each slot
//!      .CTLD, .MTLD          how many the guest was told of
//!      .Cnnn  ACPI0007       _STA: is it below CPUS?   _MAT: its local APIC, enabled
//!      .MEMn  PNP0C80        _STA: is it below MEMS?   _CRS: RNGE(MnAT, MnLN)
//!      .CNEW, .MNEW          notify each one that is there and was not told of; called by GED._EVT
//! ```
//! Sources: ACPI 6.5, 5.6.6 (device check), 6.2.10 (_MAT), 6.4.3.5.1 (QWord address space descriptor);
//! Linux, drivers/acpi/{acpi_processor,acpi_memhotplug}.c.
//! Invariant: what there is no room for has no object here, so a VM that cannot grow has none of this.

use std::ops::Range;

use acpi_tables::aml::{
    Add, AddressSpace, AddressSpaceCacheable, Arg, BufferData, CreateQWordField, EISAName, Field,
    FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, GreaterThan, If, LessEqual, Local,
    Method, MethodCall, Notify, ONE, OpRegion, OpRegionSpace, Path, ResourceTemplate, Return,
    Store, Subtract, ZERO,
};

use super::dsdt::{PRESENT, device, name};
use super::{EVENT_CPUS, EVENT_MEMORY, Platform, Raw, bytes, madt};
use crate::micro::devices::plug::device::PORTS;
use crate::micro::growth::Room;
use crate::micro::layout;

/// What a device is notified with that may have come (ACPI 6.5, 5.6.6).
const DEVICE_CHECK: u8 = 1;

/// Offsets in a QWord address space descriptor: first and last address, length.
const FIRST: u8 = 14;
const LAST: u8 = 22;
const LENGTH: u8 = 38;

/// A kind of thing that comes, and its names.
struct Kind {
    /// That there is more of it.
    event: u32,
    /// Register: how many there are.
    count: &'static str,
    /// How many the guest was told of.
    told: &'static str,
    /// The method that tells it of the others.
    news: &'static str,
    /// Name of each.
    device: fn(u32) -> String,
}

const PROCESSORS: Kind = Kind {
    event: EVENT_CPUS,
    count: "CPUS",
    told: "CTLD",
    news: "CNEW",
    device: |number| format!("C{number:03X}"),
};

const MEMORY: Kind = Kind {
    event: EVENT_MEMORY,
    count: "MEMS",
    told: "MTLD",
    news: "MNEW",
    device: |slot| format!("MEM{slot:X}"),
};

/// Everything of this kind in the scope `\_SB`.
pub(super) fn devices(platform: &Platform) -> Vec<u8> {
    let (processors, slots) = room(platform);
    let mut all = Vec::new();
    if !processors.is_empty() || !slots.is_empty() {
        all.extend(registers());
    }
    if !processors.is_empty() {
        all.extend(processors.clone().flat_map(processor));
        all.extend(news(&PROCESSORS, processors));
    }
    if !slots.is_empty() {
        all.extend(memory_range());
        all.extend(slots.clone().flat_map(memory));
        all.extend(news(&MEMORY, slots));
    }
    all
}

/// The events of this kind that can be, and the method in `\_SB` that each calls for.
pub(super) fn reactions(platform: &Platform) -> Vec<(u32, &'static str)> {
    let (processors, slots) = room(platform);
    [(PROCESSORS, processors), (MEMORY, slots)]
        .into_iter()
        .filter(|(_, numbers)| !numbers.is_empty())
        .map(|(kind, _)| (kind.event, kind.news))
        .collect()
}

/// Numbers of the processors and of the pieces of memory that may come.
fn room(platform: &Platform) -> (Range<u32>, Range<u32>) {
    let Room { cpus, memory_slots } = platform.room;
    (platform.cpus..cpus, 0..memory_slots)
}

/// The registers' names, in their order.
fn registers() -> Vec<u8> {
    let mut fields = vec![
        FieldEntry::Named(*b"CPUS", 32),
        FieldEntry::Named(*b"MEMS", 32),
    ];
    for slot in DIGITS {
        fields.push(FieldEntry::Named([b'M', slot, b'A', b'T'], 64));
        fields.push(FieldEntry::Named([b'M', slot, b'L', b'N'], 64));
    }
    let space = OpRegionSpace::SystemIO;
    let region = OpRegion::new("PLGR".into(), space, &layout::PLUG_PORT, &PORTS);
    let field = Field::new(
        "PLGR".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::Preserve,
        fields,
    );
    [bytes(&region), bytes(&field)].concat()
}

/// By which the slots are named.
const DIGITS: [u8; layout::MEMORY_SLOTS as usize] = *b"01234567";

/// `_STA`: present if `number` is below what the register says.
fn status(kind: &Kind, number: u32) -> Vec<u8> {
    let count = Path::new(kind.count);
    let is_there = GreaterThan::new(&count, &number);
    let present = Return::new(&PRESENT);
    bytes(&Method::new(
        "_STA".into(),
        0,
        false,
        vec![&If::new(&is_there, vec![&present]), &Return::new(&ZERO)],
    ))
}

fn processor(number: u32) -> Vec<u8> {
    let controller = BufferData::new(madt::processor(number, madt::ENABLED));
    device(
        &(PROCESSORS.device)(number),
        vec![
            &name("_HID", &"ACPI0007"),
            &name("_UID", &number),
            &Raw(status(&PROCESSORS, number)),
            &name("_MAT", &controller),
        ],
    )
}

fn memory(slot: u32) -> Vec<u8> {
    device(
        &(MEMORY.device)(slot),
        vec![
            &name("_HID", &EISAName::new("PNP0C80")),
            &name("_UID", &slot),
            &Raw(status(&MEMORY, slot)),
            &Raw(resources(slot)),
        ],
    )
}

/// `_CRS` of a piece of memory. What is passed on are the values, not the registers.
fn resources(slot: u32) -> Vec<u8> {
    let [start, length] = ["AT", "LN"].map(|what| Path::new(&format!("M{slot}{what}")));
    bytes(&Method::new(
        "_CRS".into(),
        0,
        true,
        vec![
            &Store::new(&Local(0), &start),
            &Store::new(&Local(1), &length),
            &Return::new(&MethodCall::new("RNGE".into(), vec![&Local(0), &Local(1)])),
        ],
    ))
}

/// `RNGE(start, length)`: the resources of a piece of memory.
fn memory_range() -> Vec<u8> {
    let cacheable = AddressSpaceCacheable::Cacheable;
    // The addresses are put in when it is asked for.
    let range = AddressSpace::new_memory(cacheable, true, 0_u64, 0, None);
    let template = ResourceTemplate::new(vec![&range]);
    let [buffer, first, last, length] = ["BUFF", "FRST", "LAST", "LENG"].map(Path::new);
    bytes(&Method::new(
        "RNGE".into(),
        2,
        true,
        vec![
            &name("BUFF", &template),
            &CreateQWordField::new(&first, &buffer, &FIRST),
            &CreateQWordField::new(&last, &buffer, &LAST),
            &CreateQWordField::new(&length, &buffer, &LENGTH),
            &Store::new(&first, &Arg(0)),
            &Store::new(&length, &Arg(1)),
            &Add::new(&Local(0), &Arg(0), &Arg(1)),
            &Subtract::new(&last, &Local(0), &ONE),
            &Return::new(&buffer),
        ],
    ))
}

/// The method that notifies those of `numbers` that are there and that the guest was not told of; it knew
/// of all before them when it booted.
fn news(kind: &Kind, numbers: Range<u32>) -> Vec<u8> {
    let known = name(kind.told, &numbers.start);
    let [count, told] = [kind.count, kind.told].map(Path::new);
    let one = |number: u32| {
        let device = Path::new(&(kind.device)(number));
        let notify = Notify::new(&device, &DEVICE_CHECK);
        let is_new = LessEqual::new(&told, &number);
        let tell = If::new(&is_new, vec![&notify]);
        bytes(&If::new(&GreaterThan::new(&count, &number), vec![&tell]))
    };
    let each = Raw(numbers.flat_map(one).collect());
    let remember = Store::new(&told, &count);
    let method = Method::new(kind.news.into(), 0, true, vec![&each, &remember]);
    [bytes(&known), bytes(&method)].concat()
}
