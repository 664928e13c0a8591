//! The registers, as a driver reads and writes them.
//!
//! ```text
//! 0x000 what it is │ 0x010 features │ 0x030 queues │ 0x060 interrupt │ 0x070 status │ 0x100 configuration
//! ```
//! Source: virtio 1.2, 4.2.2. Registers are four bytes wide; the configuration is read and written as
//! the driver likes. What makes no sense reads as zero and is not written.

use virtio_queue::QueueState;

use super::{DRIVER_OK, FEATURES_OK, QUEUE_NOTIFY, Transport, state};
use crate::micro::bus::Region;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// Who made the device; Linux only shows it.
const VENDOR: u32 = u32::from_le_bytes(*b"coco");
/// Where the device's configuration begins.
const CONFIG: u64 = 0x100;

impl Region for Transport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            let config = self.device.config();
            let offset = usize::try_from(offset).unwrap_or(usize::MAX);
            let there = config.get(offset..).unwrap_or_default();
            let length = there.len().min(data.len());
            data[..length].copy_from_slice(&there[..length]);
        } else if let Ok(register) = <&mut [u8; 4]>::try_from(data) {
            *register = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.device.write_config(offset, data);
        } else if let Ok(register) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(register));
        }
    }
}

impl Transport {
    fn queue(&self) -> Option<&QueueState> {
        self.queues.get(usize::try_from(self.queue_selector).ok()?)
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.device.kind(),
            0x0c => VENDOR,
            0x10 => match self.device_features_selector {
                0 => low(state::offered(&*self.device)),
                1 => high(state::offered(&*self.device)),
                _ => 0,
            },
            0x34 => self.queue().map_or(0, |queue| u32::from(queue.max_size)),
            0x44 => self.queue().map_or(0, |queue| u32::from(queue.ready)),
            0x60 => self.interrupt.status(),
            0x70 => u32::from(self.status),
            // Shared memory regions: none, which a length of all ones says.
            0xb0 | 0xb4 | 0xb8 | 0xbc => u32::MAX,
            0xfc => self.interrupt.generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            0x14 => self.device_features_selector = value,
            0x20 if self.status & FEATURES_OK == 0 => match self.driver_features_selector {
                0 => set_low(&mut self.features, value),
                1 => set_high(&mut self.features, value),
                _ => {}
            },
            0x24 => self.driver_features_selector = value,
            0x30 => self.queue_selector = value,
            0x38 | 0x44 | 0x80..=0xa4 if self.status & DRIVER_OK == 0 => {
                self.write_queue(offset, value);
            }
            QUEUE_NOTIFY => {
                let kick = usize::try_from(value).ok();
                if let Some(kick) = kick.and_then(|index| self.kicks.get(index)) {
                    // As in `resume`.
                    let _ = kick.write(1);
                }
            }
            0x64 => self.interrupt.acknowledge(value),
            0x70 => self.set_status(value),
            _ => {}
        }
    }

    /// Takes all that the driver says of the selected queue; `DRIVER_OK` checks it.
    fn write_queue(&mut self, offset: u64, value: u32) {
        let selected = usize::try_from(self.queue_selector).ok();
        let Some(queue) = selected.and_then(|index| self.queues.get_mut(index)) else {
            return;
        };
        if offset == 0x44 {
            queue.ready = value & 1 != 0;
        }
        if queue.ready {
            return;
        }
        match offset {
            // A size that is none stays one: 0.
            0x38 => queue.size = u16::try_from(value).unwrap_or(0),
            0x80 => set_low(&mut queue.desc_table, value),
            0x84 => set_high(&mut queue.desc_table, value),
            0x90 => set_low(&mut queue.avail_ring, value),
            0x94 => set_high(&mut queue.avail_ring, value),
            0xa0 => set_low(&mut queue.used_ring, value),
            0xa4 => set_high(&mut queue.used_ring, value),
            _ => {}
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
fn low(value: u64) -> u32 {
    value as u32
}

fn high(value: u64) -> u32 {
    low(value >> 32)
}

fn set_low(register: &mut u64, value: u32) {
    *register = u64::from(high(*register)) << 32 | u64::from(value);
}

fn set_high(register: &mut u64, value: u32) {
    *register = u64::from(value) << 32 | u64::from(low(*register));
}
