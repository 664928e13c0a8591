//! The id's making.

use std::io;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::micro::devices::power::device::Power;
use crate::micro::layout::GENERATION_ID;

/// Length of an id: that of a UUID.
const BYTES: usize = 16;

/// A VM without a generation id.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GenerationError {
    /// The host has no random numbers.
    #[error("cannot make a generation id")]
    Random(#[source] io::Error),
    /// The guest has no memory there.
    #[error("cannot give the guest its generation id")]
    Write(#[source] GuestMemoryError),
}

/// Gives a booting guest its first id.
///
/// # Errors
/// See [`GenerationError`].
pub(crate) fn begin(memory: &GuestMemoryMmap) -> Result<(), GenerationError> {
    let mut id = [0; BYTES];
    let mut filled = 0;
    while filled < BYTES {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut id[filled..], flags)
            .map_err(|error| GenerationError::Random(error.into()))?;
    }
    let address = GuestAddress(GENERATION_ID);
    memory
        .write_slice(&id, address)
        .map_err(GenerationError::Write)
}

/// Gives a restored guest a new id, before its vCPUs run, and has `power` tell it so.
///
/// # Errors
/// See [`GenerationError`].
pub(crate) fn renew(memory: &GuestMemoryMmap, power: &mut Power) -> Result<(), GenerationError> {
    begin(memory)?;
    power.generation_changed();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::micro::acpi::EVENT_GENERATION_ID;
    use crate::micro::bus::Region;
    use crate::micro::notice::Notices;
    use vmm_sys_util::eventfd::EventFd;

    fn id(memory: &GuestMemoryMmap) -> [u8; BYTES] {
        memory.read_obj(GuestAddress(GENERATION_ID)).unwrap()
    }

    #[test]
    fn a_restored_guest_gets_another_id_and_is_told() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        begin(&memory).unwrap();
        let first = id(&memory);
        assert_ne!(first, [0; BYTES]);

        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let notices = Notices::new(std::sync::mpsc::channel().0);
        let mut power = Power::new(line.try_clone().unwrap(), notices, None);
        renew(&memory, &mut power).unwrap();
        assert_ne!(id(&memory), first);
        assert_eq!(line.read().unwrap(), 1);
        let mut events = [0; 4];
        power.read(4, &mut events);
        assert_eq!(u32::from_le_bytes(events), EVENT_GENERATION_ID);
    }

    #[test]
    fn a_guest_without_memory_there_is_refused() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 16)]).unwrap();
        assert!(matches!(begin(&memory), Err(GenerationError::Write(_))));
    }
}
