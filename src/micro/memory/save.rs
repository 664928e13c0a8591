//! Guest RAM into a memory file, sparse: what was never touched, or is zero, is a hole.
//!
//! ```text
//!  pages:   absent   private   absent                private        of the mapping
//!  base:    hole     (any)     data ─ extents copied (any)          none for fresh RAM
//!           ▼        ▼         ▼                     ▼
//!  file:    hole     written,  shared or copied      written, zeros left out
//! ```
//! Invariants: nothing writes to the RAM meanwhile; the target holds nothing where RAM goes.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use vm_memory::{Bytes, GuestMemory, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

use super::pages::{PageMapError, private_runs};
use super::{Base, GuestRam, MemoryError, PAGE, failed};

/// Bytes that are looked at, and written, at once.
const CHUNK: usize = 1 << 20;

static ZEROS: [u8; 4096] = [0; 4096];

const _: () = assert!(ZEROS.len() as u64 == PAGE);

impl From<PageMapError> for MemoryError {
    fn from(PageMapError(source): PageMapError) -> Self {
        failed("read the page map")(source)
    }
}

impl GuestRam {
    /// Writes the RAM to `file` from `offset` on, where the file must hold nothing yet. vCPUs and
    /// devices stand still. Not synced.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub(crate) fn write_to(&self, file: &File, offset: u64) -> Result<(), MemoryError> {
        let length = file
            .metadata()
            .map_err(failed("ask for the length of the new memory file"))?
            .len();
        let end = offset + self.bytes();
        if length < end {
            file.set_len(end).map_err(failed("size the memory file"))?;
        }
        let mut position = 0;
        for region in self.memory.iter() {
            let below = |base: &&Base| position < base.bytes;
            let writer = RegionWriter {
                region,
                base: self.base.as_ref().filter(below),
                file,
                from: position,
                to: offset + position,
            };
            writer.write(&self.pagemap)?;
            position += region.len();
        }
        Ok(())
    }
}

/// Writes one piece of RAM. Ranges are in bytes from the piece's begin.
struct RegionWriter<'a> {
    region: &'a GuestRegionMmap,
    base: Option<&'a Base>,
    file: &'a File,
    /// Where the piece begins in RAM without its hole, which is how memory files have it.
    from: u64,
    /// Where it goes in `file`.
    to: u64,
}

impl RegionWriter<'_> {
    fn write(&self, pagemap: &File) -> Result<(), MemoryError> {
        let mut buffer = vec![0; CHUNK];
        let mut done = 0;
        let address = self.region.as_ptr() as u64;
        private_runs(pagemap, address, self.region.len(), |run| {
            self.copy_base(done..run.start, &mut buffer)?;
            done = run.end;
            self.write_pages(run, &mut buffer)
        })?;
        self.copy_base(done..self.region.len(), &mut buffer)
    }

    /// Writes those pages of `range` that are not zero, from memory.
    fn write_pages(&self, range: Range<u64>, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let mut position = range.start;
        while position < range.end {
            let left = usize::try_from(range.end - position).unwrap_or(usize::MAX);
            let chunk = &mut buffer[..left.min(CHUNK)];
            self.region
                .read_slice(chunk, MemoryRegionAddress(position))
                .map_err(|error| failed("read guest RAM")(std::io::Error::other(error)))?;
            for run in nonzero_runs(chunk) {
                self.file
                    .write_all_at(&chunk[run.clone()], self.to + position + run.start as u64)
                    .map_err(failed("write the memory file"))?;
            }
            position += chunk.len() as u64;
        }
        Ok(())
    }

    /// Copies what the base file holds of `range`, shared where the file system can.
    fn copy_base(&self, range: Range<u64>, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let Some(base) = self.base else {
            return Ok(());
        };
        let shift = base.offset + self.from;
        let mut position = range.start;
        while position < range.end {
            let Some(data) = next_data(&base.file, shift + position)? else {
                return Ok(());
            };
            let data = (data.start - shift).min(range.end)..(data.end - shift).min(range.end);
            let copied = self.copy_extent(base, data.clone())?;
            // The mapping shows the base file here: what the host cannot copy is written from there.
            self.write_pages(copied..data.end, buffer)?;
            position = data.end;
        }
        Ok(())
    }

    /// Lets the host copy `data`; returns where it stopped, because it cannot between these files.
    fn copy_extent(&self, base: &Base, data: Range<u64>) -> Result<u64, MemoryError> {
        let mut position = data.start;
        while position < data.end {
            let mut from = base.offset + self.from + position;
            let mut to = self.to + position;
            let left = usize::try_from(data.end - position).unwrap_or(usize::MAX);
            let file = (&base.file, self.file);
            match rustix::fs::copy_file_range(file.0, Some(&mut from), file.1, Some(&mut to), left)
            {
                Ok(0) | Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => break,
                Ok(copied) => position += copied as u64,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed("copy the base memory file")(errno)),
            }
        }
        Ok(position)
    }
}

