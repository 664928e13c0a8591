//! The root build of cocoon: it links what crates.io alone gives, the built-in engine.

use std::process::ExitCode;

use cocoon::micro::Micro;

fn main() -> ExitCode {
    cocoon::cli::main(&[&Micro])
}
