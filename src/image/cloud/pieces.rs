//! Which bytes of a file are asked for next, and how far it is complete from its beginning. Pure.
//!
//! ```text
//!   ├────────────── here ──────────────┤▒▒▒▒▒├──here──┤▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒├─ asked for by nobody ─ …
//!   0                                prefix                          next
//!                                      └ a piece, asked for by one connection ┘
//! ```
//! Invariants: bytes are given out once, unless they are given back; runs behind the prefix do not touch it
//! nor each other, so there is at most one for each connection.

use std::collections::BTreeMap;
use std::ops::Range;

/// The pieces of one file.
#[derive(Debug)]
pub(super) struct Pieces {
    size: u64,
    piece: u64,
    next: u64,
    given_back: Vec<Range<u64>>,
    /// Start and end of what is here behind the prefix.
    runs: BTreeMap<u64, u64>,
    prefix: u64,
}

impl Pieces {
    /// Nothing is here of a file of so many bytes, which is asked for in pieces of so many.
    pub(super) fn new(size: u64, piece: u64) -> Self {
        Self {
            size,
            piece: piece.max(1),
            next: 0,
            given_back: Vec::new(),
            runs: BTreeMap::new(),
            prefix: 0,
        }
    }

    /// The bytes that are to be asked for next.
    pub(super) fn take(&mut self) -> Option<Range<u64>> {
        if let Some(range) = self.given_back.pop() {
            return Some(range);
        }
        let range = self.next..self.size.min(self.next.saturating_add(self.piece));
        self.next = range.end;
        (!range.is_empty()).then_some(range)
    }

    /// Somebody else is to ask for these.
    pub(super) fn give_back(&mut self, range: Range<u64>) {
        if !range.is_empty() {
            self.given_back.push(range);
        }
    }

    /// These have come. Gives how many are here without a gap from the beginning on.
    pub(super) fn landed(&mut self, range: Range<u64>) -> u64 {
        let mut run = range;
        if let Some((&start, &end)) = self.runs.range(..=run.start).next_back()
            && end >= run.start
        {
            self.runs.remove(&start);
            run = start..run.end.max(end);
        }
        while let Some((&start, &end)) = self.runs.range(run.start..).next()
            && start <= run.end
        {
            self.runs.remove(&start);
            run.end = run.end.max(end);
        }
        match run.start <= self.prefix {
            true => self.prefix = self.prefix.max(run.end),
            false => drop(self.runs.insert(run.start, run.end)),
        }
        self.prefix
    }

    /// Whether all of it is here.
    pub(super) fn is_whole(&self) -> bool {
        self.prefix >= self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pieces_are_given_out_in_order_and_those_given_back_first() {
        let mut pieces = Pieces::new(25, 10);
        assert_eq!(pieces.take(), Some(0..10));
        assert_eq!(pieces.take(), Some(10..20));
        pieces.give_back(4..10);
        pieces.give_back(20..20);
        assert_eq!(pieces.take(), Some(4..10));
        assert_eq!(pieces.take(), Some(20..25));
        assert_eq!(pieces.take(), None);
        assert!(Pieces::new(0, 10).is_whole());
        assert_eq!(Pieces::new(0, 10).take(), None);
    }

    proptest! {
        #[test]
        fn the_prefix_is_what_is_here_without_a_gap(
            size in 1u64..200, piece in 1u64..40, turns in proptest::collection::vec((0usize..4, 1u64..30), 0..200)
        ) {
            let mut pieces = Pieces::new(size, piece);
            let mut here = vec![false; usize::try_from(size).unwrap()];
            let mut open: Vec<Range<u64>> = Vec::new();
            for (who, count) in turns {
                while open.len() < 4 && let Some(more) = pieces.take() {
                    prop_assert!(!more.is_empty() && more.end - more.start <= piece);
                    open.push(more);
                }
                if open.is_empty() { break }
                let who = who % open.len();
                let from = open[who].start;
                let to = open[who].end.min(from + count);
                for at in from..to {
                    let byte = &mut here[usize::try_from(at).unwrap()];
                    prop_assert!(!*byte, "{} comes twice", at);
                    *byte = true;
                }
                open[who].start = to;
                let prefix = pieces.landed(from..to);
                let expected = here.iter().take_while(|byte| **byte).count();
                prop_assert_eq!(prefix, expected as u64);
                prop_assert!(pieces.runs.len() < 4);
                if open[who].is_empty() || count == 1 {
                    let rest = open.remove(who);
                    pieces.give_back(rest);
                }
            }
            prop_assert_eq!(pieces.is_whole(), here.iter().all(|byte| *byte));
        }
    }
}
