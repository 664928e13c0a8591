//! Runs the statements of a script: variables, conditions, menus.
//!
//! ```text
//! words ─ variables filled in ─▶ arguments ─▶ set, load_env, source, blscfg, menuentry, linux, initrd …
//! ```

use std::collections::BTreeMap;

use super::script::{self, Block, Part, Statement, Word};
use super::{Boot, Files, GrubError, environment, without_device};
use crate::installed::bls::BlsEntry;

/// Bytes that all words together may have once their variables are filled in; a script has 1 MiB.
const MAX_EXPANDED: usize = 16 << 20;

/// Scripts that one may bring in by `source`, all told.
const MAX_SOURCES: usize = 16;

/// One line of a menu.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) title: String,
    pub(super) id: String,
    pub(super) action: Action,
}

/// What choosing a line does.
#[derive(Clone, Debug)]
pub(super) enum Action {
    Entry(Block),
    Submenu(Block),
    Bls(BlsEntry),
}

/// A script that is being run.
pub(super) struct Run<'a> {
    files: &'a dyn Files,
    variables: BTreeMap<String, String>,
    /// The menu, as far as it was said.
    pub(super) items: Vec<Item>,
    /// What `linux` and `initrd` have said.
    pub(super) boot: Boot,
    expanded: usize,
    sources: usize,
}

