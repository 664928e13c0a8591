//! Which pages of a mapping have been given memory of their own.
//!
//! ```text
//!  /proc/self/pagemap: 8 bytes a page │ 63 present │ 62 swapped │ 61 of a file │ …
//! ```
//! Source: Linux, Documentation/admin-guide/mm/pagemap.rst. Asking touches no page. The invariant of
//! all that follows from it: nothing writes to the mapping meanwhile.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::PAGE;

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

/// Entries that are read at once: 128 KiB for 64 MiB of mapping.
const ENTRIES: usize = 16384;

/// Calls `f` with each run of pages, in bytes from the mapping's begin, that hold private memory of
/// the mapping at `address` (page aligned). All other pages show their file, or zeros.
pub(super) fn private_runs<E: From<PageMapError>>(
    pagemap: &File,
    address: u64,
    length: u64,
    mut f: impl FnMut(Range<u64>) -> Result<(), E>,
) -> Result<(), E> {
    let mut buffer = vec![0; ENTRIES * 8];
    let mut open: Option<u64> = None;
    let mut position = 0;
    while position < length {
        let entries = ((length - position) / PAGE).min(ENTRIES as u64);
        let bytes = &mut buffer[..usize::try_from(entries * 8).unwrap_or(ENTRIES * 8)];
        pagemap
            .read_exact_at(bytes, (address + position) / PAGE * 8)
            .map_err(PageMapError)?;
        for entry in bytes.as_chunks().0 {
            match (is_private(u64::from_le_bytes(*entry)), open) {
                (true, None) => open = Some(position),
                (false, Some(start)) => {
                    f(start..position)?;
                    open = None;
                }
                _ => {}
            }
            position += PAGE;
        }
    }
    open.map_or(Ok(()), |start| f(start..length))
}

/// `/proc/self/pagemap` cannot be read.
#[derive(Debug)]
pub(super) struct PageMapError(pub(super) io::Error);

fn is_private(entry: u64) -> bool {
    entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_is_what_is_present_or_swapped_and_of_no_file() {
        for (entry, expected) in [
            (0, false),
            (PRESENT, true),
            (SWAPPED, true),
            (PRESENT | OF_FILE, false),
            (SWAPPED | OF_FILE, false),
            (OF_FILE, false),
            (PRESENT | 0x1234, true),
        ] {
            assert_eq!(is_private(entry), expected, "{entry:#x}");
        }
    }
}
