//! A CNI network of a test's own, by Debian's plugins.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

/// Where Debian's containernetworking-plugins are.
pub(crate) const PLUGINS: &str = "/usr/lib/cni";

/// Whether they are there; says so where they are not.
#[expect(clippy::print_stdout, reason = "it says why a test did not run")]
pub(crate) fn has_plugins() -> bool {
    let has = Path::new(PLUGINS).join("bridge").exists();
    if !has {
        println!("SKIPPED: no CNI plugins in {PLUGINS}");
    }
    has
}

/// Writes the list of a network `name` into `folder`; returns where its address leases are.
pub(crate) fn write_conflist(folder: &Path, name: &str) -> PathBuf {
    let list = json!({
        "cniVersion": "1.0.0", "name": name,
        "plugins": [{
            "type": "bridge", "bridge": "cni-test", "isGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": folder.join("leases"),
                "ranges": [[{"subnet": "10.78.0.0/16"}]],
            },
        }],
    });
    fs::write(folder.join("test.conflist"), list.to_string()).unwrap();
    folder.join("leases").join(name)
}
