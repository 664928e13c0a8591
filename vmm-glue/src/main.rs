//! The full build of cocoon: with the Cloud Hypervisor engine.

use std::process::ExitCode;

use cocoon_full::CloudHypervisor;

fn main() -> ExitCode {
    cocoon::cli::main(&[&CloudHypervisor])
}
