//! A tar stream that may not go on for ever.

use std::io::{self, Read};

use super::Limits;

/// Bytes of an archive that an entry may take beside its data: its header, its padding, and extension
/// headers with a long name, a long link and some attributes.
const BESIDE_DATA: u64 = 4096;

/// A stream of a layer within [`Limits`]. What is skipped counts as well: a few MiB of zstd are a year of
/// zeros behind the end of an archive, or as the data of a whiteout.
pub(super) struct Bounded<'a> {
    stream: &'a mut dyn Read,
    left: u64,
    limit: u64,
}

/// A stream that is longer than a layer within the limits can be.
#[derive(Debug, thiserror::Error)]
#[error("it has more than {limit} bytes, and no layer that may be unpacked has more")]
struct TooLong {
    limit: u64,
}

impl<'a> Bounded<'a> {
    pub(super) fn new(stream: &'a mut dyn Read, limits: &Limits) -> Self {
        let beside = limits.max_entries.saturating_mul(BESIDE_DATA);
        let limit = limits.max_bytes.saturating_add(beside);
        Self {
            stream,
            left: limit,
            limit,
        }
    }
}

impl Read for Bounded<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(to)?;
        let limit = self.limit;
        let left = self.left.checked_sub(count as u64);
        self.left = left.ok_or_else(|| io::Error::other(TooLong { limit }))?;
        Ok(count)
    }
}
