//! Of which pieces guest RAM is made.
//!
//! ```text
//!  0 ─ boot ─ 3 GiB │ hole │ 4 GiB ─ boot ─┤   ├─ plugged 0 ─┤   ├─ plugged 1 ─┤   guest addresses
//!  0 ─ boot ─────────────────────── boot ──┼── plugged 0 ──┼── plugged 1 ──┤       a memory file
//! ```
//! Invariant: where a piece stands follows from its length and those before it alone. So lengths are all
//! that is saved, and no piece moves when another one is plugged in.

use serde::{Deserialize, Serialize};

use crate::micro::layout;
use crate::units::ByteSize;
use crate::vm::spec::MEMORY_BLOCK;

/// The pieces, by their lengths in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pieces {
    /// What the guest booted with.
    boot: u64,
    /// What was plugged in since, one after the other.
    plugged: Vec<u64>,
}

impl From<ByteSize> for Pieces {
    /// RAM of a guest that boots.
    fn from(size: ByteSize) -> Self {
        Self {
            boot: size.bytes(),
            plugged: Vec::new(),
        }
    }
}

impl Pieces {
    /// All of them, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        let add = |sum: u64, piece: &u64| sum.saturating_add(*piece);
        self.plugged.iter().fold(self.boot, add)
    }

    /// How many were plugged in.
    pub(crate) fn plugged_count(&self) -> usize {
        self.plugged.len()
    }

    /// Whether what was plugged in can have been: of foreign ones, asked before anything else but
    /// [`Pieces::bytes`].
    pub(crate) fn are_sound(&self) -> bool {
        let fits = |piece: &u64| *piece > 0 && piece.is_multiple_of(MEMORY_BLOCK.bytes());
        self.plugged.len() <= layout::MEMORY_SLOTS as usize && self.plugged.iter().all(fits)
    }

    /// Address and length of each piece, ascending.
    pub(crate) fn ranges(&self) -> Vec<(u64, u64)> {
        [layout::ram(self.boot), self.plugged()].concat()
    }

    /// The same of those that were plugged in.
    pub(crate) fn plugged(&self) -> Vec<(u64, u64)> {
        let boot = layout::ram(self.boot);
        let mut end = boot.last().map_or(0, |(start, length)| start + length);
        let place = |&length: &u64| {
            let start = layout::plug_address(end);
            end = start + length;
            (start, length)
        };
        self.plugged.iter().map(place).collect()
    }

    /// Adds a piece above all others, and returns its address.
    pub(super) fn plug(&mut self, bytes: u64) -> u64 {
        self.plugged.push(bytes);
        self.plugged().last().map_or(0, |(start, _)| *start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of these lengths in MiB.
    fn pieces(boot: u64, plugged: &[u64]) -> Pieces {
        Pieces {
            boot: boot << 20,
            plugged: plugged.iter().map(|mib| mib << 20).collect(),
        }
    }

    #[test]
    fn each_piece_stands_above_those_before_it_and_none_ever_moves() {
        const GIB: u64 = 1 << 10;
        for (boot, plugged, expected) in [
            (256, vec![], vec![]),
            (256, vec![512], vec![4 * GIB]),
            (256, vec![512, 128, 2048], vec![4 * GIB, 6 * GIB, 8 * GIB]),
            (
                4 * GIB,
                vec![128, 4 * GIB, 128],
                vec![6 * GIB, 8 * GIB, 12 * GIB],
            ),
            (3 * GIB, vec![128], vec![4 * GIB]),
        ] {
            let mut grown = pieces(boot, &[]);
            for (mib, start) in plugged.iter().zip(&expected) {
                assert_eq!(grown.plug(mib << 20), start << 20);
                let known = grown.plugged();
                assert_eq!(known.last(), Some(&(start << 20, mib << 20)));
                assert!(grown.ranges().ends_with(&known));
            }
            assert_eq!(grown, pieces(boot, &plugged));
            let ranges = grown.ranges();
            let sum: u64 = ranges.iter().map(|(_, length)| length).sum();
            assert_eq!(sum, grown.bytes());
            for pair in ranges.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{ranges:?}");
            }
        }
    }

    #[test]
    fn only_what_can_have_been_plugged_in_is_sound() {
        for (plugged, sound) in [
            (vec![], true),
            (vec![128, 4096], true),
            (vec![128; 8], true),
            (vec![128; 9], false),
            (vec![128, 0], false),
            (vec![64], false),
        ] {
            assert_eq!(pieces(256, &plugged).are_sound(), sound, "{plugged:?}");
        }
        let absurd = Pieces {
            boot: 1,
            plugged: vec![u64::MAX, u64::MAX],
        };
        assert_eq!(absurd.bytes(), u64::MAX);
    }
}
