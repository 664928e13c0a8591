//! The registers.
//!
//! Invariant: they stay as they are for as long as this VM is in this process, so any width and order of
//! reading gives the same.

use crate::micro::bus::Region;
use crate::micro::layout::MEMORY_SLOTS;

/// Where the slots begin, from `layout::PLUG_PORT` on.
pub(crate) const SLOTS: u64 = 8;

/// Bytes of one slot.
pub(crate) const SLOT: u64 = 16;

/// Ports from `layout::PLUG_PORT` on.
pub(crate) const PORTS: u64 = SLOTS + SLOT * MEMORY_SLOTS as u64;

/// The registers, byte by byte.
#[derive(Debug)]
pub(crate) struct Plug(Vec<u8>);

impl Plug {
    /// Of a VM with `cpus` processors, and with `memory` in its slots: addresses and lengths.
    pub(crate) fn new(cpus: u32, memory: &[(u64, u64)]) -> Self {
        let filled = u32::try_from(memory.len()).unwrap_or(MEMORY_SLOTS);
        let mut bytes = [cpus.to_le_bytes(), filled.to_le_bytes()].concat();
        for (start, length) in memory {
            bytes.extend(start.to_le_bytes());
            bytes.extend(length.to_le_bytes());
        }
        bytes.resize(usize::try_from(PORTS).unwrap_or(0), 0);
        Self(bytes)
    }
}

impl Region for Plug {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (place, byte) in (offset..).zip(data) {
            let place = usize::try_from(place).unwrap_or(usize::MAX);
            *byte = self.0.get(place).copied().unwrap_or(0);
        }
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(plug: &mut Plug, offset: u64, width: usize) -> u64 {
        let mut bytes = [0; 8];
        plug.read(offset, &mut bytes[..width]);
        u64::from_le_bytes(bytes)
    }

    #[test]
    fn the_registers_say_what_there_is_and_cannot_be_written() {
        let mut plug = Plug::new(4, &[(4 << 30, 1 << 29), (6 << 30, 5 << 32)]);
        for _ in 0..2 {
            for (offset, width, expected) in [
                (0, 4, 4),
                (4, 4, 2),
                (0, 8, 2 << 32 | 4),
                (8, 8, 4 << 30),
                (16, 8, 1 << 29),
                (24, 4, 0x8000_0000),
                (28, 4, 1),
                (32, 4, 0),
                (36, 4, 5),
                (40, 8, 0),
                (PORTS - 1, 1, 0),
                (PORTS - 1, 8, 0),
            ] {
                assert_eq!(read(&mut plug, offset, width), expected, "{offset}");
            }
            plug.write(0, &[0xff; 64]);
        }
    }

    #[test]
    fn a_vm_that_never_grew_has_empty_slots() {
        let mut plug = Plug::new(1, &[]);
        assert_eq!(read(&mut plug, 0, 8), 1);
        let rest = (SLOTS..PORTS).map(|offset| read(&mut plug, offset, 1));
        assert!(rest.max() == Some(0));
    }
}
