//! The full build of cocoon: with the Cloud Hypervisor engine, its default, and the built-in one.

use std::process::ExitCode;

use cocoon::micro::Micro;
use cocoon_full::CloudHypervisor;

fn main() -> ExitCode {
    cocoon::cli::main(&[&CloudHypervisor, &Micro])
}
