//! A host of a test's own: a thread with its own network and mounts. What it starts is there, too.

use std::fs;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Where named namespaces stand.
pub(crate) const NETNS: &str = "/var/run/netns";

/// Runs `test` as root of a private host, or says why not.
#[expect(clippy::print_stdout, reason = "it says why a test did not run")]
pub(crate) fn in_private_host(test: impl FnOnce() + Send) {
    let host = || match become_private() {
        Ok(()) => test(),
        Err(error) => println!("SKIPPED: no private network and mount namespaces: {error}"),
    };
    let outcome = std::thread::scope(|scope| scope.spawn(host).join());
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn become_private() -> nix::Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
    // The folder does not exist on a machine that never had a named namespace.
    fs::create_dir_all(NETNS).map_err(|_| nix::Error::EIO)?;
    hide(NETNS)
}

/// Puts an empty folder in the place of `folder`, on this host alone.
pub(crate) fn hide(folder: &str) -> nix::Result<()> {
    let none = None::<&str>;
    mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), none)
}
