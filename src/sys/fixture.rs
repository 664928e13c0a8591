//! What tests of several modules need of the system.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Writes an executable script, by another process: a descriptor of ours that writes it could be
/// inherited by a child of another test, and until that child has closed it the script is "busy".
pub(crate) fn write_script(path: &Path, text: &str) {
    let mut writer = Command::new("/bin/sh")
        .args(["-c", "cat >\"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = writer.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    assert!(writer.wait().unwrap().success());
}
