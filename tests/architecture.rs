//! Holds the code to its own architecture: layers, sizes, names (see `src/lib.rs`).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The rows of the architecture page, lowest first. A module uses only rows below its own.
const LAYERS: [&[&str]; 7] = [
    &["units", "sys"],
    &["store", "config", "disk"],
    &["vm"],
    &[
        "image",
        "installed",
        "cidata",
        "network",
        "snapshot",
        "console",
        "agent",
        "vmm",
    ],
    &["micro"],
    &["ops"],
    &["cli"],
];

/// Lines of a file without its tests.
const MAX_FILE: usize = 500;

/// Names that say nothing.
const EMPTY_NAMES: [&str; 7] = [
    "util", "utils", "common", "helpers", "types", "core", "misc",
];

fn sources(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "no sources below {folder}");
    found.sort();
    found
}

/// The code of a file: without comments, and without what only tests compile.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    text.lines().filter(is_code).collect::<Vec<_>>().join("\n")
}

fn is_test_only(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests")
        || path
            .file_stem()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with("tests") || name == "fixture")
}

fn module_of(path: &Path) -> Option<String> {
    let inner = path
        .strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
        .ok()?;
    let first = inner
        .components()
        .next()?
        .as_os_str()
        .to_str()?
        .trim_end_matches(".rs");
    (first != "lib" && first != "main").then(|| first.to_owned())
}

/// Names of modules of this crate that the code mentions as `crate::<module>` or in `crate::{..}`.
fn mentioned(code: &str) -> Vec<String> {
    let after = code.split("crate::").skip(1);
    after
        .map(|text| {
            text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .next()
                .unwrap_or_default()
                .to_owned()
        })
        .collect()
}

#[test]
fn modules_use_only_rows_below_their_own() {
    let row: BTreeMap<&str, usize> = LAYERS
        .iter()
        .enumerate()
        .flat_map(|(row, names)| names.iter().map(move |name| (*name, row)))
        .collect();
    let mut wrong = Vec::new();
    for path in sources("src").iter().filter(|path| !is_test_only(path)) {
        let Some(module) = module_of(path) else {
            continue;
        };
        let own = *row
            .get(module.as_str())
            .unwrap_or_else(|| panic!("{module} stands in no row of the architecture"));
        for used in mentioned(&code(path)) {
            let Some(other) = row.get(used.as_str()) else {
                continue;
            };
            if used != module && *other >= own {
                wrong.push(format!("{} uses crate::{used}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_are_no_longer_than_agreed() {
    let mut long = Vec::new();
    for path in ["src", "vmm-glue/src"]
        .into_iter()
        .flat_map(sources)
        .filter(|path| !is_test_only(path))
    {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text
            .split("#[cfg(test)]\nmod ")
            .next()
            .unwrap_or_default()
            .lines()
            .count();
        if lines > MAX_FILE {
            long.push(format!("{} has {lines} lines", path.display()));
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn no_module_has_an_empty_name() {
    for path in sources("src") {
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(!EMPTY_NAMES.contains(&name), "{}", path.display());
    }
}

#[test]
fn every_module_opens_with_what_it_is() {
    for path in ["src", "vmm-glue/src"].into_iter().flat_map(sources) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            is_test_only(&path) || text.starts_with("//! "),
            "{} does not say what it is",
            path.display()
        );
    }
}

#[test]
fn only_the_command_line_reads_argv_and_the_environment() {
    for path in sources("src").iter().filter(|path| !is_test_only(path)) {
        let is_cli = module_of(path).is_none_or(|module| module == "cli");
        let reads = ["env::var", "env::args"]
            .iter()
            .any(|call| code(path).contains(call));
        assert!(
            is_cli || !reads,
            "{} reads argv or the environment",
            path.display()
        );
    }
}

#[test]
fn nothing_in_the_root_package_names_cloud_hypervisors_crates() {
    for path in sources("src") {
        let code = code(&path);
        for name in ["vm_config", "event_monitor", "start_vmm_thread"] {
            assert!(!code.contains(name), "{} names {name}", path.display());
        }
    }
}
