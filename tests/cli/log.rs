//! The log file: all commands share it, and it stays bounded.

use crate::support::Cocoon;

/// Somebody refuses connections there, so a pull ends at once, and a debug log says how.
const NOBODY: &str = "127.0.0.1:1/image:1";

#[test]
fn commands_at_once_share_a_log_that_is_turned_away_when_it_is_full() {
    let cocoon = Cocoon::new();
    let full = "{}\n".repeat((1 << 20) / 3);
    let log = cocoon.file("cocoon.log", &full);
    let config = format!(
        "[log]\nfile = '{log}'\nlevel = 'debug'\njson = true\nmax_size_mb = 1\nmax_backups = 2\n"
    );
    let config = cocoon.file("config.toml", &config);
    let pulls: Vec<_> = (0..4)
        .map(|_| {
            let mut pull = cocoon.command(&["--config", &config, "image", "pull", NOBODY]);
            pull.stderr(std::process::Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut pull in pulls {
        assert_eq!(pull.wait().unwrap().code(), Some(1));
    }
    let folder = std::path::Path::new(&log).parent().unwrap();
    let entries = std::fs::read_dir(folder).unwrap();
    let turned: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains("/cocoon-"))
        .collect();
    assert_eq!(turned.len(), 1, "{turned:?}");
    // Who had the old file open still may have written to it: no line is lost, and none is mixed.
    let old = std::fs::read_to_string(&turned[0]).unwrap();
    let new = std::fs::read_to_string(&log).unwrap();
    assert!(new.len() < 1 << 20, "{} bytes", new.len());
    let lines = old.strip_prefix(&full).unwrap().lines().chain(new.lines());
    let lines = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let tries = lines.filter(|line| {
        let message = line["fields"]["message"].as_str();
        message.is_some_and(|message| message.starts_with("starting new connection"))
    });
    assert!(tries.count() >= 4);
}

#[test]
fn a_log_that_cannot_be_opened_is_told_and_nothing_is_done() {
    let cocoon = Cocoon::new();
    let config = cocoon.file("config.toml", "[log]\nfile = '/proc/none/cocoon.log'\n");
    let output = cocoon.run(&["--config", &config, "vm", "list"]);
    assert_eq!(output.status.code(), Some(1));
    let said = crate::support::stderr(&output);
    assert!(said.contains("/proc/none/cocoon.log"), "{said}");
}
