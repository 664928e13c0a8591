//! The same with a NIC, by Debian's CNI plugins, in a network and mount namespace of the test's own.

use std::path::{Path, PathBuf};

use super::{Verb, kill_at_every_step, nothing};
use crate::support::counter::{Counter, SHAPE};
use crate::support::left;
use crate::support::network::{PLUGINS, has_plugins, write_conflist};
use crate::support::private::{NETNS, in_private_host};

/// A VM with a NIC, and the address leases of its host.
struct Host {
    counter: Counter,
    leases: PathBuf,
    _dir: tempfile::TempDir,
}

/// Runs `test` on a host of its own: what it starts is there, too. Or says why not.
fn on_a_host(test: impl FnOnce(&Host) + Send) {
    if !has_plugins() {
        return;
    }
    in_private_host(|| {
        if let Some(host) = Host::new() {
            test(&host);
        }
    });
}

impl Host {
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let leases = write_conflist(dir.path(), "test");
        let env = vec![
            ("COCOON_CNI_BIN_DIR", PLUGINS.into()),
            ("COCOON_CNI_CONF_DIR", dir.path().to_owned()),
        ];
        let counter = Counter::run_with(1, env)?;
        Some(Self {
            counter,
            leases,
            _dir: dir,
        })
    }

    /// Asserts that each VM has its namespace and its lease, and nobody else has.
    fn check(&self) {
        let vms = self.counter.ok(&["vm", "list", "-q"]);
        let vms: Vec<_> = vms.lines().collect();
        let mut namespaces: Vec<_> = vms.iter().map(|vm| format!("cocoon-{vm}")).collect();
        namespaces.sort();
        let found: Vec<_> = left::names(Path::new(NETNS)).into_iter().collect();
        assert_eq!(found, namespaces, "namespaces");
        let leases = left::names(&self.leases);
        let leases = leases.iter().filter(|name| name.starts_with("10."));
        assert_eq!(leases.count(), vms.len(), "leases");
    }
}

#[test]
fn root_a_clone_with_a_nic_may_be_killed_at_every_step() {
    on_a_host(|host| {
        let counter = &host.counter;
        counter.ok(&["snapshot", "save", "--name", "moment", "counter"]);
        kill_at_every_step(
            counter,
            &Verb {
                args: &["vm", "clone", "--name", "other", "moment"],
                before: &nothing,
                is_done: &|| {
                    host.check();
                    counter.has("vm", "other")
                },
                done_at: "clone: VM complete",
                after: &|| {
                    counter.runs_and_goes("other");
                    host.check();
                },
            },
        );
    });
}

#[test]
fn root_the_life_of_a_vm_with_a_nic_may_be_killed_at_every_step() {
    on_a_host(|host| {
        let counter = &host.counter;
        let run = [&["vm", "run", "--name", "other", "--nics", "1"], &SHAPE[..]].concat();
        let run = [&run[..], &["counter"]].concat();
        kill_at_every_step(
            counter,
            &Verb {
                args: &run,
                before: &nothing,
                is_done: &|| {
                    host.check();
                    counter.has("vm", "other")
                },
                done_at: "create: VM complete",
                after: &|| {
                    counter.ok(&["vm", "start", "other"]);
                    counter.runs_and_goes("other");
                    host.check();
                },
            },
        );
        kill_at_every_step(
            counter,
            &Verb {
                args: &["vm", "rm", "--force", "other"],
                before: &|| {
                    counter.ok(&run);
                },
                is_done: &|| {
                    let is_gone = !counter.has("vm", "other");
                    host.check();
                    is_gone
                },
                done_at: "rm: recorded as being removed",
                after: &nothing,
            },
        );
    });
}
