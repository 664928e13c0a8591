//! The power registers.
//!
//! Invariants: registers act byte by byte, so every width does. The guest's first word counts: a
//! guest that repeats it fills no queue.

use vmm_sys_util::eventfd::EventFd;

use super::persist::PowerState;
use crate::micro::acpi::{
    EVENT_CPUS, EVENT_GENERATION_ID, EVENT_MEMORY, EVENT_POWER_BUTTON, SLEEP_TYPE_OFF,
};
use crate::micro::bus::Region;
use crate::micro::growth::Growth;
use crate::micro::layout::{EVENT_PORT, RESET_PORT, RESET_VALUE, SLEEP_PORT};
use crate::micro::notice::{Notice, Notices};

/// Ports from [`SLEEP_PORT`] on.
pub(crate) const PORTS: u64 = 8;

/// SLP_EN, and SLP_TYP above which shift.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;

const RESET: u64 = (RESET_PORT - SLEEP_PORT) as u64;
const EVENT: u64 = (EVENT_PORT - SLEEP_PORT) as u64;
const EVENT_END: u64 = EVENT + 4;

/// The registers, and what waits to be read from them.
#[derive(Debug)]
pub(crate) struct Power {
    events: u32,
    line: EventFd,
    /// Until the guest has said how it ends.
    notices: Option<Notices>,
}

impl Power {
    /// The registers; `line` is the generic event device's interrupt.
    pub(crate) fn new(line: EventFd, notices: Notices, saved: Option<&PowerState>) -> Self {
        let power = Self {
            events: saved.map_or(0, |saved| saved.events),
            line,
            notices: Some(notices),
        };
        if power.events != 0 {
            power.interrupt();
        }
        power
    }

    /// Presses the power button.
    pub(crate) fn press_button(&mut self) {
        self.raise(EVENT_POWER_BUTTON);
    }

    /// Says that the generation id is another one now.
    pub(crate) fn generation_changed(&mut self) {
        self.raise(EVENT_GENERATION_ID);
    }

    /// Says that there is more to be found by the tables' methods, if there is.
    pub(crate) fn grown(&mut self, growth: Growth) {
        if growth.cpus > 0 {
            self.raise(EVENT_CPUS);
        }
        if growth.memory > 0 {
            self.raise(EVENT_MEMORY);
        }
    }

    /// Which events the guest has not read yet.
    pub(crate) fn save(&self) -> PowerState {
        PowerState {
            events: self.events,
        }
    }

    fn raise(&mut self, event: u32) {
        self.events |= event;
        self.interrupt();
    }

    fn interrupt(&self) {
        // An eventfd refuses only when its counter is full, and then the line is up already.
        let _ = self.line.write(1);
    }

    fn tell(&mut self, notice: Notice) {
        if let Some(notices) = self.notices.take() {
            notices.tell(notice);
        }
    }

    /// Byte number `place` of the events, which are then told.
    fn take_events(&mut self, place: u64) -> u8 {
        let mut bytes = self.events.to_le_bytes();
        let byte = usize::try_from(place).ok();
        let byte = byte.and_then(|place| bytes.get_mut(place));
        let taken = byte.map(std::mem::take).unwrap_or(0);
        self.events = u32::from_le_bytes(bytes);
        taken
    }

    fn write_byte(&mut self, register: u64, value: u8) {
        match register {
            0 if value & SLEEP_ENABLE != 0 => {
                let sleep_type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
                if sleep_type == SLEEP_TYPE_OFF {
                    self.tell(Notice::PowerOff);
                } else {
                    tracing::debug!(sleep_type, "the guest asked for a sleep that there is not");
                }
            }
            RESET if value == RESET_VALUE => self.tell(Notice::Reset),
            _ => {}
        }
    }
}

impl Region for Power {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (register, byte) in (offset..).zip(data) {
            *byte = match register {
                EVENT..EVENT_END => self.take_events(register - EVENT),
                _ => 0,
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (register, byte) in (offset..).zip(data) {
            self.write_byte(register, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    fn power(saved: Option<&PowerState>) -> (Power, EventFd, Receiver<Notice>) {
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let (sender, told) = channel();
        let power = Power::new(line.try_clone().unwrap(), Notices::new(sender), saved);
        (power, line, told)
    }

    fn events(power: &mut Power) -> u32 {
        let mut data = [0xff; 4];
        power.read(EVENT, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_guest_ends_by_the_right_values_in_the_right_registers_alone() {
        let table: [(u64, &[u8], &str); 9] = [
            (0, &[0x34], "PowerOff"),
            (0, &[0x14], ""),
            (0, &[0x20], ""),
            (0, &[0xff], ""),
            (1, &[0x34], ""),
            (2, &[1], "Reset"),
            (2, &[2], ""),
            (0, &[0, 0, 1, 0], "Reset"),
            (4, &[1, 1, 1, 1, 1, 1, 1, 1], ""),
        ];
        for (offset, data, expected) in table {
            let (mut power, _line, told) = power(None);
            power.write(offset, data);
            power.write(offset, data);
            let said: Vec<_> = told
                .try_iter()
                .map(|notice| format!("{notice:?}"))
                .collect();
            assert_eq!(said.join(" "), expected, "{data:?} at {offset}");
        }
    }

    #[test]
    fn each_event_interrupts_and_is_read_once() {
        let (mut power, line, _told) = power(None);
        assert_eq!(events(&mut power), 0);
        power.press_button();
        assert_eq!(line.read().unwrap(), 1);
        power.generation_changed();
        assert_eq!(line.read().unwrap(), 1);
        assert_eq!(events(&mut power), 3);
        assert_eq!(events(&mut power), 0);
        assert!(line.read().is_err());
    }

    #[test]
    fn only_what_has_grown_is_told() {
        for (cpus, memory, expected) in [(0, 0, 0), (3, 0, 4), (0, 1, 8), (1, 1, 12)] {
            let (mut power, line, _told) = power(None);
            power.grown(Growth { cpus, memory });
            assert_eq!(line.read().is_ok(), expected != 0);
            assert_eq!(events(&mut power), expected);
        }
    }

    #[test]
    fn an_event_that_was_not_read_is_told_again_after_a_restore() {
        let (mut old, _line, _told) = power(None);
        old.press_button();
        let (mut new, line, _told) = power(Some(&old.save()));
        assert_eq!(line.read().unwrap(), 1);
        assert_eq!(events(&mut new), EVENT_POWER_BUTTON);
        let (_power, line, _told) = power(Some(&new.save()));
        assert!(line.read().is_err());
    }
}
