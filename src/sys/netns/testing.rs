//! A host of a test's own: a thread with its own network and mounts, so that the machine on which
//! the tests run keeps its interfaces, its firewall rules and its named namespaces.

use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Runs `test` as root of a private host with an empty [`super::DIR`], or says that it could not.
pub(crate) fn in_private_host(test: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let outcome = scope.spawn(|| {
            if let Err(error) = become_private() {
                println!("SKIPPED: no private network and mount namespaces: {error}");
                return;
            }
            test();
        });
        if let Err(panic) = outcome.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn become_private() -> nix::Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
    // The folder does not exist on a machine that never had a named namespace.
    std::fs::create_dir_all(super::DIR).map_err(|_| nix::Error::EIO)?;
    mount(
        Some("tmpfs"),
        super::DIR,
        Some("tmpfs"),
        MsFlags::empty(),
        none,
    )?;
    Ok(())
}
