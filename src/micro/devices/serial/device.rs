//! The 16550A's registers.
//!
//! Invariant: registers are one byte wide; wider accesses read as ones and write nothing.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vm_superio::serial::{Error, SerialEvents};
use vm_superio::{SerialState as Registers, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::console::{Console, Output};
use super::persist::SerialState;
use crate::micro::bus::{Region, Shared};

/// Ports of a 16550A.
pub(crate) const PORTS: u64 = 8;

/// The console cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the serial console")]
pub(crate) struct SerialError(#[source] Error<io::Error>);

/// The serial console.
#[derive(Debug)]
pub(crate) struct Serial {
    uart: vm_superio::Serial<Line, Arc<Room>, Output>,
}

/// The interrupt line, an irqfd.
#[derive(Debug)]
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Whether input waits for room in the FIFO, and how it is told that there is some.
#[derive(Debug)]
pub(super) struct Room {
    wanted: AtomicBool,
    pub(super) event: EventFd,
}

impl SerialEvents for Room {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        if self.wanted.swap(false, Ordering::SeqCst) {
            // Its counter never gets far: input reads it before it wants more room.
            let _ = self.event.write(1);
        }
    }
}

impl Serial {
    /// The console on `console`'s terminal, which interrupts by `line`; new, or as it was saved.
    ///
    /// # Errors
    /// The saved state is none, or the process has no descriptor left.
    pub(crate) fn new(
        console: &Arc<Console>,
        line: EventFd,
        saved: Option<&SerialState>,
    ) -> Result<Shared<Self>, SerialError> {
        let event = EventFd::new(libc::EFD_NONBLOCK)
            .map_err(|source| SerialError(Error::IOError(source)))?;
        let room = Arc::new(Room {
            wanted: AtomicBool::new(false),
            event,
        });
        let registers = saved.map_or_else(Registers::default, |saved| saved.0.clone());
        let output = Output::new(console);
        let uart = vm_superio::Serial::from_state(&registers, Line(line), room, output)
            .map_err(SerialError)?;
        Ok(Arc::new(Mutex::new(Self { uart })))
    }

    /// The registers and what the guest has not read of its input.
    pub(crate) fn save(&self) -> SerialState {
        SerialState(self.uart.state())
    }

    pub(super) fn room(&self) -> Arc<Room> {
        Arc::clone(self.uart.events())
    }

    /// How many bytes of input the FIFO takes. If none, [`Room::event`] will say when it does.
    pub(super) fn capacity(&self) -> usize {
        let capacity = self.uart.fifo_capacity();
        if capacity == 0 {
            self.uart.events().wanted.store(true, Ordering::SeqCst);
        }
        capacity
    }

    /// Input of no more than [`Serial::capacity`] bytes. As with a real one, what comes while the
    /// guest tests the chip in loop mode is lost.
    pub(super) fn receive(&mut self, input: &[u8]) {
        if let Err(error) = self.uart.enqueue_raw_bytes(input) {
            tracing::warn!(%error, "input for the guest's console was lost");
        }
    }
}

impl Region for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (u8::try_from(offset), &mut *data) {
            (Ok(register), [byte]) => *byte = self.uart.read(register),
            _ => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(register), [byte]) = (u8::try_from(offset), data)
            && let Err(error) = self.uart.write(register, *byte)
        {
            tracing::debug!(%error, "the guest's console lost a byte");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::micro::bus::lock;
    use rustix::event::{PollFd, PollFlags, poll};
    use std::os::fd::OwnedFd;
    use std::time::Instant;

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const LINE_STATUS: u64 = 5;
    const SCRATCH: u64 = 7;

    fn serial(saved: Option<&SerialState>) -> (Arc<Console>, Shared<Serial>, EventFd) {
        let console = Console::open().unwrap();
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let serial = Serial::new(&console, line.try_clone().unwrap(), saved).unwrap();
        (console, serial, line)
    }

    fn get(serial: &Shared<Serial>, offset: u64) -> u8 {
        let mut byte = [0];
        lock(serial).read(offset, &mut byte);
        byte[0]
    }

    fn put(serial: &Shared<Serial>, offset: u64, byte: u8) {
        lock(serial).write(offset, &[byte]);
    }

    fn read(hub: &OwnedFd, bytes: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < bytes {
            let mut piece = [0; 4096];
            let got = rustix::io::read(hub, &mut piece).unwrap();
            all.extend_from_slice(&piece[..got]);
        }
        all
    }

    #[test]
    fn what_the_guest_prints_arrives_unchanged_whatever_the_bytes() {
        let (console, serial, _line) = serial(None);
        let hub = console.terminal().unwrap();
        let printed: Vec<u8> = (0..=255).collect();
        for byte in &printed {
            put(&serial, DATA, *byte);
        }
        assert_eq!(read(&hub, 256), printed);
    }

    #[test]
    fn a_slow_hub_loses_nothing() {
        let (console, serial, _line) = serial(None);
        let hub = console.terminal().unwrap();
        // More than a pty holds.
        let printed: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let all = printed.clone();
        let guest = std::thread::spawn(move || {
            for byte in all {
                put(&serial, DATA, byte);
            }
        });
        assert!(read(&hub, printed.len()) == printed);
        guest.join().unwrap();
    }

    #[test]
    fn a_hub_that_is_stuck_costs_one_second_in_all() {
        let (console, serial, _line) = serial(None);
        let hub = console.terminal().unwrap();
        // More than a pty holds; a second each would be a day.
        let begun = Instant::now();
        for _ in 0..100_000 {
            put(&serial, DATA, b'a');
        }
        let passed = begun.elapsed();
        assert!((1..20).contains(&passed.as_secs()), "{passed:?}");
        // And when it reads again, it sees what the guest then prints.
        let mut buffer = [0; 4096];
        while poll(
            &mut [PollFd::new(&hub, PollFlags::IN)],
            Some(&Default::default()),
        )
        .unwrap()
            > 0
        {
            assert!(rustix::io::read(&hub, &mut buffer).unwrap() > 0);
        }
        put(&serial, DATA, b'b');
        assert_eq!(read(&hub, 1).last(), Some(&b'b'));
    }

    #[test]
    fn wide_accesses_are_ignored() {
        let (_console, serial, _line) = serial(None);
        put(&serial, SCRATCH, 7);
        lock(&serial).write(SCRATCH, &[1, 2]);
        let mut wide = [0; 4];
        lock(&serial).read(SCRATCH, &mut wide);
        assert_eq!(wide, [0xff; 4]);
        assert_eq!(get(&serial, SCRATCH), 7);
    }

    #[test]
    fn a_restored_console_still_has_its_input_and_interrupts_for_it() {
        let (_console, old, line) = serial(None);
        put(&old, INTERRUPT_ENABLE, 1);
        lock(&old).receive(b"ls\n");
        assert_eq!(line.read().unwrap(), 1);
        put(&old, SCRATCH, 42);
        let saved = lock(&old).save();
        let bytes = postcard::to_stdvec(&saved).unwrap();
        assert_eq!(
            bytes[8..],
            *b"*\x03ls\n",
            "a change is one of the file's version"
        );
        let saved: SerialState = postcard::from_bytes(&bytes).unwrap();

        let (_console, new, line) = serial(Some(&saved));
        assert_eq!(line.read().unwrap(), 1);
        assert_eq!(get(&new, SCRATCH), 42);
        let mut input = Vec::new();
        while get(&new, LINE_STATUS) & 1 == 1 {
            input.push(get(&new, DATA));
        }
        assert_eq!(input, b"ls\n");
        assert_eq!(lock(&new).save().0.in_buffer, b"");
    }

    #[test]
    fn a_saved_console_with_more_input_than_a_fifo_holds_is_refused() {
        let (console, serial, line) = serial(None);
        let mut saved = lock(&serial).save();
        saved.0.in_buffer = vec![0; 65];
        assert!(Serial::new(&console, line, Some(&saved)).is_err());
    }
}
