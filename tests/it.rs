//! The real program, started as users start it. What needs a guest is in `tests/lab/`.

mod cli;
mod support;
