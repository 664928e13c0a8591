//! What GRUB would boot, by its own configuration (GNU GRUB 2.12, chapters 6 and 16).
//!
//! ```text
//! grub.cfg ─ script::parse ─▶ statements ─ Menu::read ─▶ menu ─ `default`, environment ─▶ entry ─ run ─▶ Boot
//!                                              ▲
//!                  files: grubenv, entries of the Boot Loader Specification, what `source` names
//! ```
//! As much of the language is understood as grub-mkconfig of Debian, Ubuntu, Fedora and their relatives
//! writes: words with quotes and variables, `if`, `set`, `load_env`, `menuentry`, `submenu`, `blscfg`,
//! `linux`, `initrd`. Functions and loops are passed over: theirs are for the screen, and for what GRUB writes.
//! A command that is not known does nothing, and a condition on it does not hold.
//!
//! Invariant: however a script is made, it ends: nothing loops, and what it may do is counted.

mod environment;
mod menu;
mod run;
mod script;

pub(super) use environment::parse as environment;
pub(super) use menu::{Choice, Menu};

use super::bls::BlsEntry;

/// What a script can see of the disk.
pub(super) trait Files {
    /// The text of a file, if it is there.
    fn read(&self, path: &str) -> Option<String>;

    /// Bytes of a file, if it is there.
    fn size(&self, path: &str) -> Option<u64>;

    /// Whether there is a folder.
    fn has_folder(&self, path: &str) -> bool;

    /// The entries of the Boot Loader Specification, newest first.
    fn entries(&self) -> Vec<BlsEntry>;
}

/// What an entry of the menu boots: paths and arguments as the script has them, variables filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Boot {
    pub(super) title: String,
    pub(super) kernel: String,
    pub(super) arguments: Vec<String>,
    pub(super) initrd: Vec<String>,
}

/// Why a script is given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrubError {
    /// It is not in the language, as far as that is known here.
    #[error("line {line} is not understood: {what}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// Variables grow without end, or scripts bring in scripts.
    #[error("it does more than a boot takes")]
    TooMuch,
}

/// A path without the device in front, which is written in brackets.
fn without_device(path: &str) -> &str {
    match path.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
        Some((_, path)) => path,
        None => path,
    }
}
