//! What a command says when it fails: the chain of errors once, a hint, an exit code.
//!
//! Hints have a file of their own, `cli/hint.rs`.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use cocoon_agent::protocol::FailureKind;

use super::{hint, output};
use crate::config::InvalidConfig;
use crate::image::cloud::InvalidCloudUrl;
use crate::image::reference::InvalidReference;
use crate::ops;
use crate::units::VmName;

/// Exit code of a command that the user interrupted: 128 + SIGINT, as shells have it.
const EXIT_INTERRUPTED: u8 = 130;

/// Exit codes of `vm exec` where the command did not run, as `docker exec` has them.
const EXIT_EXEC_FAILED: u8 = 125;
const EXIT_CANNOT_RUN: u8 = 126;
const EXIT_NOT_FOUND: u8 = 127;

/// Exit code of a command that was used wrongly, as clap's own.
const EXIT_USAGE: u8 = 2;

/// A command that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Operation(#[from] ops::Error),
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    #[error("cannot read the config file {}", path.display())]
    ConfigFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write the log file {}", path.display())]
    LogFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the manifest {}", path.display())]
    ManifestFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("this host failed {count} of the checks")]
    Unhealthy { count: usize, repaired: bool },
    #[error("cannot handle signals")]
    Signals(#[source] io::Error),
    #[error("an archive is not written to a terminal")]
    ArchiveToTerminal,
    #[error("cannot tell which folder this is")]
    WorkingFolder(#[source] io::Error),
    #[error("cannot tell where this program is")]
    OwnProgram(#[source] io::Error),
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    #[error("the console of {vm} failed")]
    Console {
        vm: String,
        #[source]
        source: crate::console::relay::RelayError,
    },
    #[error("{image} is not an image reference")]
    Reference {
        image: String,
        #[source]
        source: InvalidReference,
    },
    #[error(transparent)]
    Address(InvalidCloudUrl),
    #[error("--sha256 is the digest of one disk image, and goes with one address")]
    Sha256OfMany,
    #[error("VM {name} was created, but did not start")]
    CreatedOnly {
        name: VmName,
        #[source]
        source: Box<Failure>,
    },
    #[error("one of SRC and DST must be a path in a VM, and the other a path here")]
    CopySides,
    /// `vm exec` could not run the command.
    #[error(transparent)]
    Exec(Box<Failure>),
    /// The command that `vm exec` ran ended with this code; it has spoken for itself.
    #[error("the command ended with code {0}")]
    Ended(u8),
    #[error("{} commands failed", .0.len())]
    Several(Vec<Failure>),
}

impl Failure {
    /// Success, or what failed.
    pub(super) fn all(mut failures: Vec<Self>) -> Result<(), Self> {
        match failures.len() {
            0 => Ok(()),
            1 => Err(failures.remove(0)),
            _ => Err(Self::Several(failures)),
        }
    }

    /// The error and its sources in one line, as JSON output has it.
    pub(super) fn line(&self) -> String {
        chain(self).join(": ")
    }

    /// Says on standard error what went wrong and what may help, and returns the exit code.
    pub(super) fn report(&self) -> ExitCode {
        match self {
            Self::Ended(_) => {}
            Self::Several(failures) => failures.iter().for_each(Self::print),
            failure => failure.print(),
        }
        ExitCode::from(self.exit_code())
    }

    fn print(&self) {
        let links = chain(self);
        let mut links = links.iter();
        if let Some(first) = links.next() {
            output::note(format_args!("error: {first}"));
        }
        links.for_each(|cause| output::note(format_args!("  caused by: {cause}")));
        if let Some(hint) = hint::of(self) {
            output::note(format_args!("hint: {hint}"));
        }
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Operation(ops::Error::Interrupted | ops::Error::StopInterrupted(_)) => {
                EXIT_INTERRUPTED
            }
            Self::Operation(ops::Error::Pull(error)) if error.is_cancelled() => EXIT_INTERRUPTED,
            Self::Operation(ops::Error::Upgrade(error)) if error.is_cancelled() => EXIT_INTERRUPTED,
            Self::Operation(ops::Error::Import(error)) if error.is_cancelled() => EXIT_INTERRUPTED,
            Self::Several(failures)
                if failures
                    .iter()
                    .any(|one| one.exit_code() == EXIT_INTERRUPTED) =>
            {
                EXIT_INTERRUPTED
            }
            Self::Config(_)
            | Self::ConfigFile { .. }
            | Self::ManifestFile { .. }
            | Self::Operation(ops::Error::UpgradeManifest(_))
            | Self::Reference { .. }
            | Self::ArchiveToTerminal
            | Self::CopySides
            | Self::Address(_)
            | Self::Sha256OfMany => EXIT_USAGE,
            Self::Ended(code) => *code,
            Self::Exec(failure) => failure.exit_code_of_exec(),
            Self::CreatedOnly { source, .. } => source.exit_code(),
            _ => 1,
        }
    }

    fn exit_code_of_exec(&self) -> u8 {
        match self {
            Self::Operation(ops::Error::Agent { source, .. }) => match source.refusal() {
                Some(FailureKind::NotFound) => EXIT_NOT_FOUND,
                Some(FailureKind::CannotRun) => EXIT_CANNOT_RUN,
                _ => EXIT_EXEC_FAILED,
            },
            failure => match failure.exit_code() {
                EXIT_INTERRUPTED => EXIT_INTERRUPTED,
                _ => EXIT_EXEC_FAILED,
            },
        }
    }
}

/// The messages of an error and its sources; one that only repeats its source is left out.
fn chain(error: &Failure) -> Vec<String> {
    let mut links: Vec<String> = Vec::new();
    let mut link: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = link {
        let text = harmless(&error.to_string());
        if links.last() != Some(&text) {
            links.push(text);
        }
        link = error.source();
    }
    links
}

/// A message that moves no cursor: it may quote a registry, a plugin or a file, through whatever library
/// has read them.
fn harmless(message: &str) -> String {
    let mut shown = String::with_capacity(message.len());
    for c in message.chars() {
        match c.is_control() && c != '\n' {
            true => shown.extend(c.escape_debug()),
            false => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_moves_the_cursor() {
        let quoting = io::Error::other("unknown \x1b[2J\u{9b}1A\r\u{7}\0 at\nline 2");
        let line = Failure::Output(quoting).line();
        assert_eq!(
            line,
            "cannot write the output: unknown \\u{1b}[2J\\u{9b}1A\\r\\u{7}\\0 at\nline 2"
        );
    }
}
