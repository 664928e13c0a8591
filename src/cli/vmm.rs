//! `cocoon __vmm`: what cocoon starts itself as, one process a VM. Not for people, but by the hand of one
//! who pastes what `cocoon vm debug` printed.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use super::output;
use crate::console::EscapeByte;
use crate::console::relay::Session;
use crate::ops::vm_process;
use crate::sys::{malloc, tty};
use crate::units::RunId;
use crate::vmm::{Engine, logging};

/// What cocoon calls itself by.
const NAME: &str = "__vmm";

/// Run one VM; cocoon starts itself with this.
#[derive(Debug, clap::Parser)]
#[command(bin_name = "cocoon __vmm")]
pub(super) struct VmmArgs {
    /// The VM's specification
    spec: PathBuf,
    /// The run that it begins; none by hand
    run: Option<RunId>,
    /// It is this process's run already: its guest has reset itself
    #[arg(long, requires = "run")]
    again: bool,
}

/// What argv says, if this is to be the process of a VM. It is a command line of its own: to build all the others
/// would be a tenth of what a clone takes.
pub(super) fn asked_for() -> Option<VmmArgs> {
    let mut words = std::env::args_os().skip(1).peekable();
    (words.peek()? == NAME).then(|| VmmArgs::parse_from(words))
}

/// Runs one VM to its end.
pub(super) fn run(args: &VmmArgs, engines: &[&'static dyn Engine]) -> ExitCode {
    // The log has the first thread besides this one.
    malloc::keep_to_one_arena();
    if let Err(error) = logging::install() {
        output::note(format_args!("no log can be written: {error}"));
    }
    let result = match args.run {
        Some(run) if args.again => vm_process::run_again(&args.spec, run, engines),
        Some(run) => vm_process::run(&args.spec, run, engines, report),
        None => by_hand(&args.spec, engines),
    };
    logging::flush();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Standard output is the pipe to the parent, for one report.
fn report(report: crate::vmm::protocol::Report) {
    let mut line = serde_json::to_vec(&report).unwrap_or_default();
    line.push(b'\n');
    // A parent that is gone needs no report; the VM runs on.
    let _ = io::stdout()
        .write_all(&line)
        .and_then(|()| io::stdout().flush());
    // Nothing more is for the parent, who may be waiting for the pipe's end.
    let _ = rustix::stdio::dup2_stdout(io::stderr());
}

/// Standard input and output are the guest's console.
fn by_hand(spec: &Path, engines: &[&'static dyn Engine]) -> Result<(), vm_process::Error> {
    let (input, shown) = (io::stdin(), io::stdout());
    let session = Session {
        input: input.as_fd(),
        output: shown.as_fd(),
        // Scripts send bytes, not keys.
        escape: tty::is_terminal(&input).then_some(EscapeByte::default()),
        history: true,
        linger: None,
        signals: None,
    };
    vm_process::run_by_hand(spec, engines, &session).inspect_err(|error| {
        output::note(format_args!(
            "error: {}",
            vm_process::chain(error).join("\n  caused by: ")
        ));
    })
}
