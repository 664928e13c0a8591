//! What users of Docker type, and what it is called here: the tip of a usage error.
//!
//! ```text
//!   cocoon run …         a verb, but of another noun           tip: here that is: cocoon vm run
//!   cocoon ps            a verb of Docker's                    tip: here that is: cocoon vm list
//!   cocoon vm run -d …   a flag of Docker's                    tip: VMs run in the background …
//! ```
//! Pure; what clap itself has to say of a misspelt word stays.

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Error};

/// Docker's verbs that are called something else here.
const VERBS: [(&str, &str); 24] = [
    ("attach", "cocoon vm console"),
    ("checkpoint", "cocoon snapshot save"),
    ("commit", "cocoon snapshot save"),
    ("container", "cocoon vm"),
    ("delete", "cocoon vm rm"),
    ("destroy", "cocoon vm rm"),
    ("events", "cocoon vm status --events"),
    ("help", "cocoon --help"),
    ("info", "cocoon doctor"),
    ("kill", "cocoon vm stop --force"),
    ("load", "cocoon image import"),
    ("login", "docker login: its logins are used here"),
    ("ps", "cocoon vm list"),
    ("prune", "cocoon gc"),
    ("remove", "cocoon vm rm"),
    ("restart", "cocoon vm stop, then cocoon vm start"),
    ("rmi", "cocoon image rm"),
    ("shell", "cocoon vm exec -it VM sh"),
    ("ssh", "cocoon vm exec -it VM sh"),
    ("stats", "cocoon vm status"),
    ("system", "cocoon gc, or cocoon doctor"),
    ("top", "cocoon vm status"),
    ("unpause", "cocoon vm resume"),
    (
        "update",
        "cocoon vm clone, which takes --cpu, --memory and --storage",
    ),
];

/// Docker's flags of `run` and `create` that are none here, and why.
const FLAGS: [(&[&str], &str); 8] = [
    (
        &["-d", "--detach"],
        "a VM runs in the background: leave it out",
    ),
    (
        &["-i", "-t", "--interactive", "--tty"],
        "when the VM runs: cocoon vm console, or cocoon vm exec -it",
    ),
    (
        &["-p", "-P", "--publish"],
        "a VM has an address of its own, on which all of its ports are: cocoon vm list shows it",
    ),
    (
        &["-v", "--volume", "--mount"],
        "a VM has a disk of its own: --storage; cocoon vm cp copies files",
    ),
    (
        &["--rm"],
        "a VM stays until it is removed: cocoon vm rm --force",
    ),
    (&["-m"], "write --memory"),
    (
        &["--network", "--net"],
        "networks are CNI's: --cni-conf-dir; or none: --nics 0",
    ),
    (
        &["-e", "--env"],
        "a VM boots its own system; a command in it takes --env: cocoon vm exec",
    ),
];

/// `error`, with a tip if it is about what `cocoon` calls something else.
pub(super) fn with_tip(mut error: Error, cocoon: &Command) -> Error {
    let told = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let tip = match error.kind() {
        ErrorKind::InvalidSubcommand => told(ContextKind::InvalidSubcommand)
            .and_then(|word| called(&word, cocoon))
            .map(|here| format!("here that is: {here}")),
        ErrorKind::UnknownArgument if makes_a_vm(&error) => {
            told(ContextKind::InvalidArg).and_then(|flag| reason(&flag).map(str::to_owned))
        }
        _ => None,
    };
    if let Some(tip) = tip {
        // What looks alike is not what was meant.
        for likeness in [ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg] {
            error.remove(likeness);
        }
        let tip = ContextValue::StyledStrs(vec![StyledStr::from(tip)]);
        error.insert(ContextKind::Suggested, tip);
    }
    error
}