impl<'a> Run<'a> {
    /// Before its first statement; grub.cfg and grubenv are in the folder `prefix`.
    pub(super) fn new(files: &'a dyn Files, prefix: &str) -> Self {
        let known = [
            ("prefix", prefix),
            ("config_directory", prefix),
            ("feature_menuentry_id", "y"),
            ("feature_default_font_path", "y"),
            ("feature_all_video_module", "y"),
            ("grub_platform", "pc"),
            ("grub_cpu", "i386"),
            // Ubuntu's cloud images boot without an initrd once, and with it after that has failed. Here is
            // no second time.
            ("initrdfail", "1"),
        ];
        let known = known.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            files,
            variables: known.into(),
            items: Vec::new(),
            boot: Boot::default(),
            expanded: 0,
            sources: 0,
        }
    }

    /// Takes `entries` for the menu, of which `environment` names the default.
    pub(super) fn load(&mut self, entries: Vec<BlsEntry>, environment: Vec<(String, String)>) {
        self.variables.extend(environment);
        let default = self.variable("saved_entry").to_owned();
        self.variables.insert("default".to_owned(), default);
        self.add_entries(entries);
    }

    /// The value of a variable; empty if it has none.
    pub(super) fn variable(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    /// Runs `block`, and says whether its last command was successful.
    pub(super) fn run(&mut self, block: &Block) -> Result<bool, GrubError> {
        let mut is_success = true;
        for statement in block.iter() {
            is_success = match statement {
                Statement::Command(words, block) => self.command(words, block.as_ref())?,
                Statement::If(branches) => self.branches(branches)?,
            };
        }
        Ok(is_success)
    }

    fn branches(&mut self, branches: &[(Option<Block>, Block)]) -> Result<bool, GrubError> {
        for (condition, block) in branches {
            let holds = match condition {
                Some(condition) => self.run(condition)?,
                None => true,
            };
            if holds {
                return self.run(block);
            }
        }
        Ok(true)
    }

    fn command(&mut self, words: &[Word], block: Option<&Block>) -> Result<bool, GrubError> {
        let mut words = self.expand(words)?;
        if words.is_empty() {
            return Ok(true);
        }
        let name = words.remove(0);
        match name.as_str() {
            "set" | "export" => {
                for word in &words {
                    self.assign(word);
                }
            }
            "unset" => {
                for word in &words {
                    self.variables.remove(word);
                }
            }
            "[" | "test" => return Ok(self.test(&words)),
            "false" => return Ok(false),
            "true" | "insmod" | "search" | "echo" => {}
            "load_env" => self.load_env(&words),
            "source" | "." | "configfile" => return self.source(&words),
            "menuentry" | "submenu" => self.add_item(&name, &words, block),
            "blscfg" => self.add_entries(self.files.entries()),
            "linux" | "linux16" | "linuxefi" => {
                if !words.is_empty() {
                    self.boot.kernel = words.remove(0);
                    self.boot.arguments = words;
                }
            }
            "initrd" | "initrd16" | "initrdefi" => self.boot.initrd = words,
            _ => return Ok(self.assign(&name)),
        }
        Ok(true)
    }

    /// Does what `name=value` says, if that is what it is.
    fn assign(&mut self, word: &str) -> bool {
        let assignment = word.split_once('=');
        if let Some((name, value)) = assignment {
            self.variables.insert(name.to_owned(), value.to_owned());
        }
        assignment.is_some()
    }

    /// `load_env [-f FILE] [NAME...]`
    fn load_env(&mut self, words: &[String]) {
        let (path, names) = match words {
            [flag, path, names @ ..] if flag == "-f" || flag == "--file" => (path.clone(), names),
            names => (format!("{}/grubenv", self.variable("prefix")), names),
        };
        let block = self.files.read(without_device(&path));
        for (name, value) in environment::parse(&block.unwrap_or_default()) {
            if names.is_empty() || names.contains(&name) {
                self.variables.insert(name, value);
            }
        }
    }

    fn source(&mut self, words: &[String]) -> Result<bool, GrubError> {
        let path = words.first().map(|path| without_device(path));
        let Some(text) = path.and_then(|path| self.files.read(path)) else {
            return Ok(false);
        };
        self.sources += 1;
        self.expanded += text.len();
        if self.sources > MAX_SOURCES || self.expanded > MAX_EXPANDED {
            return Err(GrubError::TooMuch);
        }
        let block = script::parse(&text)?;
        self.run(&block)
    }

    fn add_item(&mut self, command: &str, words: &[String], block: Option<&Block>) {
        let apart = words.windows(2).find(|pair| pair[0] == "--id");
        let id = apart.map(|pair| pair[1].as_str());
        let id = id.or_else(|| words.iter().find_map(|word| word.strip_prefix("--id=")));
        let (Some(title), Some(block)) = (words.first(), block) else {
            return;
        };
        self.items.push(Item {
            title: title.clone(),
            id: id.unwrap_or_default().to_owned(),
            action: match command {
                "submenu" => Action::Submenu(Block::clone(block)),
                _ => Action::Entry(Block::clone(block)),
            },
        });
    }

    fn add_entries(&mut self, entries: Vec<BlsEntry>) {
        self.items.extend(entries.into_iter().map(|entry| Item {
            title: entry.title.clone(),
            id: entry.id.clone(),
            action: Action::Bls(entry),
        }));
    }

    /// Boots an entry of the Boot Loader Specification, of which GRUB fills in the variables.
    pub(super) fn boot_entry(&mut self, entry: &BlsEntry) -> Result<(), GrubError> {
        let mut words = |text: &str| {
            let Ok(block) = script::parse(&format!("linux {text}")) else {
                // Not in GRUB's language, as options of others may be: as they are.
                return Ok(text.split_whitespace().map(str::to_owned).collect());
            };
            match block.as_slice() {
                [Statement::Command(words, None)] => self.expand(&words[1..]),
                _ => Ok(text.split_whitespace().map(str::to_owned).collect()),
            }
        };
        let kernel = words(&entry.linux)?;
        let arguments = words(&entry.options)?;
        let initrd = words(&entry.initrd.join(" "))?;
        self.boot.kernel = kernel.into_iter().next().unwrap_or_default();
        self.boot.arguments = arguments;
        self.boot.initrd = initrd;
        Ok(())
    }

    /// Fills in variables; the value of one that stands in no quotes may become several words, or none.
    fn expand(&mut self, words: &[Word]) -> Result<Vec<String>, GrubError> {
        let mut expanded = Vec::new();
        for word in words {
            let mut text = String::new();
            let mut is_word = false;
            for part in word {
                let (value, is_split) = match part {
                    Part::Text(text) => (text.as_str(), false),
                    Part::Variable(name, is_quoted) => {
                        let value = self.variables.get(name).map_or("", String::as_str);
                        (value, !is_quoted)
                    }
                };
                self.expanded += value.len() + 1;
                if self.expanded > MAX_EXPANDED {
                    return Err(GrubError::TooMuch);
                }
                if !is_split {
                    text.push_str(value);
                    is_word = true;
                    continue;
                }
                for (index, piece) in value.split([' ', '\t', '\n']).enumerate() {
                    if index > 0 && (is_word || !text.is_empty()) {
                        expanded.push(std::mem::take(&mut text));
                        is_word = false;
                    }
                    text.push_str(piece);
                }
            }
            if is_word || !text.is_empty() {
                expanded.push(text);
            }
        }
        Ok(expanded)
    }

    /// `[ ... ]`: what stands between the brackets.
    fn test(&self, words: &[String]) -> bool {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let words = match words.as_slice() {
            [words @ .., "]"] => words,
            words => words,
        };
        words
            .split(|word| *word == "-o")
            .any(|all| all.split(|word| *word == "-a").all(|one| self.holds(one)))
    }

    fn holds(&self, words: &[&str]) -> bool {
        let number = |text: &str| text.trim().parse::<i64>().unwrap_or(0);
        let files = self.files;
        match *words {
            ["!", ref rest @ ..] => !self.holds(rest),
            ["-n", text] => !text.is_empty(),
            ["-z", text] => text.is_empty(),
            ["-f", path] => files.size(without_device(path)).is_some(),
            ["-s", path] => files
                .size(without_device(path))
                .is_some_and(|size| size > 0),
            ["-d", path] => files.has_folder(without_device(path)),
            ["-e", path] => {
                let path = without_device(path);
                files.size(path).is_some() || files.has_folder(path)
            }
            [a, "=" | "==", b] => a == b,
            [a, "!=", b] => a != b,
            [a, "-eq", b] => number(a) == number(b),
            [a, "-ne", b] => number(a) != number(b),
            [a, "-lt", b] => number(a) < number(b),
            [a, "-le", b] => number(a) <= number(b),
            [a, "-gt", b] => number(a) > number(b),
            [a, "-ge", b] => number(a) >= number(b),
            [text] => !text.is_empty(),
            _ => false,
        }
    }
}
