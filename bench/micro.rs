//! What `bench/run` measures of the built-in engine: the program of its conformance, built as cocoon
//! is shipped.

#[path = "../tests/engine/main.rs"]
mod engine;

use std::process::ExitCode;

fn main() -> ExitCode {
    engine::main()
}
