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
pub(in crate::image) struct SparseMap {
    /// Size of the file in bytes, holes included.
    pub(super) size: u64,
    pub(super) segments: Vec<Segment>,
}

impl SparseMap {
    /// Checks a map against the file's size and the bytes that its entry stores.
    pub(super) fn new(size: u64, mut segments: Vec<Segment>, stored: u64) -> Result<Self, Refusal> {
        // Offsets are signed in Linux, and rounding up to blocks must not overflow.
        if size > i64::MAX.cast_unsigned() {
            return Err(Refusal::Number("sparse size"));
        }
        if segments.len() > MAX_SEGMENTS {
            return Err(Refusal::Sparse("it has too many segments"));
        }
        let mut end = 0;
        let mut data = 0;
        for Segment { offset, len } in &segments {
            let next = offset.checked_add(*len);
            let next = next.filter(|next| *next <= size);
            let next = next.ok_or(Refusal::Sparse("a segment lies behind the file's end"))?;
            if *offset < end {
                return Err(Refusal::Sparse("segments overlap"));
            }
            end = next;
            data += len;
        }
        if data != stored {
            return Err(Refusal::Sparse("it does not match the data of the entry"));
        }
        segments.retain(|segment| segment.len > 0);
        Ok(Self { size, segments })
    }
}

/// Numbers in turn as offset and length.
pub(super) fn segments(numbers: &[u64]) -> Result<Vec<Segment>, Refusal> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Refusal::Sparse("an offset has no length"));
    }
    let segment = |[offset, len]: &[u64; 2]| Segment {
        offset: *offset,
        len: *len,
    };
    Ok(pairs.iter().map(segment).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_that_lies_is_refused() {
        // Size of the file, offsets and lengths, bytes stored, whether that is a map.
        type Row<'a> = (u64, &'a [u64], u64, bool);
        let table: [Row<'_>; 8] = [
            (100, &[0, 10, 50, 50], 60, true),
            (100, &[100, 0], 0, true),
            (0, &[], 0, true),
            (100, &[50, 10, 0, 10], 20, false),
            (100, &[0, 10, 5, 10], 20, false),
            (100, &[95, 10], 10, false),
            (100, &[u64::MAX, 10], 10, false),
            (100, &[0, 10], 11, false),
        ];
        for (size, numbers, stored, is_good) in table {
            let map = SparseMap::new(size, segments(numbers).unwrap(), stored);
            assert_eq!(map.is_ok(), is_good, "{size} {numbers:?} {stored}");
        }
        assert!(SparseMap::new(u64::MAX, Vec::new(), 0).is_err());
        assert!(segments(&[1]).is_err());
    }
}
