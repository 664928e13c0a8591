//! `version`

use crate::support::Cocoon;

#[test]
fn version_shows_version_revision_and_build_time() {
    let cocoon = Cocoon::new();
    let table = cocoon.ok(&["version"]);
    let value = |label: &str| {
        let line = table.lines().find_map(|line| line.strip_prefix(label));
        line.unwrap_or_else(|| panic!("no {label} in {table}"))
            .trim()
    };
    let version = cocoon.json(&["version", "-o", "json"]);
    for (label, key) in [
        ("Version:", "version"),
        ("Git hash:", "revision"),
        ("Built:", "built"),
    ] {
        assert_eq!(value(label), version[key].as_str().unwrap(), "{label}");
    }
    assert_eq!(value("Version:"), env!("CARGO_PKG_VERSION"));
    // `make build` says them, `cargo test` does not: then they are unknown, but never left out.
    for key in ["revision", "built"] {
        assert_ne!(version[key], "");
    }
}
