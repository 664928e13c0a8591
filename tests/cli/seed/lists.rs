//! "List Flags", of `vm list`, `image list` and `snapshot list`.

use crate::support::counter::{Counter, IMAGE, SHAPE};

/// A host with one of each, and another VM that nobody saved.
fn counter() -> Option<Counter> {
    let counter = Counter::run()?;
    counter.ok(&["snapshot", "save", "--name", "moment", "counter"]);
    let create = ["vm", "create", "--name", "other", "--nics", "0"];
    counter.ok(&[&create, &SHAPE[..], &["counter"]].concat());
    Some(counter)
}

#[test]
fn root_list_flags_format_and_o_choose_json_or_the_default_table_of_vms_images_and_snapshots() {
    let Some(counter) = counter() else {
        return;
    };
    for (noun, name, count) in [
        ("vm", "counter", 2),
        ("image", IMAGE, 1),
        ("snapshot", "moment", 1),
    ] {
        let list = |flags: &[&str]| counter.ok(&[&[noun, "list"], flags].concat());
        let json = list(&["--format", "json"]);
        let items: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(items.as_array().unwrap().len(), count, "{noun}");
        assert_eq!(items[0]["name"], name);
        assert_eq!(list(&["-o", "json"]), json);
        let table = list(&[]);
        assert_eq!(table.lines().count(), 1 + count, "{table}");
        assert!(table.lines().nth(1).unwrap().contains(name), "{table}");
        for flag in ["--format", "-o"] {
            assert_eq!(list(&[flag, "table"]), table);
        }
    }
}

#[test]
fn root_list_flag_vm_shows_the_snapshots_of_that_vm_alone() {
    let Some(counter) = counter() else {
        return;
    };
    let list = |vm| counter.ok(&["snapshot", "list", "-q", "--vm", vm]);
    let all = counter.ok(&["snapshot", "list", "-q"]);
    assert_eq!(list("counter"), all);
    assert_eq!(all.lines().count(), 1);
    assert_eq!(list("other"), "");
}
