//! `cocoon vm exec`

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use cocoon_agent::protocol::{Exec, TerminalSize};

use clap_complete::ArgValueCandidates;

use super::super::completion;
use super::super::error::Failure;
use crate::agent::{Session, terminal_size};
use crate::console::signals::Signals;
use crate::ops::{self, Host};

/// How long a guest's agent is waited for: a VM that was just started is a moment from having one.
pub(super) const WAIT_SECONDS: u64 = 10;

/// What the guest's terminal is where the user has none.
const USUAL_SIZE: TerminalSize = TerminalSize { rows: 24, cols: 80 };

/// What `cocoon vm exec` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ExecArgs {
    /// Pass standard input on to the command
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set an environment variable; without a value, the one that it has here
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Folder to run the command in [default: /]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User or uid, and group or gid, to run the command as [default: root]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// How long to wait for the guest's agent, such as of a guest that still boots
    #[arg(long, default_value_t = WAIT_SECONDS, value_name = "SECONDS")]
    wait: u64,
    /// Name, id, or the beginning of an id
    #[arg(add = ArgValueCandidates::new(completion::vms))]
    vm: String,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<String>,
}

/// Runs a command in a VM, and ends as it ended.
pub(in crate::cli) fn exec(host: &Host, args: &ExecArgs) -> Result<(), Failure> {
    let code = run(host, args).map_err(|failure| Failure::Exec(Box::new(failure)))?;
    match code {
        0 => Ok(()),
        code => Err(Failure::Ended(code)),
    }
}

fn run(host: &Host, args: &ExecArgs) -> Result<u8, Failure> {
    let id = host.resolve(&args.vm)?;
    let signals = Signals::catch().map_err(Failure::Signals)?;
    let (input, output, error) = (io::stdin(), io::stdout(), io::stderr());
    let input = args.interactive.then(|| input.as_fd());
    let size =
        Some(terminal_size(output.as_fd(), input)).filter(|size| *size != TerminalSize::default());
    let command = Exec {
        argv: args.command.clone(),
        env: environment(args),
        cwd: args.workdir.clone(),
        user: args.user.clone(),
        tty: args.tty.then(|| size.unwrap_or(USUAL_SIZE)),
        stdin: args.interactive,
    };
    let session = Session {
        input,
        output: output.as_fd(),
        error: error.as_fd(),
        tty: args.tty,
        resized: signals.resized(),
        stop: signals.interrupted(),
    };
    let end = ops::exec::exec(host, id, command, &session, Duration::from_secs(args.wait))?;
    Ok(end.exit_code())
}

fn environment(args: &ExecArgs) -> Vec<(String, String)> {
    let terminal = std::env::var("TERM").ok().filter(|_| args.tty);
    let terminal = terminal.map(|value| ("TERM".to_owned(), value));
    let given = args
        .env
        .iter()
        .filter_map(|entry| match entry.split_once('=') {
            Some((name, value)) => Some((name.to_owned(), value.to_owned())),
            None => Some((entry.clone(), std::env::var(entry).ok()?)),
        });
    terminal.into_iter().chain(given).collect()
}
