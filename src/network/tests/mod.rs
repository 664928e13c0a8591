//! The whole network, with Debian's CNI plugins and the kernel's devices, in a private host: a
//! thread with its own network, mounts and address leases.

mod failures;
mod frames;
mod life;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::sys::fixture::write_script;
use crate::sys::netns::testing::in_private_host;
use crate::units::VmId;

/// Where Debian's containernetworking-plugins are.
const REAL_PLUGINS: &str = "/usr/lib/cni";

/// A host for one test.
struct Host {
    dir: tempfile::TempDir,
    plugins: Plugins,
}

/// Runs `test` in a private host, or says why not.
fn on_a_host(test: impl FnOnce(&Host) + Send) {
    if !Path::new(REAL_PLUGINS).join("bridge").exists() {
        println!("SKIPPED: no CNI plugins in {REAL_PLUGINS}");
        return;
    }
    in_private_host(|| test(&Host::new()));
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        for plugin in fs::read_dir(REAL_PLUGINS).unwrap() {
            let plugin = plugin.unwrap();
            symlink(plugin.path(), bin.join(plugin.file_name())).unwrap();
        }
        let plugins = Plugins {
            bin_dir: bin,
            timeout: Duration::from_secs(60),
        };
        Self { dir, plugins }
    }

    /// A plugin that is the shell script `body`. Each run is first noted in [`Host::calls`].
    fn fake(&self, name: &str, body: &str) {
        let log = self.dir.path().join("calls");
        let path = self.plugins.bin_dir.join(name);
        let note =
            format!(r#"echo "{name} $CNI_COMMAND $CNI_IFNAME [$CNI_NETNS] [$CNI_ARGS]" >> "#);
        let text = format!("#!/bin/sh\n{note}{}\n{body}\n", log.display());
        write_script(&path, &text);
    }

    /// What the fake plugins were asked, in order.
    fn calls(&self) -> Vec<String> {
        let log = fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    fn leases_dir(&self) -> PathBuf {
        self.dir.path().join("leases")
    }

    /// The addresses that host-local has given away.
    fn leases(&self) -> Vec<String> {
        let Ok(networks) = fs::read_dir(self.leases_dir()) else {
            return Vec::new();
        };
        let files = networks.flat_map(|n| fs::read_dir(n.unwrap().path()).unwrap());
        let mut names: Vec<_> = files
            .map(|f| f.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("10."))
            .collect();
        names.sort();
        names
    }

    /// The bridge plugin with leases of this host.
    fn bridge(&self) -> Value {
        json!({
            "type": "bridge", "bridge": "cni-test", "isGateway": true, "mtu": 1450,
            "ipam": {
                "type": "host-local", "dataDir": self.leases_dir(),
                "ranges": [[{"subnet": "10.77.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        })
    }

    fn setup(&self, planned: &NetworkRecord) -> Result<NetworkRecord, SetupError> {
        setup(&self.plugins, planned, &mut |_| Ok(()))
    }

    /// Asserts that nothing of the VM is left: no namespace, no lease, no port of the bridge.
    fn assert_clean(&self, planned: &NetworkRecord) {
        assert!(!planned.netns.exists(), "{}", planned.netns.display());
        assert_eq!(self.leases(), [""; 0], "leases");
        assert_eq!(ports(), 0, "ports of the bridge");
    }
}

/// A list of `plugins` in the usual version.
fn list(plugins: Value) -> Conflist {
    list_of("1.0.0", plugins)
}

fn list_of(version: &str, plugins: Value) -> Conflist {
    let list = json!({"cniVersion": version, "name": "test", "plugins": plugins});
    Conflist::parse(&list.to_string(), Path::new("test.conflist")).unwrap()
}

/// A plan for a VM that no other test has.
fn planned(list: &Conflist, nics: u16, queue_pairs: u16) -> NetworkRecord {
    static NEXT: AtomicU64 = AtomicU64::new(0xc0c0_0000_0000_0000);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let vm: VmId = format!("{id:016x}").parse().unwrap();
    plan(vm, list, nics, queue_pairs)
}

/// What `program` prints; panics where it fails.
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// What `ip` (or `tc`) prints in the namespace of `record`.
fn inside(record: &NetworkRecord, program: &str, args: &[&str]) -> String {
    let name = record.netns.file_name().unwrap().to_str().unwrap();
    run(program, &[&["-n", name], args].concat())
}

/// Ports that the bridge of the tests has.
fn ports() -> usize {
    run("ip", &["-o", "link", "show"])
        .lines()
        .filter(|line| line.contains("master cni-test"))
        .count()
}
