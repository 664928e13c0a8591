//! Questions that a guest asks the terminal, taken out of what is shown later.
//!
//! ```text
//!   guest ── ESC [ 6 n ──▶ terminal ── ESC [ 24 ; 80 R ──▶ as if typed
//! ```
//! systemd, for one, asks for the window size that way while it boots. In live output the question
//! is the guest's to ask; in the history it was asked long ago, and the answer of a terminal that
//! attaches now would be typed at the login prompt. Pure. The sequences are those of ECMA-48 and of
//! xterm's "Control Sequences"; everything that is no question passes unchanged.

const ESC: u8 = 0x1b;
const BEL: u8 = 0x07;
/// Asks for the answerback message.
const ENQ: u8 = 0x05;

/// `output` without questions.
pub(super) fn without_queries(output: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(output.len());
    let mut rest = output;
    while let Some((&first, after)) = rest.split_first() {
        let len = query_len(rest);
        if len == 0 {
            kept.push(first);
            rest = after;
        } else {
            rest = rest.get(len..).unwrap_or_default();
        }
    }
    kept
}

/// The length of the question at the start of `bytes`, or 0 if there is none.
fn query_len(bytes: &[u8]) -> usize {
    match bytes {
        [ENQ, ..] => 1,
        // DECID.
        [ESC, b'Z', ..] => 2,
        [ESC, b'[', body @ ..] => control_sequence_len(body).map_or(0, |len| 2 + len),
        // Operating system commands: colours and the clipboard are asked for with "?".
        [ESC, b']', body @ ..] => string_len(body, |text| text.ends_with(b"?")),
        // DECRQSS and XTGETTCAP.
        [ESC, b'P', body @ ..] => string_len(body, |text| {
            text.starts_with(b"$q") || text.starts_with(b"+q")
        }),
        _ => 0,
    }
}

/// The length of what follows `ESC [`, if that is a question: parameters 0x30 to 0x3f, then
/// intermediates 0x20 to 0x2f, then one final byte (ECMA-48, section 5.4).
fn control_sequence_len(body: &[u8]) -> Option<usize> {
    let run = |from: &[u8], low, high| {
        from.iter()
            .take_while(|b| (low..=high).contains(*b))
            .count()
    };
    let (parameters, rest) = body.split_at_checked(run(body, 0x30, 0x3f))?;
    let (intermediates, rest) = rest.split_at_checked(run(rest, 0x20, 0x2f))?;
    let last = *rest.first()?;
    let asks = match (last, intermediates, parameters.first()) {
        // Device attributes; terminal parameters.
        (b'c' | b'x', b"", _) => true,
        // Device status, cursor position. With > it switches a keyboard mode.
        (b'n', b"", prefix) => prefix != Some(&b'>'),
        // Version; keyboard mode.
        (b'q', b"", Some(b'>')) | (b'u', b"", Some(b'?')) => true,
        // Modes.
        (b'p', b"$", _) => true,
        // Window reports are 11 to 21; smaller numbers move the window, larger ones its titles.
        (b't', b"", _) => matches!(
            parameters,
            [b'1', b'1'..=b'9', ..] | [b'2', b'0' | b'1', ..]
        ),
        _ => false,
    };
    asks.then_some(parameters.len() + intermediates.len() + 1)
}

/// The length of the string sequence whose text and end are `body`, if `asks` says that its text is
/// a question. It ends with BEL or ESC \, and begins anew where another sequence begins.
fn string_len(body: &[u8], asks: impl Fn(&[u8]) -> bool) -> usize {
    let Some(end) = body.iter().position(|b| matches!(*b, BEL | ESC)) else {
        return 0;
    };
    let (text, end) = body.split_at(end);
    match end {
        [BEL, ..] if asks(text) => 2 + text.len() + 1,
        [ESC, b'\\', ..] if asks(text) => 2 + text.len() + 2,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn questions_are_taken_out() {
        for query in [
            "\x1b[6n",
            "\x1b[?6n",
            "\x1b[5n",
            "\x1b[c",
            "\x1b[0c",
            "\x1b[>c",
            "\x1b[=c",
            "\x1bZ",
            "\x05",
            "\x1b[18t",
            "\x1b[14;2t",
            "\x1b[20t",
            "\x1b[?2026$p",
            "\x1b[>0q",
            "\x1b[?u",
            "\x1b]11;?\x07",
            "\x1b]10;?\x1b\\",
            "\x1bP$qm\x1b\\",
            "\x1bP+q544e\x1b\\",
            "\x1b[x",
        ] {
            let output = format!("a{query}b{query}");
            assert_eq!(without_queries(output.as_bytes()), b"ab", "{query:?}");
        }
    }

    #[test]
    fn everything_else_passes_unchanged() {
        for text in [
            "login: ",
            "\x1b[2J\x1b[1;31mred\x1b[0m",
            "\x1b[?25l",
            "\x1b[>4n",
            "\x1b[22;0t",
            "\x1b[8;24;80t",
            "\x1b[1t",
            "\x1b]0;really?title\x07",
            "\x1b]0;cut\x1b[0m",
            "\x1b[6",
            "\x1b",
            "\x1b[",
            "\x1b]",
            "\x1b[2 q",
            "\x1b[s\x1b[u",
            "é\u{9b}",
            "\x1bP1;2q#0\x1b\\",
        ] {
            assert_eq!(
                without_queries(text.as_bytes()),
                text.as_bytes(),
                "{text:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn output_without_control_characters_passes_unchanged(
            bytes in proptest::collection::vec(0x20u8..=0xff, 0..200)
        ) {
            prop_assert_eq!(without_queries(&bytes), bytes);
        }

        #[test]
        fn no_output_makes_it_panic_or_grow(
            pieces in proptest::collection::vec("[\x1b\\[\\]P\x07\\\\;?$>0-9a-z ]{0,6}", 0..40)
        ) {
            let output = pieces.concat();
            prop_assert!(without_queries(output.as_bytes()).len() <= output.len());
        }
    }
}
