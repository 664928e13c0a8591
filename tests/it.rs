//! The real program, started as users start it. What needs a guest is in `tests/lab/`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cli;
mod support;
