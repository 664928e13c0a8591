//! The root build of cocoon: it links no engine that needs more than crates.io.

use std::process::ExitCode;

fn main() -> ExitCode {
    cocoon::cli::main(&[])
}
