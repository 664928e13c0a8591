//! Writes a man page for each command into a folder, from the definition of the command line: `make man`.

use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_mangen::Man;

/// What stands at the foot of each page, left.
const SOURCE: &str = concat!("cocoon ", env!("CARGO_PKG_VERSION"));

fn main() -> io::Result<()> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or_else(|| io::Error::other("name a folder for the pages"))?;
    // As the Makefile says it: a time, or `unknown`.
    let built = std::env::var("COCOON_BUILT").unwrap_or_else(|_| "unknown".into());
    write_all(&folder, built.split('T').next().unwrap_or_default())
}

/// Writes `cocoon.1`, `cocoon-vm.1`, `cocoon-vm-run.1` and so on.
fn write_all(folder: &Path, date: &str) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut cocoon = cocoon::cli::command();
    cocoon.build();
    write(&cocoon, folder, date)
}

fn write(command: &Command, folder: &Path, date: &str) -> io::Result<()> {
    let mut shown = command.clone();
    if let Some(lines) = command.get_after_help() {
        // roff would join them.
        shown = shown.after_help(lines.to_string().replace('\n', "\n\n"));
    }
    let page = Man::new(shown).date(date).source(SOURCE).manual("cocoon");
    page.generate_to(folder)?;
    let mut verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    verbs.try_for_each(|verb| write(verb, folder, date))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The pages that there must be for `command`, named `name`.
    fn names(command: &Command, name: &str) -> BTreeSet<String> {
        let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
        let verbs = verbs.flat_map(|verb| names(verb, &format!("{name}-{}", verb.get_name())));
        verbs.chain([format!("{name}.1")]).collect()
    }

    #[test]
    fn every_command_has_a_page_and_nothing_else_has() {
        let folder = tempfile::tempdir().unwrap();
        write_all(folder.path(), "2026-01-01").unwrap();
        let entries = std::fs::read_dir(folder.path()).unwrap();
        let written = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let expected = names(&cocoon::cli::command(), "cocoon");
        assert!(expected.contains("cocoon-vm-run.1"), "{expected:?}");
        assert_eq!(written.collect::<BTreeSet<_>>(), expected);
        let page = std::fs::read_to_string(folder.path().join("cocoon-vm-run.1")).unwrap();
        for part in [
            ".TH cocoon-vm-run 1 2026-01-01 \"cocoon ",
            "Create and start a VM",
            "storage",
            "root\\-dir",
        ] {
            assert!(page.contains(part), "{part:?} is not in {page}");
        }
    }

    #[test]
    fn groff_finds_nothing_wrong_with_any_page() {
        let folder = tempfile::tempdir().unwrap();
        write_all(folder.path(), "2026-01-01").unwrap();
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let page = entry.unwrap().path();
            // Formats it, all warnings on, and throws the result away.
            let groff = std::process::Command::new("groff")
                .args(["-man", "-ww", "-z", "-Tutf8"])
                .arg(&page)
                .output();
            let Ok(said) = groff else {
                println!("SKIPPED: groff is not installed");
                return;
            };
            let told = String::from_utf8_lossy(&said.stderr);
            assert!(said.status.success() && told.is_empty(), "{page:?}: {told}");
        }
    }
}
