//! A host's connection before it has said where it wants to go.
//!
//! ```text
//! accepted ─▶ "CONNECT 52\n" ─▶ connection to port 52 of the guest
//! ```
//! Invariant: what follows the line is left in the socket, for the guest.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::RecvFlags;

/// Longer than `CONNECT 4294967295\n`.
const LINE_MAX: usize = 32;

/// How long the line may take: a person may type it.
const LINE_PATIENCE: Duration = Duration::from_secs(60);

/// A connection without a destination.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) stream: UnixStream,
    /// When it is over unless it says something.
    pub(super) deadline: Instant,
}

/// What a caller said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Not enough yet.
    Nothing,
    /// The guest's port that it wants.
    Port(u32),
    /// Nonsense, or it is gone.
    Nonsense,
}

impl Caller {
    pub(super) fn new(stream: UnixStream, now: Instant) -> Self {
        Self {
            stream,
            deadline: now + LINE_PATIENCE,
        }
    }

    /// Its socket changed.
    pub(super) fn changed(&mut self, events: EventFlags) -> Said {
        let mut line = [0; LINE_MAX];
        let peeked = rustix::net::recv(&self.stream, &mut line, RecvFlags::PEEK);
        let said = match peeked {
            Ok((0, _)) => return Said::Nonsense,
            Ok((length, _)) => &line[..length],
            Err(Errno::AGAIN | Errno::INTR) => &[],
            Err(_) => return Said::Nonsense,
        };
        let Some(end) = said.iter().position(|byte| *byte == b'\n') else {
            let over = events.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
            return match over || said.len() == LINE_MAX {
                true => Said::Nonsense,
                false => Said::Nothing,
            };
        };
        let taken = rustix::net::recv(&self.stream, &mut line[..=end], RecvFlags::empty());
        match (taken, port(&line[..end])) {
            (Ok((length, _)), Some(port)) if length == end + 1 => Said::Port(port),
            _ => Said::Nonsense,
        }
    }
}

/// The port of a line without its end.
fn port(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    let all_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok()?;
    all_digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::Shutdown;

    fn caller() -> (Caller, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Caller::new(ours, Instant::now()), theirs)
    }

    #[test]
    fn only_the_one_line_is_understood() {
        let table: [(&[u8], Said); 12] = [
            (b"", Said::Nothing),
            (b"CONNECT 5", Said::Nothing),
            (b"CONNECT 52\n", Said::Port(52)),
            (b"CONNECT 4294967295\n", Said::Port(u32::MAX)),
            (b"CONNECT 4294967296\n", Said::Nonsense),
            (b"CONNECT -1\n", Said::Nonsense),
            (b"CONNECT +1\n", Said::Nonsense),
            (b"CONNECT \n", Said::Nonsense),
            (b"CONNECT 52 \n", Said::Nonsense),
            (b"GET / HTTP/1.1\r\n", Said::Nonsense),
            (b"\n", Said::Nonsense),
            (&[b'0'; LINE_MAX], Said::Nonsense),
        ];
        for (line, expected) in table {
            let (mut caller, mut host) = caller();
            host.write_all(line).unwrap();
            let text = String::from_utf8_lossy(line);
            assert_eq!(caller.changed(EventFlags::IN), expected, "{text:?}");
        }
    }

    #[test]
    fn what_follows_the_line_stays_for_the_guest() {
        let (mut caller, mut host) = caller();
        host.write_all(b"CONN").unwrap();
        assert_eq!(caller.changed(EventFlags::IN), Said::Nothing);
        host.write_all(b"ECT 1\nhello").unwrap();
        assert_eq!(caller.changed(EventFlags::IN), Said::Port(1));
        let mut rest = [0; 5];
        caller.stream.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"hello");
    }

    #[test]
    fn who_goes_without_a_line_is_gone() {
        let (mut caller, mut host) = caller();
        host.write_all(b"CONNECT 5").unwrap();
        host.shutdown(Shutdown::Write).unwrap();
        let events = EventFlags::IN | EventFlags::RDHUP;
        assert_eq!(caller.changed(events), Said::Nonsense);
    }
}
