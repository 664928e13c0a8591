//! bzImages, by the 64-bit Linux boot protocol.
//!
//! ```text
//!  file   0 ── boot sector, setup header at 1f1 ── (setup_sects + 1) × 512 ── kernel ── end
//!  RAM                                              100000 ─────────────────▶ entry at + 200
//!         a relocatable kernel unpacks itself at its preferred address: init_size bytes from there
//! ```
//! Source: Linux, Documentation/arch/x86/boot.rst.

use std::fs::File;

use linux_loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{ByteValued, GuestAddress, GuestMemoryMmap};

use super::{BootError, Loaded, Way, length_of, read_at};
use crate::micro::layout;

/// Where the header stands in the file.
const HEADER: u64 = 0x1f1;

/// `HdrS`.
const MAGIC: u32 = 0x5372_6448;

/// The first version that says where in itself the kernel may be entered.
const VERSION: u16 = 0x20c;

/// `LOADED_HIGH` of `loadflags`.
const LOADED_HIGH: u8 = 1;

/// `XLF_KERNEL_64` of `xloadflags`: there is a 64-bit entry.
const KERNEL_64: u16 = 1;

/// `XLF_CAN_BE_LOADED_ABOVE_4G`: an initrd may stand anywhere, `initrd_addr_max` notwithstanding.
const ANYWHERE: u16 = 2;

/// The 64-bit entry, from the kernel's begin.
const ENTRY: u64 = 0x200;

/// Loads the kernel at [`layout::KERNEL_START`].
pub(super) fn load(
    ram: &GuestMemoryMmap,
    kernel: &File,
    low_end: u64,
) -> Result<Loaded, BootError> {
    let mut header = setup_header::default();
    read_at(kernel, header.as_mut_slice(), HEADER)?;
    let end = check(&header, length_of(kernel, "kernel")?, low_end)?;
    let mut file = kernel;
    let start = GuestAddress(layout::KERNEL_START);
    BzImage::load(ram, Some(start), &mut file, None).map_err(BootError::Load)?;
    header.code32_start = 0x10_0000;
    let initrd_limit = if header.xloadflags & ANYWHERE == 0 {
        u64::from(header.initrd_addr_max) + 1
    } else {
        u64::MAX
    };
    Ok(Loaded {
        address: GuestAddress(layout::KERNEL_START + ENTRY),
        end,
        command_line_size: u64::from(header.cmdline_size) + 1,
        initrd_limit,
        way: Way::ZeroPage(Box::new(header)),
    })
}

/// Checks that the kernel can be started and fits; returns the end of the RAM that it needs.
fn check(header: &setup_header, file_bytes: u64, low_end: u64) -> Result<u64, BootError> {
    if header.header != MAGIC || header.boot_flag != 0xaa55 {
        return Err(BootError::Format);
    }
    for (holds, why) in [
        (
            header.version >= VERSION,
            "its boot protocol is older than 2.12",
        ),
        (header.loadflags & LOADED_HIGH != 0, "it is a zImage"),
        (
            header.xloadflags & KERNEL_64 != 0,
            "it is not a 64-bit kernel",
        ),
    ] {
        if !holds {
            return Err(BootError::Unsupported { why });
        }
    }
    let sectors = match header.setup_sects {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let setup = (sectors + 1) * 512;
    if file_bytes <= setup {
        return Err(BootError::Truncated {
            length: file_bytes,
            needed: setup + 1,
        });
    }
    let start = layout::KERNEL_START;
    let unpacked = match header.relocatable_kernel {
        0 => start,
        _ => start.max(header.pref_address),
    };
    let end = unpacked
        .saturating_add(u64::from(header.init_size))
        .max(start + (file_bytes - setup));
    if end > low_end {
        return Err(BootError::KernelTooLarge {
            start,
            end,
            ram_end: low_end,
        });
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header that the checks pass, of a kernel of 1 MiB that unpacks to 16 MiB.
    fn good() -> setup_header {
        setup_header {
            setup_sects: 1,
            boot_flag: 0xaa55,
            header: MAGIC,
            version: 0x20f,
            loadflags: LOADED_HIGH,
            xloadflags: KERNEL_64 | ANYWHERE,
            relocatable_kernel: 1,
            pref_address: 16 << 20,
            init_size: 16 << 20,
            cmdline_size: 2047,
            ..Default::default()
        }
    }

    #[test]
    fn headers_are_judged() {
        type Case = (
            &'static str,
            fn(&mut setup_header),
            Result<u64, &'static str>,
        );
        let cases: [Case; 9] = [
            ("good", |_| {}, Ok(32 << 20)),
            ("fixed", |h| h.relocatable_kernel = 0, Ok(17 << 20)),
            ("small", |h| h.init_size = 0, Ok(16 << 20)),
            ("no magic", |h| h.header = 0, Err("neither")),
            ("no flag", |h| h.boot_flag = 0, Err("neither")),
            ("old", |h| h.version = 0x20b, Err("older")),
            ("low", |h| h.loadflags = 0x80, Err("zImage")),
            ("32-bit", |h| h.xloadflags = ANYWHERE, Err("64-bit")),
            ("huge", |h| h.pref_address = u64::MAX, Err("needs RAM")),
        ];
        for (name, change, expected) in cases {
            let mut header = good();
            change(&mut header);
            match (check(&header, (1 << 20) + 1024, 64 << 20), expected) {
                (Ok(end), Ok(expected)) => assert_eq!(end, expected, "{name}"),
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
                (got, _) => panic!("{name}: {got:?}"),
            }
        }
    }

    #[test]
    fn sizes_are_named_when_a_kernel_does_not_fit() {
        let error = check(&good(), 2 << 20, 24 << 20).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the kernel needs RAM from 0x100000 to 0x2000000, which ends at 0x1800000"
        );
        let error = check(&good(), 1024, 64 << 20).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the kernel ends after 1024 bytes, but speaks of 1025"
        );
    }
}
