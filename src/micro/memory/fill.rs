//! A memory file into fresh RAM: for RAM of huge pages, which cannot show a file.
//!
//! ```text
//!  file:   hole     data            hole      data
//!          ▼        ▼ read          ▼         ▼ read
//!  RAM:    stays    in place        stays     in place
//! ```
//! This takes as long as there is data, other than [`GuestRam::from_file`].

use std::fs::File;
use std::io::{Seek, SeekFrom};

use vm_memory::{Bytes, GuestMemory, GuestMemoryRegion, MemoryRegionAddress};

use super::save::next_data;
use super::{GuestRam, MemoryError, failed};

impl GuestRam {
    /// Reads into fresh RAM what `file` holds from `offset` on.
    ///
    /// # Errors
    /// The file is too short or cannot be read.
    pub(crate) fn fill_from(&self, file: &File, offset: u64) -> Result<(), MemoryError> {
        let needed = offset.saturating_add(self.bytes());
        let length = file
            .metadata()
            .map_err(failed("ask for the length of the memory file"))?
            .len();
        if length < needed {
            return Err(MemoryError::Short { length, needed });
        }
        let mut begin = offset;
        for region in self.memory.iter() {
            let end = begin + region.len();
            let mut position = begin;
            while let Some(data) = next_data(file, position)?.filter(|data| data.start < end) {
                let data = data.start..data.end.min(end);
                let (mut file, bytes) = (file, data.end - data.start);
                file.seek(SeekFrom::Start(data.start))
                    .map_err(failed("seek in the memory file"))?;
                let at = MemoryRegionAddress(data.start - begin);
                region
                    .read_exact_volatile_from(at, &mut file, usize::try_from(bytes).unwrap_or(0))
                    .map_err(std::io::Error::other)
                    .map_err(failed("read the memory file"))?;
                position = data.end;
            }
            begin = end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::ByteSize;
    use vm_memory::GuestAddress;

    /// Writes at both ends, below and above the hole if there is one, saves, and fills another.
    fn round(size: ByteSize, hugepages: bool) {
        let ram = GuestRam::allocate(size, hugepages).unwrap();
        let last = GuestAddress(ram.guest().last_addr().0 - 7);
        let places = [GuestAddress(0), GuestAddress(0x12_3456), last];
        for (place, value) in places.into_iter().zip(1_u64..) {
            ram.guest().write_obj(value, place).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        ram.write_to(&file, 4096).unwrap();
        drop(ram);
        let ram = GuestRam::allocate(size, hugepages).unwrap();
        ram.fill_from(&file, 4096).unwrap();
        for (place, value) in places.into_iter().zip(1_u64..) {
            assert_eq!(ram.guest().read_obj::<u64>(place).unwrap(), value);
        }
        assert_eq!(ram.guest().read_obj::<u64>(GuestAddress(8)).unwrap(), 0);
        assert!(matches!(
            ram.fill_from(&file, 8192),
            Err(MemoryError::Short { .. })
        ));
    }

    #[test]
    fn fresh_ram_is_filled_with_what_was_saved() {
        round(ByteSize::from_mib(64), false);
        round(ByteSize::from_gib(4), false);
    }

    #[test]
    fn huge_pages_are_saved_and_filled_too() {
        let size = ByteSize::from_mib(8);
        if crate::sys::hugepages::free_bytes() < size.bytes() {
            eprintln!("SKIPPED: fewer than 8 MiB of free huge pages");
            let made = GuestRam::allocate(ByteSize::from_gib(1024), true);
            assert!(matches!(made, Err(MemoryError::Map { .. })));
            return;
        }
        round(size, true);
    }
}
