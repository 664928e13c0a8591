//! The menu of a script, and the line in it that boots.
//!
//! ```text
//! default=0  ="Debian GNU/Linux"  =gnulinux-simple-<uuid>     by number from 0, by title, by id
//!        ="1>2"  ="gnulinux-advanced-…>gnulinux-6.1.0-…"      and on into a submenu
//! ```
//! As in GRUB, what `default` names and the menu lacks is its first line.

use super::run::{Action, Item, Run};
use super::{Boot, Files, GrubError, script};
use crate::installed::bls::BlsEntry;

/// Submenus within submenus; grub-mkconfig's go one deep.
const MAX_DEPTH: usize = 8;

/// A script that has said its menu.
pub(in crate::installed) struct Menu<'a> {
    run: Run<'a>,
}

/// What a menu boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::installed) enum Choice {
    /// This.
    Boot(Boot),
    /// A line that boots no kernel: the firmware's settings, another loader.
    Other(String),
    /// It is empty.
    Nothing,
}

impl<'a> Menu<'a> {
    /// The menu of grub.cfg, whose folder is `prefix`.
    pub(in crate::installed) fn read(
        text: &str,
        prefix: &str,
        files: &'a dyn Files,
    ) -> Result<Self, GrubError> {
        let mut run = Run::new(files, prefix);
        let block = script::parse(text)?;
        run.run(&block)?;
        Ok(Self { run })
    }

    /// The menu of a loader that has none but `entries`, of which `environment` names the default.
    pub(in crate::installed) fn of_entries(
        entries: Vec<BlsEntry>,
        environment: Vec<(String, String)>,
        files: &'a dyn Files,
    ) -> Self {
        let mut run = Run::new(files, "");
        run.load(entries, environment);
        Self { run }
    }

    /// What boots when nobody chooses.
    pub(in crate::installed) fn choose(mut self) -> Result<Choice, GrubError> {
        let default = self.run.variable("default").to_owned();
        let mut wanted = Some(default.as_str());
        for _ in 0..MAX_DEPTH {
            let (first, rest) = wanted.map_or((String::new(), None), split);
            let items = std::mem::take(&mut self.run.items);
            let index = position(&items, &first).unwrap_or(0);
            let Some(item) = items.into_iter().nth(index) else {
                return Ok(Choice::Nothing);
            };
            match &item.action {
                Action::Entry(block) => {
                    self.run.run(block)?;
                }
                Action::Bls(entry) => self.run.boot_entry(entry)?,
                Action::Submenu(block) => {
                    self.run.run(block)?;
                    wanted = rest;
                    continue;
                }
            }
            let mut boot = self.run.boot;
            if boot.kernel.is_empty() {
                return Ok(Choice::Other(item.title));
            }
            boot.title = item.title;
            return Ok(Choice::Boot(boot));
        }
        Err(GrubError::TooMuch)
    }
}

/// The first step of a path through menus, and the others. `>>` is a `>` in a title.
fn split(path: &str) -> (String, Option<&str>) {
    let mut first = String::new();
    let mut rest = path;
    while let Some((text, after)) = rest.split_once('>') {
        first.push_str(text);
        match after.strip_prefix('>') {
            Some(after) => {
                first.push('>');
                rest = after;
            }
            None => return (first, Some(after)),
        }
    }
    first.push_str(rest);
    (first, None)
}

fn position(items: &[Item], wanted: &str) -> Option<usize> {
    if let Ok(index) = wanted.trim().parse::<usize>() {
        return (index < items.len()).then_some(index);
    }
    let is_it = |item: &Item| item.title == wanted || (item.id == wanted && !wanted.is_empty());
    items.iter().position(is_it)
}

#[cfg(test)]
mod tests;
