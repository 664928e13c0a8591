//! `cocoon vm console`

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use clap_complete::ArgValueCandidates;

use super::super::completion;
use super::super::error::Failure;
use super::super::output;
use crate::console::relay::Session;
use crate::console::signals::Signals;
use crate::console::{EscapeByte, RelayEnd, relay};
use crate::ops::{Host, attach};
use crate::sys::tty;

/// After piped input has ended: how long a guest may be silent before its answer counts as complete.
const LINGER_SECONDS: u64 = 2;

/// What `cocoon vm console` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ConsoleArgs {
    /// Escape character: a single one, or ^X for Ctrl-X
    #[arg(long, default_value = "^]", value_name = "CHAR")]
    escape_char: EscapeByte,
    /// Do not show what was printed before
    #[arg(long)]
    no_history: bool,
    /// When input that is no terminal has ended, leave after the guest was silent for this long
    #[arg(long, default_value_t = LINGER_SECONDS, value_name = "SECONDS")]
    linger: u64,
    /// Name, id, or the beginning of an id
    #[arg(add = ArgValueCandidates::new(completion::vms))]
    vm: String,
}

/// Attaches to a console.
pub(in crate::cli) fn console(host: &Host, args: &ConsoleArgs) -> Result<(), Failure> {
    let id = host.resolve(&args.vm)?;
    let mut viewer = attach::attach(host, id)?;
    let signals = Signals::catch().map_err(Failure::Signals)?;
    let (input, output_) = (io::stdin(), io::stdout());
    let interactive = tty::is_terminal(&input);
    let note = |text: &str| {
        if interactive {
            output::note(format_args!("{text}\r"));
        }
    };
    note(&format!(
        "Connected to {} (escape sequence: {}.)",
        args.vm, args.escape_char
    ));
    let mut history = !args.no_history;
    let end = loop {
        let end = relay(
            viewer,
            &Session {
                input: input.as_fd(),
                output: output_.as_fd(),
                // Scripts send bytes, not keys.
                escape: interactive.then_some(args.escape_char),
                history,
                linger: Some(Duration::from_secs(args.linger)),
                signals: Some(&signals),
            },
        );
        let end = end.map_err(|source| Failure::Console {
            vm: args.vm.clone(),
            source,
        })?;
        if end != RelayEnd::ConsoleClosed {
            break end;
        }
        match attach::attach_again(host, id)? {
            // Its history begins with the reset.
            Some(again) => (viewer, history) = (again, true),
            None => break end,
        }
    };
    match end {
        RelayEnd::Detached | RelayEnd::InputClosed => {
            note(&format!("\r\nDisconnected from {}.", args.vm))
        }
        RelayEnd::ConsoleClosed => note(&format!("\r\nThe console of {} has closed.", args.vm)),
        RelayEnd::Interrupted => return Err(crate::ops::Error::Interrupted.into()),
    }
    Ok(())
}
