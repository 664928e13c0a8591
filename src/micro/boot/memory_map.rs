//! What of the address space a kernel may use.
//!
//! ```text
//!  0 ── RAM ── 9e000 ── reserved ── a0000   e0000 ── reserved (ACPI) ── 100000 ── RAM ── hole   4 GiB ── RAM
//! ```
//! The generation id and what is left of the old EBDA's page are reserved, so that no guest allocates
//! them. The kinds have the same numbers in the zero page and in PVH.

use crate::micro::layout;

/// What a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Free for the kernel.
    Ram = 1,
    /// Not to be touched, but by who knows what it is.
    Reserved = 2,
}

/// A range of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) length: u64,
    pub(super) kind: Kind,
}

/// End of the memory below the old video memory.
const LOW_END: u64 = 0xa_0000;

/// The map for `ram_bytes` of RAM.
pub(super) fn ranges(ram_bytes: u64) -> Vec<Range> {
    let range = |start, end: u64, kind| Range {
        start,
        length: end - start,
        kind,
    };
    let mut map = vec![
        range(0, layout::GENERATION_ID, Kind::Ram),
        range(layout::GENERATION_ID, LOW_END, Kind::Reserved),
        range(layout::ACPI_START, layout::KERNEL_START, Kind::Reserved),
    ];
    for (start, length) in layout::ram(ram_bytes) {
        let end = start + length;
        let start = start.max(layout::KERNEL_START);
        if start < end {
            map.push(range(start, end, Kind::Ram));
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_begins_at_the_kernel_and_goes_around_the_hole() {
        for (gib, expected) in [
            (1, vec![(0x10_0000, 0x3ff0_0000)]),
            (3, vec![(0x10_0000, 0xbff0_0000)]),
            (5, vec![(0x10_0000, 0xbff0_0000), (1 << 32, 2 << 30)]),
        ] {
            let map = ranges(gib << 30);
            let (low, high) = map.split_at(3);
            let high: Vec<_> = high
                .iter()
                .map(|range| (range.start, range.length))
                .collect();
            assert_eq!(high, expected, "{gib} GiB");
            let kinds: Vec<_> = low.iter().map(|range| range.kind).collect();
            assert_eq!(kinds, [Kind::Ram, Kind::Reserved, Kind::Reserved]);
            assert_eq!((low[0].start, low[0].length), (0, 0x9_e000));
        }
    }

    #[test]
    fn ranges_ascend_and_do_not_overlap() {
        for mib in [1, 2, 512, 3072, 3073, 1 << 20] {
            let map = ranges(mib << 20);
            for pair in map.windows(2) {
                assert!(pair[0].start + pair[0].length <= pair[1].start, "{mib} MiB");
            }
        }
    }
}
