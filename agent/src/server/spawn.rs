//! Starting a command: its terminal or pipes, its user, its session.
#![expect(
    unsafe_code,
    reason = "what a child does before it executes its program"
)]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::fs::OFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::users::{self, User};
use crate::protocol::{Exec, Failure, FailureKind, TerminalSize};

/// Where a command is looked for, as Debian's login has it for root.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) child: Child,
    pub(super) streams: Streams,
}

/// Our ends; none of them makes us wait.
#[derive(Debug)]
pub(super) enum Streams {
    /// One terminal for all.
    Terminal(File),
    /// A pipe each; input only where it was asked for.
    Pipes {
        input: Option<File>,
        output: File,
        error: File,
    },
}

/// Starts a command in a session, and so a process group, of its own.
pub(super) fn spawn(wanted: &Exec) -> Result<Running, Failure> {
    let (program, arguments) = wanted
        .argv
        .split_first()
        .ok_or_else(|| Failure::new(FailureKind::Invalid, "there is no command"))?;
    let user = users::find(wanted.user.as_deref().unwrap_or("root"));
    // A guest without /etc/passwd has a root nevertheless.
    let user = match wanted.user {
        Some(_) => user?,
        None => user.unwrap_or_else(|_| root()),
    };
    let folder = wanted.cwd.as_deref().unwrap_or("/");
    if !std::path::Path::new(folder).is_dir() {
        let message = format!("the guest has no folder {folder:?}");
        return Err(Failure::new(FailureKind::CannotRun, message));
    }
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).env_clear();
    command.env("PATH", PATH).env("HOME", &user.home);
    command.env("USER", &user.name).env("LOGNAME", &user.name);
    command.envs(wanted.env.iter().map(|(name, value)| (name, value)));
    let prepared = match wanted.tty {
        Some(size) => terminal(&mut command, size),
        None => pipes(&mut command, wanted.stdin),
    };
    let streams = prepared.map_err(|error| super::refused("make a terminal or pipes", error))?;
    // Without a user nothing changes, so that an agent that is not root (in tests) can run commands.
    become_session(
        &mut command,
        wanted.tty.is_some(),
        wanted.user.is_some().then_some(user),
    );
    let child = command
        .spawn()
        .map_err(|error| cannot_run(program, &error))?;
    Ok(Running { child, streams })
}

fn root() -> User {
    User {
        name: "root".into(),
        uid: rustix::process::Uid::ROOT,
        gid: rustix::process::Gid::ROOT,
        groups: vec![rustix::process::Gid::ROOT],
        home: "/root".into(),
    }
}

fn cannot_run(program: &str, error: &io::Error) -> Failure {
    let (kind, why) = match error.kind() {
        io::ErrorKind::NotFound => (FailureKind::NotFound, "it is not there".to_owned()),
        _ => (FailureKind::CannotRun, error.to_string()),
    };
    Failure::new(kind, format!("the guest cannot run {program:?}: {why}"))
}

fn terminal(command: &mut Command, size: TerminalSize) -> io::Result<Streams> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let main = rustix::pty::openpt(flags)?;
    rustix::pty::unlockpt(&main)?;
    set_size(&main, size)?;
    let other = rustix::pty::ioctl_tiocgptpeer(&main, flags)?;
    command
        .stdin(other.try_clone()?)
        .stdout(other.try_clone()?)
        .stderr(other);
    Ok(Streams::Terminal(not_waiting(main)?))
}

fn pipes(command: &mut Command, wants_input: bool) -> io::Result<Streams> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let input = match wants_input {
        false => {
            command.stdin(Stdio::null());
            None
        }
        true => {
            let (theirs, ours) = pipe()?;
            command.stdin(theirs);
            Some(not_waiting(ours)?)
        }
    };
    let (output, theirs) = pipe()?;
    command.stdout(theirs);
    let (error, theirs) = pipe()?;
    command.stderr(theirs);
    Ok(Streams::Pipes {
        input,
        output: not_waiting(output)?,
        error: not_waiting(error)?,
    })
}

fn not_waiting(fd: OwnedFd) -> io::Result<File> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
    Ok(fd.into())
}

/// Sets a terminal's size; its foreground processes are told.
pub(super) fn set_size(terminal: impl std::os::fd::AsFd, size: TerminalSize) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// The last one that is not a real-time signal.
const LAST_SIGNAL: i32 = 31;

fn become_session(command: &mut Command, has_terminal: bool, user: Option<User>) {
    let prepare = move || {
        // What the agent's own parents made it ignore is none of the command's business.
        for signal in 1..=LAST_SIGNAL {
            // SAFETY: no handler is set. Two signals have none that could be changed, and refuse.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        rustix::process::setsid()?;
        if has_terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        if let Some(user) = &user {
            rustix::thread::set_thread_groups(&user.groups)?;
            rustix::thread::set_thread_gid(user.gid)?;
            rustix::thread::set_thread_uid(user.uid)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec `prepare` makes system calls only: it takes no lock and no memory.
    unsafe { command.pre_exec(prepare) };
}
