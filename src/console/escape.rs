//! The escape keys of `cocoon vm console`: how the user talks to cocoon instead of to the guest.
//!
//! ```text
//!            ^]                 .   leave
//!  Forward ──────▶ Escaped ──┬─ ?   help
//!     ▲                      ├─ ^]  send one ^]
//!     └──────────────────────┴─ any other byte: send ^] and it
//! ```
//! Pure. The escape byte is seen anywhere in the input, not only at the start of a line, so that it
//! works in the middle of an editor. Invariant: how the input is cut into pieces changes nothing.

use std::fmt;
use std::str::FromStr;

/// Leaves the console, after the escape byte.
const LEAVE: u8 = b'.';
/// Asks for help, after the escape byte.
const HELP: u8 = b'?';

/// The byte that begins an escape sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EscapeByte(u8);

/// Why a text is no escape character.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} cannot be the escape character: {reason}")]
pub struct InvalidEscape {
    text: String,
    reason: &'static str,
}

impl Default for EscapeByte {
    /// `^]`, as telnet and virsh have it.
    fn default() -> Self {
        Self(0x1d)
    }
}

impl FromStr for EscapeByte {
    type Err = InvalidEscape;

    /// One ASCII character, or `^` and a letter or one of `@[\]^_` for a control character.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |reason| InvalidEscape {
            text: text.to_owned(),
            reason,
        };
        let byte = match text.as_bytes() {
            _ if !text.is_ascii() => return Err(fail("it is not an ASCII character")),
            [] => return Err(fail("it is empty")),
            [byte] => *byte,
            [b'^', b'?'] => 0x7f,
            // The low five bits of a letter are its control character.
            [b'^', letter @ (b'@'..=b'_' | b'a'..=b'z')] => letter & 0x1f,
            _ => return Err(fail("use one character, or ^ and a letter, such as ^]")),
        };
        match byte {
            0 => Err(fail("NUL is what many terminals send for nothing")),
            b'\r' | b'\n' => Err(fail("it would take the Enter key away")),
            0x7f => Err(fail("it would take the Backspace key away")),
            LEAVE | HELP => Err(fail("it is one of the keys that follow the escape")),
            _ => Ok(Self(byte)),
        }
    }
}

impl fmt::Display for EscapeByte {
    /// As the user would type it for `--escape-char`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_ascii_control() {
            write!(f, "^{}", char::from(self.0 | 0x40))
        } else {
            write!(f, "{}", char::from(self.0))
        }
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send these bytes, never none, to the guest.
    Send(Vec<u8>),
    /// Show [`help`] to the user.
    Help,
    /// Leave the console. Always the last action; later input is ignored.
    Detach,
}

/// Finds the escape sequences in the user's input.
#[derive(Debug)]
pub struct EscapeKeys {
    escape: EscapeByte,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Forward,
    Escaped,
    Left,
}

impl EscapeKeys {
    /// Keys that begin with `escape`.
    pub fn new(escape: EscapeByte) -> Self {
        Self {
            escape,
            state: State::Forward,
        }
    }

    /// What the next piece of input asks for, in order.
    pub fn feed(&mut self, input: &[u8]) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut send = Vec::with_capacity(input.len() + 1);
        for &byte in input {
            let (next, action) = match (self.state, byte) {
                (State::Left, _) => break,
                (State::Forward, b) if b == self.escape.0 => (State::Escaped, None),
                (State::Forward, b) => {
                    send.push(b);
                    (State::Forward, None)
                }
                (State::Escaped, LEAVE) => (State::Left, Some(Action::Detach)),
                (State::Escaped, HELP) => (State::Forward, Some(Action::Help)),
                (State::Escaped, b) => {
                    send.push(self.escape.0);
                    if b != self.escape.0 {
                        send.push(b);
                    }
                    (State::Forward, None)
                }
            };
            self.state = next;
            if let Some(action) = action {
                flush(&mut send, &mut actions);
                actions.push(action);
            }
        }
        flush(&mut send, &mut actions);
        actions
    }

    /// The input is over: what was held back, an escape byte with nothing behind it.
    pub fn finish(&mut self) -> Option<Action> {
        let held = self.state == State::Escaped;
        self.state = State::Left;
        held.then(|| Action::Send(vec![self.escape.0]))
    }
}

