//! `cocoon __vmm`: what cocoon starts itself as, one process a VM. Not for people.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::ops::vm_process;
use crate::units::RunId;
use crate::vmm::{Engine, logging};

/// What a VM process is given.
#[derive(Debug, clap::Args)]
pub(super) struct VmmArgs {
    /// The VM's specification
    spec: PathBuf,
    /// The run that it begins
    run: RunId,
}

/// Runs one VM to its end. Standard output is the pipe to the parent, for one report.
pub(super) fn run(args: &VmmArgs, engines: &[&'static dyn Engine]) -> ExitCode {
    if let Err(error) = logging::install() {
        super::output::note(format_args!("no log can be written: {error}"));
    }
    let report = |report| {
        let mut line = serde_json::to_vec(&report).unwrap_or_default();
        line.push(b'\n');
        // A parent that is gone needs no report; the VM runs on.
        let _ = std::io::stdout()
            .write_all(&line)
            .and_then(|()| std::io::stdout().flush());
        // Nothing more is for the parent, who may be waiting for the pipe's end.
        let _ = rustix::stdio::dup2_stdout(std::io::stderr());
    };
    match vm_process::run(&args.spec, args.run, engines, report) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
