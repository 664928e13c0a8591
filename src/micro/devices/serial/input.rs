//! What people type, on its way to the guest.
//!
//! ```text
//!            readable: read at most the FIFO's room ──▶ receive
//!  watching ──────────── no room ─────────────▶ deaf
//!     ▲──── Room::event: the guest emptied it ────┘
//! ```
//! Input that the guest does not read stays in the pty, and then in the hub.

use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::console::Console;
use super::device::{Room, Serial};
use crate::micro::bus::{Shared, lock};

/// The events of an [`Input`].
const TYPED: u32 = 0;
const ROOM: u32 = 1;

/// Feeds a console's FIFO, on a lane.
#[derive(Debug)]
pub(crate) struct Input {
    console: Arc<Console>,
    serial: Shared<Serial>,
    room: Arc<Room>,
}

impl Input {
    /// The input of `serial`, which is on `console`. One of a console at a time may be on a lane:
    /// when a guest reboots, the last one is taken off first.
    pub(crate) fn new(console: &Arc<Console>, serial: &Shared<Serial>) -> Self {
        Self {
            console: Arc::clone(console),
            serial: Arc::clone(serial),
            room: lock(serial).room(),
        }
    }

    fn watch(&self, typed: EventSet) -> Events {
        Events::with_data(&self.console.main(), TYPED, typed)
    }

    /// Feeds what there is. Returns whether more may be fed.
    fn feed(&self) -> std::io::Result<bool> {
        let mut serial = lock(&self.serial);
        let capacity = serial.capacity();
        let mut buffer = vec![0; capacity];
        let read = self.console.read(&mut buffer)?;
        serial.receive(&buffer[..read]);
        Ok(capacity > 0)
    }

    fn typed(&self, ops: &mut EventOps<'_>) -> Result<(), String> {
        match self.feed() {
            Ok(true) => Ok(()),
            Ok(false) => ops
                .modify(self.watch(EventSet::empty()))
                .map_err(|error| error.to_string()),
            Err(error) => {
                // The guest goes on without a console.
                let _ = ops.remove(self.watch(EventSet::empty()));
                Err(error.to_string())
            }
        }
    }
}

impl MutEventSubscriber for Input {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let room = Events::with_data(&self.room.event, ROOM, EventSet::IN);
        for events in [self.watch(EventSet::IN), room] {
            if let Err(error) = ops.add(events) {
                tracing::error!(%error, "the guest's console will take no input");
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let done = match events.data() {
            ROOM => {
                // Nothing but the event itself is of interest.
                let _ = self.room.event.read();
                ops.modify(self.watch(EventSet::IN))
                    .map_err(|error| error.to_string())
            }
            _ => self.typed(ops),
        };
        if let Err(error) = done {
            tracing::error!(%error, "the guest's console takes no input any more");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::micro::bus::Region;
    use crate::micro::lane::Lanes;
    use vmm_sys_util::eventfd::EventFd;

    fn get(serial: &Shared<Serial>, offset: u64) -> u8 {
        let mut byte = [0];
        lock(serial).read(offset, &mut byte);
        byte[0]
    }

    #[test]
    fn a_page_pasted_at_once_arrives_whole_at_the_guests_pace() {
        let console = Console::open().unwrap();
        let line = EventFd::new(0).unwrap();
        let serial = Serial::new(&console, line.try_clone().unwrap(), None).unwrap();
        lock(&serial).write(1, &[1]);
        let prologue = crate::micro::seccomp::lane().unwrap();
        let lanes = Lanes::start(1, &prologue).unwrap();
        lanes.watch(0, Input::new(&console, &serial)).unwrap();

        let hub = console.terminal().unwrap();
        let pasted: Vec<u8> = (0..20_000_u32)
            .map(|i| u8::try_from(i % 251).unwrap())
            .collect();
        let all = pasted.clone();
        let typist = std::thread::spawn(move || {
            let mut rest = &all[..];
            while !rest.is_empty() {
                let typed = rustix::io::write(&hub, rest).unwrap();
                rest = &rest[typed..];
            }
        });
        let mut got = Vec::new();
        while got.len() < pasted.len() {
            line.read().unwrap();
            // As a driver does: ask why, then take all.
            get(&serial, 2);
            while get(&serial, 5) & 1 == 1 {
                got.push(get(&serial, 0));
            }
        }
        assert!(got == pasted);
        typist.join().unwrap();
    }
}