fn flush(send: &mut Vec<u8>, actions: &mut Vec<Action>) {
    if !send.is_empty() {
        actions.push(Action::Send(std::mem::take(send)));
    }
}

/// What `<escape>?` shows, in lines that end in CR LF because the terminal is raw then.
pub fn help(escape: EscapeByte) -> String {
    format!(
        "\r\nEscape keys of this console:\r\n  \
         {escape}.  leave; the VM keeps running\r\n  \
         {escape}?  this help\r\n  \
         {escape}{escape} send {escape} to the VM\r\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escape_characters_parse_and_print() {
        for (text, byte, shown) in [
            ("^]", 0x1d, "^]"),
            ("^A", 0x01, "^A"),
            ("^a", 0x01, "^A"),
            ("^[", 0x1b, "^["),
            ("^_", 0x1f, "^_"),
            ("~", b'~', "~"),
            ("^", b'^', "^"),
            ("\x1d", 0x1d, "^]"),
        ] {
            let parsed: EscapeByte = text.parse().unwrap();
            assert_eq!(parsed, EscapeByte(byte), "{text}");
            assert_eq!(parsed.to_string(), shown);
            assert_eq!(parsed.to_string().parse(), Ok(parsed));
        }
        assert_eq!(EscapeByte::default().to_string(), "^]");
    }

    #[test]
    fn what_would_break_typing_is_refused_with_a_sentence() {
        for text in [
            "", "^@", "\0", "^J", "\n", "^m", "\r", "^?", "\x7f", "é", "^é", "^1", "ab", "^]]",
            ".", "?",
        ] {
            let error = text.parse::<EscapeByte>().unwrap_err().to_string();
            assert!(error.contains("cannot be the escape character"), "{error}");
        }
    }

    /// The actions for `input` given in pieces, with neighbouring sends joined.
    fn run(escape: EscapeByte, pieces: &[&[u8]]) -> Vec<Action> {
        let mut keys = EscapeKeys::new(escape);
        let mut all: Vec<Action> = Vec::new();
        let fed = pieces.iter().flat_map(|piece| keys.feed(piece));
        for action in fed.collect::<Vec<_>>().into_iter().chain(keys.finish()) {
            match (all.last_mut(), action) {
                (Some(Action::Send(last)), Action::Send(more)) => last.extend(more),
                (_, action) => all.push(action),
            }
        }
        all
    }

    #[test]
    fn the_keys_do_what_the_help_says() {
        let send = |bytes: &[u8]| Action::Send(bytes.to_vec());
        for (input, actions) in [
            (&b"ls\r"[..], vec![send(b"ls\r")]),
            (b"a\x1d.b", vec![send(b"a"), Action::Detach]),
            (b"a\x1d?b", vec![send(b"a"), Action::Help, send(b"b")]),
            (b"a\x1d\x1db", vec![send(b"a\x1db")]),
            (b"\x1d\x1d.", vec![send(b"\x1d.")]),
            (b"a\x1dxb", vec![send(b"a\x1dxb")]),
            (b"a\x1d", vec![send(b"a\x1d")]),
            (b"a.?b", vec![send(b"a.?b")]),
            (b"", vec![]),
        ] {
            assert_eq!(run(EscapeByte::default(), &[input]), actions, "{input:?}");
        }
    }

    #[test]
    fn the_help_names_the_configured_byte() {
        let text = help("^A".parse().unwrap());
        for line in ["^A.  leave", "^A?  this help", "^A^A send ^A"] {
            assert!(text.contains(line), "{text}");
        }
    }

    fn input() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(0x1d), Just(b'.'), Just(b'?'), Just(b'a'), any::<u8>()];
        proptest::collection::vec(byte, 0..60)
    }

    proptest! {
        #[test]
        fn pieces_mean_the_same_as_the_whole(bytes in input(), cut in 1usize..7) {
            let pieces: Vec<&[u8]> = bytes.chunks(cut).collect();
            let escape = EscapeByte::default();
            prop_assert_eq!(run(escape, &pieces), run(escape, &[&bytes]));
        }

        #[test]
        fn input_without_the_escape_byte_passes_unchanged(mut bytes in input()) {
            bytes.retain(|b| *b != 0x1d);
            let expected = if bytes.is_empty() { vec![] } else { vec![Action::Send(bytes.clone())] };
            prop_assert_eq!(run(EscapeByte::default(), &[&bytes]), expected);
        }
    }
}
