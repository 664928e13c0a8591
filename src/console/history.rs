//! The last output of a console, in memory, for viewers who come later.

use std::collections::VecDeque;

use super::queries::without_queries;

/// How much a new viewer is shown: a Linux boot with all its messages, about 1,000 lines.
pub(super) const HISTORY_MAX: usize = 64 << 10;

/// How far the history may begin later than it must, to begin with a whole line.
const LINE_SEARCH_MAX: usize = 4 << 10;

/// The last [`HISTORY_MAX`] bytes of output.
#[derive(Debug, Default)]
pub(super) struct History {
    bytes: VecDeque<u8>,
    /// Whether older output is gone, so that the first line may be half a line.
    cut: bool,
}

impl History {
    /// Adds output.
    pub(super) fn push(&mut self, output: &[u8]) {
        let kept = output.len().min(HISTORY_MAX);
        let too_many = (self.bytes.len() + output.len()).saturating_sub(HISTORY_MAX);
        self.cut |= too_many > 0;
        self.bytes.drain(..too_many.min(self.bytes.len()));
        self.bytes.extend(&output[output.len() - kept..]);
    }

    /// What a new viewer is shown first, without questions to the terminal. If older output is gone it begins with a whole line where
    /// there is one, so neither with half a character nor inside a control sequence.
    pub(super) fn shown(&self) -> Vec<u8> {
        let newline = |&b: &u8| b == b'\n';
        let start = match self.bytes.iter().take(LINE_SEARCH_MAX).position(newline) {
            Some(at) if self.cut => at + 1,
            _ => 0,
        };
        let shown: Vec<u8> = self.bytes.iter().skip(start).copied().collect();
        without_queries(&shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_history_is_shown_whole() {
        let mut history = History::default();
        history.push(b"half\n\0\xff");
        history.push(b"mo\x1b[6");
        history.push(b"nre");
        assert_eq!(history.shown(), b"half\n\0\xffmore");
    }

    #[test]
    fn a_long_history_keeps_the_end_and_begins_with_a_line() {
        let mut history = History::default();
        let lines: Vec<u8> = (0..20_000)
            .flat_map(|i| format!("{i:06}\n").into_bytes())
            .collect();
        for piece in lines.chunks(1000) {
            history.push(piece);
        }
        let shown = history.shown();
        assert!(lines.ends_with(&shown));
        assert!(shown.len() <= HISTORY_MAX && shown.len() > HISTORY_MAX - 8);
        assert_eq!(shown.len() % 7, 0);
    }

    #[test]
    fn output_larger_than_the_history_leaves_its_end() {
        let mut history = History::default();
        history.push(b"before");
        history.push(&[b'x'; HISTORY_MAX + 5]);
        assert_eq!(history.shown(), [b'x'; HISTORY_MAX]);
        assert_eq!(history.bytes.len(), HISTORY_MAX);
    }
}
