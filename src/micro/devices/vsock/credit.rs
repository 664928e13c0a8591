//! Flow control: how much each side may send before the other has made room. Pure.
//!
//! ```text
//! guest's buffer:  │◀──────────── allocated ────────────▶│
//!                  │ sent − forwarded │  room            │
//! ```
//! Counters wrap at 2^32 by specification (virtio 1.2, 5.10.6.3); what a guest says of them is never
//! believed beyond "there is no room".

/// Bytes from the guest that wait for one connection's socket: what Linux fills in one packet. With
/// a thousand connections to sockets that nobody reads it adds up to 64 MiB.
pub(super) const BUFFER: u32 = 64 << 10;

/// The counters of one connection.
#[derive(Debug, Default)]
pub(super) struct Credit {
    /// Bytes sent to the guest.
    sent: u32,
    /// What the guest said of its buffer last.
    allocated: u32,
    forwarded: u32,
    /// Whether the guest was asked for news since it said something.
    asked: bool,
    /// Bytes of the guest that its peer took.
    taken: u32,
    /// What the guest was told of them last.
    told: u32,
}

impl Credit {
    /// The guest says, in any packet, how large its buffer is and how much was read from it.
    pub(super) fn heard(&mut self, allocated: u32, forwarded: u32) {
        self.allocated = allocated;
        self.forwarded = forwarded;
        self.asked = false;
    }

    /// How many bytes the guest has room for.
    pub(super) fn room(&self) -> u32 {
        let waiting = self.sent.wrapping_sub(self.forwarded);
        self.allocated.saturating_sub(waiting)
    }

    /// Bytes were sent to the guest, within [`Credit::room`].
    pub(super) fn sent(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// Whether to ask the guest for room, which is done once.
    pub(super) fn should_ask(&self) -> bool {
        self.room() == 0 && !self.asked
    }

    /// The guest is being asked.
    pub(super) fn ask(&mut self) {
        self.asked = true;
    }

    /// The guest's peer took bytes.
    pub(super) fn taken(&mut self, bytes: usize) {
        // Never more than a buffer at once.
        self.taken = self
            .taken
            .wrapping_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Whether the guest may believe that its buffer is more than half full while it is not.
    pub(super) fn should_tell(&self) -> bool {
        self.taken.wrapping_sub(self.told) >= BUFFER / 2
    }

    /// What to tell the guest in the packet that is being sent: size of the buffer, bytes taken.
    pub(super) fn tell(&mut self) -> (u32, u32) {
        self.told = self.taken;
        (BUFFER, self.taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_what_the_guest_allocated_less_what_it_has_not_forwarded() {
        let table = [
            ("nothing said", 0, 0, 0, 0),
            ("all free", 0, 100, 0, 100),
            ("some sent", 40, 100, 0, 60),
            ("full", 100, 100, 0, 0),
            ("read again", 100, 100, 100, 100),
            ("buffer shrunk below what is in it", 100, 50, 10, 0),
            ("counters wrapped", 10, 100, u32::MAX - 9, 80),
            ("more forwarded than was ever sent", 10, 100, 11, 0),
            ("as much as there is", 0, u32::MAX, 0, u32::MAX),
        ];
        for (name, sent, allocated, forwarded, room) in table {
            let mut credit = Credit::default();
            credit.sent(sent);
            credit.heard(allocated, forwarded);
            assert_eq!(credit.room(), room, "{name}");
        }
    }

    #[test]
    fn the_guest_is_asked_once_until_it_speaks() {
        let mut credit = Credit::default();
        assert!(credit.should_ask());
        credit.ask();
        assert!(!credit.should_ask());
        credit.heard(0, 0);
        assert!(credit.should_ask());
        credit.heard(1, 0);
        assert!(!credit.should_ask());
    }

    #[test]
    fn the_guest_is_told_when_half_its_buffer_was_taken_also_across_the_wrap() {
        for start in [0, u32::MAX - 5] {
            let mut credit = Credit {
                taken: start,
                told: start,
                ..Credit::default()
            };
            credit.taken(BUFFER as usize / 2 - 1);
            assert!(!credit.should_tell());
            credit.taken(1);
            assert!(credit.should_tell());
            let expected = start.wrapping_add(BUFFER / 2);
            assert_eq!(credit.tell(), (BUFFER, expected));
            assert!(!credit.should_tell());
        }
    }
}
