//! A repair that is killed while it writes into folders that are not cocoon's own, where no `gc` looks.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Output;

use crate::support::private::{hide, in_private_host};
use crate::support::{Cocoon, left, stderr};

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

fn repair(cocoon: &Cocoon, kill_at: &str) -> Output {
    let mut command = cocoon.command(&["doctor", "--fix", "--subnet=10.213.0.0/20"]);
    for (name, folder) in [
        ("COCOON_CNI_CONF_DIR", "net.d"),
        ("COCOON_CNI_BIN_DIR", "bin"),
    ] {
        command.env(name, cocoon.root.path().join(folder));
    }
    command.env("COCOON_FAILPOINT", kill_at).output().unwrap()
}

#[test]
fn root_a_repair_that_was_killed_leaves_nothing_when_it_is_done_again() {
    in_private_host(|| {
        let cocoon = Cocoon::new();
        let sysctl = Path::new("/etc/sysctl.d");
        let mut files = vec![(cocoon.root.path().join("net.d"), "10-cocoon.conflist")];
        if sysctl.is_dir() {
            hide("/etc/sysctl.d").unwrap();
            files.push((sysctl.to_owned(), "90-cocoon.conf"));
        }
        for (folder, file) in files {
            let _ = fs::remove_file(folder.join(file));
            fs::write(IP_FORWARD, "0").unwrap();
            let killed = repair(&cocoon, "doctor: file written under another name");
            assert_eq!(killed.status.signal(), Some(9), "{}", stderr(&killed));
            let unfinished = left::names(&folder);
            assert!(
                !unfinished.is_empty() && !unfinished.contains(file),
                "{unfinished:?}"
            );
            let done = repair(&cocoon, "none");
            let names = left::names(&folder);
            assert_eq!(names, [file.to_owned()].into(), "{}", stderr(&done));
        }
    });
}
