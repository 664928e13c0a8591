//! Starts the program in a root folder of its own.

pub(crate) mod counter;
pub(crate) mod disk;
pub(crate) mod disk_image;
pub(crate) mod gate;
pub(crate) mod hear;
pub(crate) mod image;
pub(crate) mod left;
pub(crate) mod network;
pub(crate) mod private;
pub(crate) mod registry;

use std::path::Path;
use std::process::{Command, Output};

/// A root folder that goes with the test, and the program that uses it.
pub(crate) struct Cocoon {
    pub(crate) root: tempfile::TempDir,
}

impl Cocoon {
    pub(crate) fn new() -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
        }
    }

    /// With its root folder in `folder`.
    pub(crate) fn within(folder: &Path) -> Self {
        Self {
            root: tempfile::tempdir_in(folder).unwrap(),
        }
    }

    /// The program, or the one that `COCOON_TEST_PROGRAM` names, with these arguments, and nothing of the
    /// caller's environment that it reads.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let ours = env!("CARGO_BIN_EXE_cocoon");
        let program = std::env::var("COCOON_TEST_PROGRAM").unwrap_or_else(|_| ours.to_owned());
        let mut command = Command::new(program);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("COCOON_")) {
            command.env_remove(name);
        }
        command
            .env("COCOON_ROOT_DIR", self.root.path())
            .env("COCOON_LOG_DIR", self.root.path().join("log"));
        command.env("NO_COLOR", "1").args(args);
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs the program, which must succeed; returns what it writes.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        stdout(&output)
    }

    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    pub(crate) fn file(&self, name: &str, content: &str) -> String {
        let path = self.root.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Whether a folder holds anything.
pub(crate) fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}
