//! What a shell offers, asked as a shell asks.

use std::process::Command;

use crate::support::counter::{IMAGE, install};
use crate::support::{Cocoon, stderr, stdout};

/// What bash offers for the last of `words`.
fn offers(cocoon: &Cocoon, words: &[&str]) -> Vec<String> {
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_cocoon"));
    let script = r#"
        . <(cocoon completion bash)
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE} COMP_TYPE=9
        function=$(complete -p cocoon | sed -E 's/.* -F ([^ ]+) .*/\1/')
        $function cocoon "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("bash")
        .args(["-c", script, "bash"])
        .args(words)
        .env(
            "PATH",
            format!("{}:{path}", program.parent().unwrap().display()),
        )
        .env("COCOON_ROOT_DIR", cocoon.root.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{words:?}: {}", stderr(&output));
    assert_eq!(stderr(&output), "", "{words:?}");
    let offered = stdout(&output);
    let offered = offered.lines().map(|line| line.trim_end().to_owned());
    offered.filter(|line| !line.is_empty()).collect()
}

#[test]
fn verbs_and_flags_are_offered() {
    let cocoon = Cocoon::new();
    assert_eq!(
        offers(&cocoon, &["cocoon", "vm", "st"]),
        ["start", "stop", "status"]
    );
    assert_eq!(
        offers(&cocoon, &["cocoon", "vm", "clone", "--req"]),
        ["--require-identity"]
    );
    assert!(!offers(&cocoon, &["cocoon", ""]).contains(&"__vmm".to_owned()));
}

#[test]
fn names_are_those_of_the_root_folder_that_is_meant() {
    let (cocoon, empty) = (Cocoon::new(), Cocoon::new());
    install(&cocoon);
    let words = ["cocoon", "image", "inspect", "docker"];
    // A colon is a word break for bash: what stands before it is not repeated.
    assert_eq!(offers(&cocoon, &words), [IMAGE]);
    assert_eq!(offers(&empty, &words), [""; 0]);
    let root = format!("--root-dir={}", cocoon.root.path().display());
    let words = ["cocoon", &root, "image", "inspect", "docker"];
    assert_eq!(offers(&empty, &words), [IMAGE]);
    // Nothing is made by asking.
    assert!(!empty.root.path().join("cocoon.db").exists());
}

#[test]
fn completion_prints_a_script_for_bash_zsh_fish_and_powershell() {
    let cocoon = Cocoon::new();
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let output = cocoon.run(&["completion", shell]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stdout(&output).contains("COCOON_COMPLETE"), "{shell}");
    }
    assert_eq!(cocoon.run(&["completion", "cmd"]).status.code(), Some(2));
}
