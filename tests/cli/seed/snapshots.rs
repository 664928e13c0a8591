//! `snapshot`

use crate::support::counter::Counter;

#[test]
fn root_snapshot_save_list_ls_inspect_and_rm_of_several() {
    let Some(counter) = Counter::run() else {
        return;
    };
    let words = "before the upgrade";
    let flags = ["--name", "one", "--description", words];
    counter.ok(&[&["snapshot", "save"], &flags[..], &["counter"]].concat());
    let two = counter.ok(&["snapshot", "save", "counter"]);
    assert_eq!(counter.state(), "running");
    let table = counter.ok(&["snapshot", "list"]);
    let rows: Vec<_> = table.lines().collect();
    assert!(rows[0].starts_with("ID "), "{table}");
    assert!(
        rows[1].contains("  one ") && rows[1].contains(words),
        "{table}"
    );
    assert!(rows[2].starts_with(&two), "{table}");
    assert_eq!(rows.len(), 3, "{table}");
    assert_eq!(counter.ok(&["snapshot", "ls"]), table);
    let one = counter.json(&["snapshot", "inspect", "one"]);
    assert_eq!(one["description"], words);
    assert_eq!(one["vm_name"], "counter");
    assert_eq!(
        counter.ok(&["snapshot", "rm", "one", &two]).lines().count(),
        2
    );
    assert_eq!(
        counter.json(&["snapshot", "list", "-o", "json"]),
        serde_json::json!([])
    );
    let folders = std::fs::read_dir(counter.snapshots()).unwrap();
    assert_eq!(folders.count(), 0);
}
