//! `cocoon completion`: what makes a shell ask this program what may come next, and the answers.
//!
//! ```text
//!   TAB ─▶ the script's function ─▶ COCOON_COMPLETE=<shell> cocoon -- <the words so far> ─▶ candidates
//! ```
//! Flags and verbs come from the command line's own definition, names from the records: those of the root
//! folder that the words, or the environment, name.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::env::Shells;
use clap_complete::{CompleteEnv, CompletionCandidate};

use super::error::Failure;
use super::global::GlobalArgs;
use super::output;
use crate::config::Config;
use crate::ops::names::{self, Named};

/// By this a script tells that it asks, and for which shell.
const ASKS: &str = "COCOON_COMPLETE";

/// What `cocoon completion` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Bash:        cocoon completion bash >/etc/bash_completion.d/cocoon
Zsh:         cocoon completion zsh >\"${fpath[1]}/_cocoon\"
Fish:        cocoon completion fish >~/.config/fish/completions/cocoon.fish
PowerShell:  cocoon completion powershell | Out-String | Invoke-Expression"
)]
pub(super) struct CompletionArgs {
    /// Shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
    Powershell,
}

impl Shell {
    fn name(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Zsh => "zsh",
            Self::Fish => "fish",
            Self::Powershell => "powershell",
        }
    }
}

/// Answers a script that asks, and ends then.
pub(super) fn answer<C: CommandFactory>() {
    CompleteEnv::with_factory(C::command).var(ASKS).complete();
}

/// Prints the script for a shell.
pub(super) fn completion(args: &CompletionArgs) -> Result<(), Failure> {
    let shells = Shells::builtins();
    let mut script = Vec::new();
    if let Some(shell) = shells.completer(args.shell.name()) {
        shell
            .write_registration(ASKS, "cocoon", "cocoon", "cocoon", &mut script)
            .map_err(Failure::Output)?;
    }
    output::raw(&script)
}

/// VMs, for whoever completes one.
pub(super) fn vms() -> Vec<CompletionCandidate> {
    candidates(names::vms)
}

/// Images.
pub(super) fn images() -> Vec<CompletionCandidate> {
    candidates(names::images)
}

/// Snapshots.
pub(super) fn snapshots() -> Vec<CompletionCandidate> {
    candidates(names::snapshots)
}

/// None where there is anything wrong: a shell that completes is no place to say so.
fn candidates(list: impl Fn(&Config) -> Vec<Named>) -> Vec<CompletionCandidate> {
    let Ok(config) = asked_for(std::env::args_os()).config() else {
        return Vec::new();
    };
    let named = list(&config).into_iter();
    named
        .map(|named| CompletionCandidate::new(named.name).help(Some(named.what.into())))
        .collect()
}

/// The global flags among the words so far that say where records are. The words are no command yet, so
/// nothing can parse them as one.
fn asked_for(words: impl Iterator<Item = OsString>) -> GlobalArgs {
    let words: Vec<_> = words.filter_map(|word| word.into_string().ok()).collect();
    let value_of = |flag: &str| -> Option<PathBuf> {
        let (index, word) = words
            .iter()
            .enumerate()
            .rfind(|(_, word)| word.split('=').next() == Some(flag))?;
        let value = match word.split_once('=') {
            Some((_, value)) => value,
            None => words.get(index + 1)?,
        };
        Some(value.into())
    };
    GlobalArgs::of_records(value_of("--config"), value_of("--root-dir"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_folder_is_found_among_the_words() {
        let asked = |line: &str| asked_for(line.split(' ').map(OsString::from));
        let root = |line| asked(line).config().unwrap().root_dir;
        let default = root("cocoon -- cocoon vm start ");
        assert_eq!(root("-- cocoon --root-dir"), default);
        for line in [
            "-- cocoon --root-dir /a vm rm",
            "-- cocoon vm rm --root-dir=/a",
        ] {
            assert_eq!(root(line), PathBuf::from("/a"));
        }
    }
}
