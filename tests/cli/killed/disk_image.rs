//! Disk images, and VMs of them.

use super::{Verb, kill_a_clone, kill_a_run, kill_at_every_step, nothing};
use crate::support::counter::Counter;
use crate::support::disk_image::{RUN, disk_image, served};

fn kill_what_makes(counter: &Counter, args: &[&str], name: &str) {
    kill_at_every_step(
        counter,
        &Verb {
            args,
            before: &nothing,
            is_done: &|| counter.has("image", name),
            done_at: "image: recorded",
            after: &|| counter.rid_of(name),
        },
    );
}

#[test]
fn root_a_pull_and_an_import_of_a_disk_may_be_killed_at_every_step() {
    let Some(counter) = Counter::run() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = disk_image(folder.path(), u32::MAX) else {
        return;
    };
    let (server, _) = served(folder.path());
    let url = format!("http://{}/disk.raw", server.address);
    kill_what_makes(&counter, &["image", "pull", &url], &url);
    let path = disk.to_str().unwrap();
    kill_what_makes(&counter, &["image", "import", "disk", path], "disk");
}

#[test]
fn root_a_vm_of_a_disk_may_be_killed_at_every_step() {
    let Some(counter) = Counter::run() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = disk_image(folder.path(), u32::MAX) else {
        return;
    };
    counter.ok(&["image", "import", "disk", disk.to_str().unwrap()]);
    let run = [&RUN[..], &["--name", "other", "disk"]].concat();
    kill_a_run(&counter, &run);
    counter.ok(&run);
    counter.ok(&["snapshot", "save", "--name", "moment", "other"]);
    counter.ok(&["vm", "rm", "--force", "other"]);
    kill_a_clone(&counter);
}
