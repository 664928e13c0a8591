//! The buses: which device answers at which guest address or port.
//!
//! ```text
//! vCPU exit (address, bytes) ─▶ Bus ─▶ region that holds the address ─▶ Region::{read, write}
//! ```
//! Invariants: regions do not overlap; reading where nothing is gives all ones, writing there does
//! nothing, as on a PC.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Registers of a device. A guest reaches these with any offset below the region's length and any
/// width: 1 to 8 bytes, and up to a page where a string instruction reads a port, all of which KVM
/// asks for at once. What makes no sense is ignored.
pub(crate) trait Region: Send {
    /// The guest reads `data.len()` bytes.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// The guest writes.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device as vCPUs and others share it.
pub(crate) type Shared<T> = Arc<Mutex<T>>;

/// An address space with devices in it.
#[derive(Clone, Default)]
pub(crate) struct Bus {
    regions: BTreeMap<u64, (u64, Shared<dyn Region>)>,
}

/// Two regions overlap.
#[derive(Debug, thiserror::Error)]
#[error("a device at {start:#x}, {length} bytes long, overlaps another one")]
pub(crate) struct Overlap {
    start: u64,
    length: u64,
}

impl Bus {
    /// Puts a device at `start`.
    ///
    /// # Errors
    /// Another one is there.
    pub(crate) fn insert(
        &mut self,
        start: u64,
        length: u64,
        region: Shared<dyn Region>,
    ) -> Result<(), Overlap> {
        let before = self.regions.range(..start + length).next_back();
        if before.is_some_and(|(other, (other_length, _))| other + other_length > start) {
            return Err(Overlap { start, length });
        }
        self.regions.insert(start, (length, region));
        Ok(())
    }

    /// The guest reads.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((offset, region)) => lock(region).read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, region)) = self.find(address) {
            lock(region).write(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(u64, &Shared<dyn Region>)> {
        let (start, (length, region)) = self.regions.range(..=address).next_back()?;
        let offset = address - start;
        (offset < *length).then_some((offset, region))
    }
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.regions.keys()).finish()
    }
}

/// Locks a device. A thread that panicked ends the process, so poison means nothing here.
pub(crate) fn lock<T: ?Sized>(device: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u64);

    impl Region for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(self.0 + offset).unwrap());
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0 = offset + u64::from(data[0]);
        }
    }

    fn bus() -> Bus {
        let mut bus = Bus::default();
        for start in [0x10, 0x20] {
            let device = Arc::new(Mutex::new(Echo(start)));
            bus.insert(start, 8, device).unwrap();
        }
        bus
    }

    #[test]
    fn each_address_reaches_its_device_and_the_rest_reads_as_ones() {
        let bus = bus();
        for (address, expected) in [
            (0x0f, 0xff),
            (0x10, 0x10),
            (0x17, 0x17),
            (0x18, 0xff),
            (0x23, 0x23),
            (u64::MAX, 0xff),
        ] {
            let mut byte = [0];
            bus.read(address, &mut byte);
            assert_eq!(byte[0], expected, "{address:#x}");
        }
        bus.write(0x11, &[4]);
        bus.write(0x1f, &[9]);
        let mut byte = [0];
        bus.read(0x10, &mut byte);
        assert_eq!(byte[0], 5);
    }

    #[test]
    fn overlapping_devices_are_refused() {
        for (start, length, fits) in [
            (0x08, 8, true),
            (0x09, 8, false),
            (0x17, 1, false),
            (0x18, 8, true),
            (0, 0x100, false),
        ] {
            let device = Arc::new(Mutex::new(Echo(0)));
            assert_eq!(
                bus().insert(start, length, device).is_ok(),
                fits,
                "{start:#x}"
            );
        }
    }
}