/// The first extent of data that ends beyond `position`, cut to begin there.
pub(super) fn next_data(file: &File, position: u64) -> Result<Option<Range<u64>>, MemoryError> {
    let seek = |to| rustix::fs::seek(file, to);
    let start = match seek(SeekFrom::Data(position)) {
        Ok(start) => start,
        // Nothing but a hole follows.
        Err(Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(failed("look for data in a memory file")(errno)),
    };
    let end = seek(SeekFrom::Hole(start)).map_err(failed("look for holes in a memory file"));
    end.map(|end| Some(start..end))
}

/// Runs of pages that are not all zero, in bytes; the last page may be cut.
fn nonzero_runs(chunk: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut position = 0;
    for page in chunk.chunks(ZEROS.len()) {
        let end = position + page.len();
        if page != &ZEROS[..page.len()] {
            match runs.last_mut() {
                Some(run) if run.end == position => run.end = end,
                _ => runs.push(position..end),
            }
        }
        position = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::ByteSize;
    use std::os::unix::fs::MetadataExt;
    use vm_memory::GuestAddress;

    const PAGES: usize = 64;
    const BYTES: u64 = 64 * PAGE;

    fn put(ram: &GuestRam, page: u64, byte: u8) {
        let at = GuestAddress(page * PAGE);
        ram.guest().write_slice(&[byte; ZEROS.len()], at).unwrap();
    }

    fn pages(file: &File, offset: u64, count: u64) -> Vec<u8> {
        let page = |index| {
            let mut page = [0; ZEROS.len()];
            file.read_exact_at(&mut page, offset + index * PAGE)
                .unwrap();
            assert!(page.iter().all(|byte| *byte == page[0]), "page {index}");
            page[0]
        };
        (0..count).map(page).collect()
    }

    fn expected(set: &[(usize, u8)]) -> Vec<u8> {
        let mut all = vec![0; PAGES];
        for (page, byte) in set {
            all[*page] = *byte;
        }
        all
    }

    #[test]
    fn fresh_ram_becomes_a_file_of_what_is_not_zero() {
        // Larger than a huge page, so that untouched memory exists beside touched memory.
        let ram = GuestRam::allocate(ByteSize::from_mib(64), false).unwrap();
        put(&ram, 0, 1);
        put(&ram, 5, 2);
        put(&ram, 6, 0);
        put(&ram, (64 << 8) - 1, 3);
        let file = tempfile::tempfile().unwrap();
        ram.write_to(&file, 2 * PAGE).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), (64 << 20) + 2 * PAGE);
        assert!(metadata.blocks() * 512 <= 8 * PAGE, "{}", metadata.blocks());
        let all = pages(&file, 2 * PAGE, 64 << 8);
        let set: Vec<_> = all
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte != 0)
            .collect();
        assert_eq!(set, [(0, &1), (5, &2), ((64 << 8) - 1, &3)]);
    }

    #[test]
    fn saving_touches_no_page_that_the_guest_did_not() {
        let ram = GuestRam::allocate(ByteSize::from_mib(64), false).unwrap();
        put(&ram, 9, 1);
        let resident = || {
            let mut private = 0;
            let address = ram.guest().iter().next().unwrap().as_ptr() as u64;
            private_runs::<PageMapError>(&ram.pagemap, address, 64 << 20, |run| {
                private += run.end - run.start;
                Ok(())
            })
            .unwrap();
            private
        };
        let before = resident();
        assert!(before > 0 && before <= 2 << 20, "{before}");
        ram.write_to(&tempfile::tempfile().unwrap(), 0).unwrap();
        assert_eq!(resident(), before);
    }

    #[test]
    fn ram_that_came_from_a_file_is_written_whole() {
        let base = tempfile::tempfile().unwrap();
        base.set_len(BYTES + PAGE).unwrap();
        for (page, byte) in [(3, 3), (4, 4), (5, 5), (40, 40)] {
            base.write_all_at(&[byte; ZEROS.len()], (page + 1) * PAGE)
                .unwrap();
        }
        let size = ByteSize::from_bytes(BYTES);
        let ram = GuestRam::from_file(&base, PAGE, size).unwrap();
        // Read, written over, written over with zeros, new.
        assert_eq!(
            ram.guest().read_obj::<u8>(GuestAddress(3 * PAGE)).unwrap(),
            3
        );
        put(&ram, 4, 14);
        put(&ram, 5, 0);
        put(&ram, 20, 20);
        let second = tempfile::tempfile().unwrap();
        ram.write_to(&second, 0).unwrap();
        let first = expected(&[(3, 3), (4, 14), (20, 20), (40, 40)]);
        assert_eq!(pages(&second, 0, 64), first);
        assert!(second.metadata().unwrap().blocks() * 512 < BYTES);

        // A copy of the copy, and between file systems, where the host copies nothing.
        let ram = GuestRam::from_file(&second, 0, size).unwrap();
        put(&ram, 63, 63);
        let third = tempfile::tempfile_in("/dev/shm").unwrap();
        ram.write_to(&third, 0).unwrap();
        let mut all = first;
        all[63] = 63;
        assert_eq!(pages(&third, 0, 64), all);
    }

    #[test]
    fn both_sides_of_the_hole_stand_in_the_file_one_after_the_other() {
        let ram = GuestRam::allocate(ByteSize::from_gib(4), false).unwrap();
        let high = GuestAddress(4 << 30);
        ram.guest()
            .write_obj(1_u8, GuestAddress((3 << 30) - 1))
            .unwrap();
        ram.guest().write_obj(2_u8, high).unwrap();
        let file = tempfile::tempfile().unwrap();
        ram.write_to(&file, 0).unwrap();
        let mut pair = [0; 2];
        file.read_exact_at(&mut pair, (3 << 30) - 1).unwrap();
        assert_eq!(pair, [1, 2]);

        let ram = GuestRam::from_file(&file, 0, ByteSize::from_gib(4)).unwrap();
        ram.guest()
            .write_obj(3_u8, GuestAddress(high.0 + 1))
            .unwrap();
        let again = tempfile::tempfile().unwrap();
        ram.write_to(&again, 0).unwrap();
        let mut three = [0; 3];
        again.read_exact_at(&mut three, (3 << 30) - 1).unwrap();
        assert_eq!(three, [1, 2, 3]);
    }

    #[test]
    fn what_was_plugged_in_is_saved_and_comes_from_the_file_like_the_rest() {
        let size = ByteSize::from_mib(2);
        let block = crate::vm::spec::MEMORY_BLOCK.bytes();
        let mut ram = GuestRam::allocate(size, false).unwrap();
        for round in 1..4 {
            put(&ram, 7, round);
            let file = tempfile::tempfile().unwrap();
            ram.write_to(&file, 0).unwrap();
            // What a file has behind the RAM is not seen where more is plugged in.
            let end = ram.bytes();
            file.write_all_at(b"behind", end).unwrap();

            let pieces = ram.pieces().clone();
            ram = GuestRam::from_file(&file, 0, pieces).unwrap();
            ram.plug(block, false).unwrap();
            assert_eq!(ram.bytes(), end + block);
            let plugged = ram.pieces().plugged();
            assert_eq!(plugged.len(), usize::from(round));
            for ((start, _), value) in plugged.iter().zip(1_u8..) {
                let first = GuestAddress(*start);
                let last = GuestAddress(start + block - 1);
                let expected = if value == round { [0; 2] } else { [value; 2] };
                let seen = [first, last].map(|at| ram.guest().read_obj::<u8>(at).unwrap());
                assert_eq!(seen, expected, "piece {value} in round {round}");
                ram.guest().write_obj(value, first).unwrap();
                ram.guest().write_obj(value, last).unwrap();
            }
            let at = GuestAddress(7 * PAGE);
            assert_eq!(ram.guest().read_obj::<u8>(at).unwrap(), round);
        }
    }

    #[test]
    fn zero_pages_part_the_runs() {
        let page = ZEROS.len();
        let mut chunk = vec![0; 6 * page];
        assert!(nonzero_runs(&chunk).is_empty());
        for at in [page, 2 * page + 17, 6 * page - 1] {
            chunk[at] = 1;
        }
        assert_eq!(nonzero_runs(&chunk), [page..3 * page, 5 * page..6 * page]);
    }
}
