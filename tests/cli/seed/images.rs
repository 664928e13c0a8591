//! `image`

use crate::support::Cocoon;
use crate::support::counter::{root_files, root_tar};
use crate::support::registry::Registry;
use crate::support::{stderr, stdout};

/// Imports an image that boots, and has `name` in it, too; returns its id.
fn import(cocoon: &Cocoon, name: &str) -> String {
    let path = cocoon.root.path().join("vm.tar");
    std::fs::write(&path, root_tar(name)).unwrap();
    let import = ["image", "import", name, path.to_str().unwrap()];
    cocoon.ok(&import).trim_end().to_owned()
}

#[test]
fn image_pull_takes_several_images_and_stores_a_layer_that_they_share_once() {
    let registry = match Registry::start("", "") {
        Ok(registry) => registry,
        Err(why) => {
            println!("SKIPPED: {why}");
            return;
        }
    };
    let [kernel, initrd, one] = root_files("one");
    let [.., two] = root_files("two");
    let boot = [kernel, initrd];
    registry.build("one", &[&boot, &[one]]);
    registry.build("two", &[&boot, &[two]]);
    let (one, two) = (registry.push("one", &[]), registry.push("two", &[]));
    let cocoon = Cocoon::new();
    let pulled = cocoon.ok(&["image", "pull", &one, &two]);
    let listed = cocoon.json(&["image", "list", "-o", "json"]);
    let listed = listed.as_array().unwrap();
    let names: Vec<_> = listed.iter().map(|image| image["name"].as_str()).collect();
    assert_eq!(names, [Some(&*one), Some(&*two)]);
    let ids: Vec<_> = listed.iter().map(|image| image["id"].as_str()).collect();
    assert_eq!(ids, pulled.lines().map(Some).collect::<Vec<_>>());
    assert_eq!(listed[0]["layers"][0], listed[1]["layers"][0]);
    let blobs = std::fs::read_dir(cocoon.root.path().join("blobs")).unwrap();
    assert_eq!(blobs.count(), 3, "of two images with two layers");
    let again = cocoon.run(&["image", "pull", &one]);
    let told = stderr(&again);
    assert_eq!(stdout(&again), format!("{}\n", ids[0].unwrap()), "{told}");
    assert_eq!(told.matches("already here").count(), 2, "{told}");
}

#[test]
fn image_list_and_its_alias_ls_show_the_images_that_are_stored() {
    let cocoon = Cocoon::new();
    let ids = [import(&cocoon, "one"), import(&cocoon, "two")];
    let table = cocoon.ok(&["image", "list"]);
    let mut lines = table.lines().map(str::split_whitespace);
    let header: Vec<_> = lines.next().unwrap().collect();
    assert_eq!(header, ["TYPE", "NAME", "DIGEST", "SIZE", "CREATED"]);
    for (name, id) in ["one", "two"].iter().zip(&ids) {
        let row: Vec<_> = lines.next().unwrap().take(3).collect();
        let name = format!("docker.io/library/{name}:latest");
        assert_eq!(row, ["oci", &name, &id[.."sha256:".len() + 12]]);
    }
    assert!(lines.next().is_none(), "{table}");
    assert_eq!(cocoon.ok(&["image", "ls"]), table);
}

#[test]
fn image_inspect_shows_an_image_as_json_and_image_rm_takes_several_ids() {
    let cocoon = Cocoon::new();
    let ids = ["one", "two", "three"].map(|name| import(&cocoon, name));
    let inspected = cocoon.json(&["image", "inspect", "two"]);
    assert_eq!(inspected["id"], ids[1]);
    assert_eq!(inspected["name"], "docker.io/library/two:latest");
    assert_eq!(inspected["layers"].as_array().unwrap().len(), 1);
    assert_eq!(cocoon.json(&["image", "inspect", &ids[1]]), inspected);
    let removed = cocoon.ok(&["image", "rm", &ids[0], &ids[1]]);
    let removed: Vec<_> = removed.lines().collect();
    let names = ["one", "two"].map(|name| format!("docker.io/library/{name}:latest"));
    assert_eq!(removed, names);
    let left = cocoon.ok(&["image", "list", "-q"]);
    assert_eq!(left, format!("{}\n", ids[2]));
}
