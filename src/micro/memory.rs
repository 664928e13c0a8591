//! Guest RAM: private mappings, fresh or copy-on-write from a snapshot's memory file.
//!
//! ```text
//!  guest address 0 ………… 3 GiB │ hole │ 4 GiB …………   6 GiB …………    one KVM slot and one mapping a piece
//!                 │                       │             │
//!  memory file    0 ………… 3 GiB            3 GiB …………    (plugged)       the pieces without the holes
//! ```
//! What is plugged in is fresh where it is plugged in, and comes from the file as the rest does when the
//! VM was saved with it.
//! Invariants: mappings are private, so no guest changes a file that another one reads; a memory file
//! stays as long as it was while anything maps it (a shorter one ends the process by SIGBUS).

#![expect(
    unsafe_code,
    reason = "mappings are advised on and given to KVM by address"
)]

mod fill;
mod pages;
mod pieces;
mod save;

use std::fs::File;
use std::io;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::mm::Advice;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionCollectionError, GuestRegionMmap,
};

pub(crate) use pieces::Pieces;

/// Bytes in a page.
pub(crate) const PAGE: u64 = 4096;

/// Bytes in a page of the host's huge page pool.
const HUGE_PAGE: u64 = 2 << 20;

/// Why guest RAM cannot be had, given to KVM, or saved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    /// The size is none that can be mapped.
    #[error("guest RAM of {bytes} bytes is no multiple of {page} bytes, or none at all")]
    Size {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes in a page.
        page: u64,
    },
    /// The offset in the memory file is none that can be mapped.
    #[error("guest RAM begins at byte {offset} of its file, which is no multiple of {PAGE}")]
    Offset {
        /// Where RAM begins.
        offset: u64,
    },
    /// The memory file ends too soon.
    #[error("the memory file has {length} bytes where guest RAM needs {needed}")]
    Short {
        /// Bytes there.
        length: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// The host refuses the mapping.
    #[error("cannot map {bytes} bytes of guest RAM")]
    Map {
        /// Length of the piece.
        bytes: u64,
        /// Why.
        #[source]
        source: MmapRegionError,
    },
    /// The pieces do not make an address space.
    #[error("cannot put guest RAM together")]
    Assemble(#[source] GuestRegionCollectionError),
    /// The host refuses advice on the mapping.
    #[error("cannot advise the host on guest RAM")]
    Advise(#[source] io::Error),
    /// KVM refuses the memory.
    #[error("KVM does not take guest RAM at {start:#x}")]
    Register {
        /// Guest address of the piece.
        start: u64,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A file that RAM comes from, goes to, or is described by cannot be used.
    #[error("cannot {operation}")]
    File {
        /// The rest of the sentence.
        operation: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes an error of a failed file operation.
fn failed<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> MemoryError {
    move |source| MemoryError::File {
        operation,
        source: source.into(),
    }
}

/// The RAM of a VM.
#[derive(Debug)]
pub(crate) struct GuestRam {
    pieces: Pieces,
    memory: GuestMemoryMmap,
    /// What pages that are not private show.
    base: Option<Base>,
    /// `/proc/self/pagemap`, opened while the process may.
    pagemap: File,
}

/// The memory file below copy-on-write RAM.
#[derive(Debug)]
struct Base {
    file: File,
    offset: u64,
    /// How much of the RAM it is below; what was plugged in since is fresh.
    bytes: u64,
}

impl GuestRam {
    /// Fresh RAM, all zero. Huge pages are reserved at once: without enough of them in the host's
    /// pool this fails, and not the guest later. Other RAM is taken when it is touched.
    ///
    /// # Errors
    /// The size is no multiple of a page, or the host has not enough memory.
    pub(crate) fn allocate(
        pieces: impl Into<Pieces>,
        hugepages: bool,
    ) -> Result<Self, MemoryError> {
        let pieces = pieces.into();
        let page = if hugepages { HUGE_PAGE } else { PAGE };
        check_size(pieces.bytes(), page)?;
        let ranges = pieces.ranges().into_iter();
        let regions = ranges.map(|(start, length)| fresh(start, length, hugepages));
        Self::assemble(pieces, regions.collect::<Result<_, _>>()?, None)
    }

    /// RAM that shows `file` from `offset` on, and keeps what the guest writes to itself.
    ///
    /// # Errors
    /// Size or offset is no multiple of a page, the file is too short or cannot be mapped.
    pub(crate) fn from_file(
        file: &File,
        offset: u64,
        pieces: impl Into<Pieces>,
    ) -> Result<Self, MemoryError> {
        let pieces = pieces.into();
        let bytes = pieces.bytes();
        check_size(bytes, PAGE)?;
        if !offset.is_multiple_of(PAGE) {
            return Err(MemoryError::Offset { offset });
        }
        let length = file
            .metadata()
            .map_err(failed("ask for the length of the memory file"))?
            .len();
        let needed = offset.saturating_add(bytes);
        if length < needed {
            return Err(MemoryError::Short { length, needed });
        }
        let clone = || file.try_clone().map_err(failed("share the memory file"));
        let mut regions = Vec::new();
        let mut position = offset;
        for (start, length) in pieces.ranges() {
            let at = FileOffset::new(clone()?, position);
            let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
            regions.push(map(start, length, flags, Some(at))?);
            position += length;
        }
        let base = Base {
            file: clone()?,
            offset,
            bytes,
        };
        Self::assemble(pieces, regions, Some(base))
    }

    fn assemble(
        pieces: Pieces,
        regions: Vec<GuestRegionMmap>,
        base: Option<Base>,
    ) -> Result<Self, MemoryError> {
        Ok(Self {
            pieces,
            memory: GuestMemoryMmap::from_regions(regions).map_err(MemoryError::Assemble)?,
            base,
            pagemap: File::open("/proc/self/pagemap").map_err(failed("open the page map"))?,
        })
    }

    /// Adds fresh RAM above all other. Who has the address space already does not see it.
    ///
    /// # Errors
    /// As of [`GuestRam::allocate`].
    pub(crate) fn plug(&mut self, bytes: u64, hugepages: bool) -> Result<(), MemoryError> {
        check_size(bytes, if hugepages { HUGE_PAGE } else { PAGE })?;
        let region = fresh(self.pieces.plug(bytes), bytes, hugepages)?;
        let memory = self.memory.insert_region(Arc::new(region));
        self.memory = memory.map_err(MemoryError::Assemble)?;
        Ok(())
    }

    /// Of which pieces it is made.
    pub(crate) fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// The address space.
    pub(crate) fn guest(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Length of the RAM in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.pieces.bytes()
    }

    /// Gives the RAM to a VM, a slot a piece, from slot 0 on. The RAM must outlive the VM's last run.
    ///
    /// # Errors
    /// KVM refuses it.
    pub(crate) fn register(&self, vm: &VmFd) -> Result<(), MemoryError> {
        for (slot, region) in (0..).zip(self.memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped for as long as its `GuestMemoryMmap` lives, which the
            // caller keeps.
            unsafe { vm.set_user_memory_region(slot) }.map_err(|source| MemoryError::Register {
                start: slot.guest_phys_addr,
                source,
            })?;
        }
        Ok(())
    }
}

fn check_size(bytes: u64, page: u64) -> Result<(), MemoryError> {
    if bytes == 0 || !bytes.is_multiple_of(page) {
        return Err(MemoryError::Size { bytes, page });
    }
    Ok(())
}

/// Maps a piece of fresh RAM.
fn fresh(start: u64, bytes: u64, hugepages: bool) -> Result<GuestRegionMmap, MemoryError> {
    let flags = if hugepages {
        libc::MAP_HUGETLB | libc::MAP_HUGE_2MB
    } else {
        libc::MAP_NORESERVE
    };
    let flags = flags | libc::MAP_ANONYMOUS | libc::MAP_PRIVATE;
    let region = map(start, bytes, flags, None)?;
    if !hugepages {
        // Fewer faults and translations. A host that has no transparent huge pages refuses.
        let _ = advise(&region, Advice::LinuxHugepage);
    }
    Ok(region)
}

fn advise(region: &GuestRegionMmap, advice: Advice) -> Result<(), MemoryError> {
    // SAFETY: the region is mapped, and the advice changes nothing that is read from it.
    unsafe { rustix::mm::madvise(region.as_ptr().cast(), region.size(), advice) }
        .map_err(|errno| MemoryError::Advise(errno.into()))
}

/// Maps a piece of RAM, which is not cocoon's to leave in a core file.
fn map(
    start: u64,
    bytes: u64,
    flags: i32,
    file: Option<FileOffset>,
) -> Result<GuestRegionMmap, MemoryError> {
    let failed = |source| MemoryError::Map { bytes, source };
    let size = usize::try_from(bytes).map_err(|_| failed(MmapRegionError::InvalidOffsetLength))?;
    let mut builder = MmapRegionBuilder::new(size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags);
    if let Some(file) = file {
        builder = builder.with_file_offset(file);
    }
    let mapping = builder.build().map_err(failed)?;
    let region = GuestRegionMmap::new(mapping, GuestAddress(start))
        .ok_or(failed(MmapRegionError::InvalidOffsetLength))?;
    advise(&region, Advice::LinuxDontDump)?;
    Ok(region)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::ByteSize;
    use vm_memory::Bytes;

    #[test]
    fn sizes_and_offsets_that_cannot_be_mapped_are_refused() {
        for (bytes, hugepages) in [(0, false), (4095, false), (3 << 20, true), (0, true)] {
            let made = GuestRam::allocate(ByteSize::from_bytes(bytes), hugepages);
            assert!(
                matches!(made, Err(MemoryError::Size { .. })),
                "{bytes} {hugepages}"
            );
        }
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let size = ByteSize::from_bytes(8192);
        assert!(GuestRam::from_file(&file, 0, size).is_ok());
        for offset in [4096, u64::MAX - 4095] {
            let made = GuestRam::from_file(&file, offset, size);
            assert!(matches!(made, Err(MemoryError::Short { .. })), "{offset}");
        }
        let made = GuestRam::from_file(&file, 12, size);
        assert!(matches!(made, Err(MemoryError::Offset { offset: 12 })));
    }

    #[test]
    fn ram_beyond_the_hole_continues_at_4_gib() {
        let ram = GuestRam::allocate(ByteSize::from_gib(4), false).unwrap();
        let top = GuestAddress((5 << 30) - 8);
        ram.guest().write_obj(7_u64, top).unwrap();
        assert_eq!(ram.guest().read_obj::<u64>(top).unwrap(), 7);
        assert!(!ram.guest().address_in_range(GuestAddress(3 << 30)));
        assert_eq!(ram.bytes(), 4 << 30);
    }

    #[test]
    fn what_a_guest_writes_stays_out_of_the_file_it_came_from() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 << 12).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"before", 2 << 12).unwrap();
        let ram = GuestRam::from_file(&file, 1 << 12, ByteSize::from_bytes(3 << 12)).unwrap();
        let mut text = [0; 6];
        ram.guest()
            .read_slice(&mut text, GuestAddress(1 << 12))
            .unwrap();
        assert_eq!(&text, b"before");
        ram.guest()
            .write_slice(b"after!", GuestAddress(1 << 12))
            .unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut text, 2 << 12).unwrap();
        assert_eq!(&text, b"before");
    }

    #[test]
    fn what_is_plugged_in_is_fresh_and_whole_like_the_rest() {
        let file = tempfile::tempfile().unwrap();
        // What follows the RAM in the file is none of it.
        file.set_len((64 << 20) + PAGE).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"after", 64 << 20).unwrap();
        let mut ram = GuestRam::from_file(&file, 0, ByteSize::from_mib(64)).unwrap();
        let early = ram.guest().clone();
        for mib in [128, 256] {
            ram.plug(mib << 20, false).unwrap();
        }
        assert_eq!(ram.bytes(), (64 + 128 + 256) << 20);
        for (at, inside) in [
            (4 << 30, true),
            ((4 << 30) + (128 << 20) - 8, true),
            ((4 << 30) + (128 << 20), false),
            (6 << 30, true),
            ((6 << 30) + (256 << 20) - 8, true),
            ((6 << 30) + (256 << 20), false),
        ] {
            let at = GuestAddress(at);
            assert_eq!(ram.guest().address_in_range(at), inside, "{at:?}");
            assert!(!early.address_in_range(at));
            if inside {
                assert_eq!(ram.guest().read_obj::<u64>(at).unwrap(), 0);
            }
        }
        for bytes in [0, PAGE + 1] {
            assert!(matches!(
                ram.plug(bytes, false),
                Err(MemoryError::Size { .. })
            ));
        }
        assert!(ram.plug(PAGE, true).is_err());
    }

    #[test]
    fn kvm_takes_all_pieces() {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            eprintln!("SKIPPED: /dev/kvm does not open");
            return;
        };
        let mut ram = GuestRam::allocate(ByteSize::from_gib(5), false).unwrap();
        ram.plug(128 << 20, false).unwrap();
        let vm = kvm.create_vm().unwrap();
        ram.register(&vm).unwrap();
        let again = ram.register(&vm);
        assert!(again.is_ok(), "the same slots may be given again");
        let other = GuestRam::allocate(ByteSize::from_gib(4), false).unwrap();
        assert!(matches!(
            other.register(&vm),
            Err(MemoryError::Register { .. })
        ));
    }
}
