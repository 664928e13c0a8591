//! What `bench/run` measures of Cloud Hypervisor: the program of its conformance, built as cocoon
//! is shipped.

#[path = "../vmm-glue/tests/engine.rs"]
mod engine;

use std::process::ExitCode;

fn main() -> ExitCode {
    engine::main()
}