/// What the verb `word` is called here.
fn called(word: &str, cocoon: &Command) -> Option<String> {
    let is_word = |command: &&Command| {
        command.get_name() == word || command.get_all_aliases().any(|alias| alias == word)
    };
    let nouns = cocoon.get_subcommands().filter(|noun| !noun.is_hide_set());
    let mut verbs: Vec<_> = nouns
        .filter_map(|noun| {
            let verb = noun.get_subcommands().find(is_word)?;
            Some(format!("cocoon {} {}", noun.get_name(), verb.get_name()))
        })
        .collect();
    // VMs are what most people mean.
    verbs.sort_by_key(|verb| !verb.starts_with("cocoon vm "));
    if !verbs.is_empty() {
        return Some(verbs.join(", or "));
    }
    if cocoon.get_subcommands().find(is_word).is_some() {
        return Some(format!("cocoon {word}"));
    }
    let docker = VERBS.iter().find(|(verb, _)| *verb == word);
    docker.map(|(_, here)| (*here).to_owned())
}

/// Whether an error is one of `vm run` or `vm create`.
fn makes_a_vm(error: &Error) -> bool {
    let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage) else {
        return false;
    };
    let usage = usage.to_string();
    ["cocoon vm run ", "cocoon vm create "]
        .iter()
        .any(|command| usage.contains(command))
}

fn reason(flag: &str) -> Option<&'static str> {
    let name = flag.split('=').next().unwrap_or(flag);
    let known = FLAGS.iter().find(|(flags, _)| flags.contains(&name));
    known.map(|(_, why)| *why)
}

#[cfg(test)]
mod tests {
    use super::super::Cli;
    use super::*;
    use clap::{CommandFactory, Parser};

    fn told(line: &str) -> String {
        let words = line.split(' ');
        let error = Cli::try_parse_from(words).unwrap_err();
        with_tip(error, &Cli::command()).to_string()
    }

    #[test]
    fn a_verb_is_told_with_its_nouns_vms_first() {
        for (line, tip) in [
            ("cocoon run ubuntu", "here that is: cocoon vm run\n"),
            (
                "cocoon rm x",
                "cocoon vm rm, or cocoon image rm, or cocoon snapshot rm\n",
            ),
            ("cocoon ls", "here that is: cocoon vm list, or cocoon image"),
            ("cocoon vm pull x", "here that is: cocoon image pull\n"),
            ("cocoon vm gc", "here that is: cocoon gc\n"),
            ("cocoon image ps", "here that is: cocoon vm list\n"),
        ] {
            let said = told(line);
            assert!(said.contains(tip), "{line}: {said}");
        }
    }

    #[test]
    fn what_dockers_verbs_are_called_here_can_be_typed_and_no_verb_of_ours_is_among_them() {
        for (verb, here) in VERBS {
            let said = told(&format!("cocoon {verb}"));
            assert!(said.contains(here), "{verb}: {said}");
            for part in here.split("cocoon ").skip(1) {
                let words = part.split([',', ' ']).take_while(|word| !word.is_empty());
                let words = words.filter(|word| word.chars().all(char::is_alphabetic));
                let mut cocoon = Cli::command();
                let mut command = &mut cocoon;
                for word in words.take(2) {
                    command = command.find_subcommand_mut(word).unwrap();
                }
            }
        }
    }

    #[test]
    fn a_flag_of_dockers_is_explained_where_a_vm_is_made_and_nowhere_else() {
        let said = told("cocoon vm run --rm x");
        assert!(said.contains("tip: a VM stays until"), "{said}");
        assert!(!said.contains("similar"), "{said}");
        let said = told("cocoon vm create --volume=/a:/b x");
        assert!(said.contains("cocoon vm cp"), "{said}");
        let said = told("cocoon vm start -d x");
        assert!(!said.contains("in the background"), "{said}");
    }

    #[test]
    fn a_misspelt_word_keeps_the_tip_of_what_is_like_it() {
        let said = told("cocoon vm strat x");
        assert!(said.contains("'start'"), "{said}");
    }
}
