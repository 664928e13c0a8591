//! Flat segments for the boot processor: the table in RAM, and what its registers hold of it.
//!
//! ```text
//!  00 null   08 null   10 code (__BOOT_CS)   18 data (__BOOT_DS)   20 task state
//! ```
//! Source: Intel SDM volume 3, 3.4.5 (segment descriptors); Linux, Documentation/arch/x86/boot.rst.

use kvm_bindings::kvm_segment;

const CODE: usize = 2;
const DATA: usize = 3;
const TASK: usize = 4;

/// The descriptors of one mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segments([u64; 5]);

impl Segments {
    /// 64-bit code, flat data.
    pub(crate) const LONG: Self = Self([
        0,
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x008f_8b00_0000_ffff,
    ]);

    /// Flat 32-bit code and data, and the 104 bytes of a 32-bit task state, as PVH has it.
    pub(crate) const PROTECTED: Self = Self([
        0,
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x0000_8b00_0000_0067,
    ]);

    /// The table as it stands in RAM.
    pub(crate) fn table(&self) -> Vec<u8> {
        self.0
            .iter()
            .flat_map(|entry| entry.to_le_bytes())
            .collect()
    }

    /// The last valid offset in the table, for GDTR.
    pub(crate) fn limit(&self) -> u16 {
        39
    }

    /// For CS.
    pub(crate) fn code(&self) -> kvm_segment {
        self.register(CODE)
    }

    /// For DS, ES, FS, GS and SS.
    pub(crate) fn data(&self) -> kvm_segment {
        self.register(DATA)
    }

    /// For TR.
    pub(crate) fn task(&self) -> kvm_segment {
        self.register(TASK)
    }

    fn register(&self, index: usize) -> kvm_segment {
        let descriptor = self.0[index];
        // The mask leaves what the type holds.
        let bits = |from: u32, count: u32| (descriptor >> from & ((1 << count) - 1)) as u32;
        let bit = |from: u32| u8::from(bits(from, 1) == 1);
        let raw_limit = bits(0, 16) | bits(48, 4) << 16;
        let granular = bit(55);
        kvm_segment {
            base: u64::from(bits(16, 24) | bits(56, 8) << 24),
            limit: if granular == 1 {
                raw_limit << 12 | 0xfff
            } else {
                raw_limit
            },
            selector: (index * 8) as u16,
            type_: bits(40, 4) as u8,
            present: bit(47),
            dpl: bits(45, 2) as u8,
            db: bit(54),
            s: bit(44),
            l: bit(53),
            g: granular,
            avl: bit(52),
            unusable: 0,
            padding: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_say_what_the_descriptors_do() {
        let flat = kvm_segment {
            limit: u32::MAX,
            present: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        let code = kvm_segment {
            selector: 0x10,
            type_: 0xb,
            ..flat
        };
        let data = kvm_segment {
            selector: 0x18,
            type_: 3,
            db: 1,
            ..flat
        };
        let task = kvm_segment {
            selector: 0x20,
            type_: 0xb,
            present: 1,
            ..Default::default()
        };
        for (register, expected) in [
            (Segments::LONG.code(), kvm_segment { l: 1, ..code }),
            (Segments::LONG.data(), data),
            (
                Segments::LONG.task(),
                kvm_segment {
                    limit: u32::MAX,
                    g: 1,
                    ..task
                },
            ),
            (Segments::PROTECTED.code(), kvm_segment { db: 1, ..code }),
            (Segments::PROTECTED.data(), data),
            (
                Segments::PROTECTED.task(),
                kvm_segment {
                    limit: 0x67,
                    ..task
                },
            ),
        ] {
            assert_eq!(register, expected);
        }
        let table = Segments::LONG.table();
        assert_eq!(table.len(), usize::from(Segments::LONG.limit()) + 1);
        assert_eq!(table[16..24], 0x00af_9b00_0000_ffff_u64.to_le_bytes());
    }
}
