//! The conformance cases against the built-in engine.

mod conformance;

use std::process::ExitCode;

use cocoon::micro::Micro;
use conformance::Subject;

static MICRO: Subject = Subject {
    engine: &Micro,
    // The one that turns signals into notices ends with the process; the other is at its last line.
    may_stay: &["signals", "life"],
    serial_console: true,
    cannot: &[],
    special: &[],
};

pub(crate) fn main() -> ExitCode {
    conformance::main(&MICRO)
}
