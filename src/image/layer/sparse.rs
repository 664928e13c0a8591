//! The map of a sparse file: where its data lies. Pure.
//!
//! Invariant of a [`SparseMap`]: segments are in order, do not overlap, are not empty, and lie
//! within the file.

use super::Refusal;

/// Segments that one map may have: 4 MiB of memory.
pub(super) const MAX_SEGMENTS: usize = 1 << 18;

/// Data at an offset of a sparse file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// A sparse file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SparseMap {
    /// Size of the file in bytes, holes included.
    pub(super) size: u64,
    pub(super) segments: Vec<Segment>,
}

impl SparseMap {
    /// Checks a map against the file's size and the bytes that its entry stores.
    pub(super) fn new(size: u64, pairs: &[(u64, u64)], stored: u64) -> Result<Self, Refusal> {
        // Offsets are signed in Linux, and rounding up to blocks must not overflow.
        if size > i64::MAX.cast_unsigned() {
            return Err(Refusal::Number("sparse size"));
        }
        if pairs.len() > MAX_SEGMENTS {
            return Err(Refusal::Sparse("it has too many segments"));
        }
        let mut end = 0;
        let mut data = 0;
        let mut segments = Vec::new();
        for (offset, len) in pairs.iter().copied() {
            let next = offset.checked_add(len);
            let next = next.filter(|next| *next <= size);
            let next = next.ok_or(Refusal::Sparse("a segment lies behind the file's end"))?;
            if offset < end {
                return Err(Refusal::Sparse("segments overlap"));
            }
            end = next;
            data += len;
            if len > 0 {
                segments.push(Segment { offset, len });
            }
        }
        if data != stored {
            return Err(Refusal::Sparse("it does not match the data of the entry"));
        }
        Ok(Self { size, segments })
    }
}

/// Numbers in turn as offset and length.
pub(super) fn pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>, Refusal> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Refusal::Sparse("an offset has no length"));
    }
    Ok(pairs.iter().map(|[offset, len]| (*offset, *len)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_that_lies_is_refused() {
        let table: [(u64, &[(u64, u64)], u64, bool); 8] = [
            (100, &[(0, 10), (50, 50)], 60, true),
            (100, &[(100, 0)], 0, true),
            (0, &[], 0, true),
            (100, &[(50, 10), (0, 10)], 20, false),
            (100, &[(0, 10), (5, 10)], 20, false),
            (100, &[(95, 10)], 10, false),
            (100, &[(u64::MAX, 10)], 10, false),
            (100, &[(0, 10)], 11, false),
        ];
        for (size, pairs, stored, is_good) in table {
            let map = SparseMap::new(size, pairs, stored);
            assert_eq!(map.is_ok(), is_good, "{size} {pairs:?} {stored}");
        }
        assert!(SparseMap::new(u64::MAX, &[], 0).is_err());
    }
}
