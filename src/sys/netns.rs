//! Named network namespaces, as `ip netns` keeps them: a bind mount of the namespace on a file.
//!
//! ```text
//! /var/run/netns            a shared mount, so that the names reach every mount namespace
//! └── <name>                an empty file, on which nsfs's file of the namespace is mounted
//! ```
//!
//! Invariants:
//! - No thread of the caller ever changes its namespace, except by [`enter`]: whatever must happen
//!   in another one happens in a thread of its own, which ends there.
//! - A file under [`DIR`] without a mount on it is what a crash or a reboot left; [`is_netns`] tells.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use rustix::fs::{FlockOperation, flock};

/// Where named network namespaces stand (iproute2's `NETNS_RUN_DIR`).
pub const DIR: &str = "/var/run/netns";

/// The namespace of the thread that opens this file.
const OWN: &str = "/proc/thread-self/ns/net";

/// More mounts on one name than any race of two creators can stack.
const MAX_STACKED_MOUNTS: usize = 8;

/// A step on a network namespace that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct NetnsError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl NetnsError {
    fn new(operation: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self {
            operation,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// Whether the object of the failed step did not exist.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// Makes a new network namespace and names it `path`, a file directly in [`DIR`].
///
/// # Errors
/// The name is taken, or the kernel refuses; then nothing is left.
pub fn create(path: &Path) -> Result<(), NetnsError> {
    prepare_dir()?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(path)
        .map_err(|e| NetnsError::new("create the name of a network namespace", path, e))?;
    let made = in_thread(path, || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        bind(Path::new(OWN), path)
    });
    match made {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            // The first error is the one to tell; a name that stays is found by `is_netns`.
            let _ = fs::remove_file(path);
            Err(NetnsError::new("make a network namespace as", path, error))
        }
        Err(error) => {
            let _ = fs::remove_file(path);
            Err(error)
        }
    }
}

/// Removes the name `path`; the namespace ends with its last process. A missing name is no error.
///
/// # Errors
/// The mount or the file cannot be removed.
pub fn delete(path: &Path) -> Result<(), NetnsError> {
    for _ in 0..MAX_STACKED_MOUNTS {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            // EINVAL: nothing is mounted there.
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => break,
            Err(error) => return Err(NetnsError::new("unmount", path, error)),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(NetnsError::new("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Whether `path` is the name of a live network namespace, and not just a file that one left.
///
/// # Errors
/// The file system cannot say.
pub fn is_netns(path: &Path) -> Result<bool, NetnsError> {
    match statfs(path) {
        Ok(found) => Ok(found.filesystem_type() == NSFS_MAGIC),
        Err(nix::Error::ENOENT) => Ok(false),
        Err(error) => Err(NetnsError::new("look at", path, error)),
    }
}

/// A process whose main thread is in the namespace `path`, if there is one.
///
/// # Errors
/// The namespace or `/proc` cannot be read.
pub fn process_in(path: &Path) -> Result<Option<u32>, NetnsError> {
    let failed = |error| NetnsError::new("look for processes in", path, error);
    let wanted = fs::metadata(path).map_err(failed)?;
    for entry in fs::read_dir("/proc").map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        // A process may end while it is looked at: then it is in no namespace.
        if let Ok(found) = fs::metadata(entry.path().join("ns/net"))
            && (found.dev(), found.ino()) == (wanted.dev(), wanted.ino())
        {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// Runs `work` inside the namespace `path`, in a thread of its own, and returns what it returned.
///
/// # Errors
/// The namespace cannot be entered; `work` has not run.
pub fn run_in<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    in_thread(path, || {
        enter(path)?;
        Ok(work())
    })?
}

/// Runs `work` inside a new namespace, which has no name and ends with it.
///
/// # Errors
/// The kernel gives none; `work` has not run.
pub fn run_in_new<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let own = Path::new(OWN);
    in_thread(own, || {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|error| NetnsError::new("leave the network namespace", own, error))?;
        Ok(work())
    })?
}

/// Moves the calling thread into the namespace `path`, for good. Threads that it starts from now on
/// begin there; those that it has started stay where they are.
///
/// # Errors
/// `path` is not a network namespace, or the caller may not enter it; then nothing has changed.
pub fn enter(path: &Path) -> Result<(), NetnsError> {
    let failed = |error| NetnsError::new("enter the network namespace", path, error);
    let namespace = File::open(path).map_err(failed)?;
    setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|e| failed(e.into()))
}

/// Runs `work` in a thread that ends with it.
fn in_thread<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|e| NetnsError::new("start a thread for", path, e))?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn bind(from: &Path, to: &Path) -> io::Result<()> {
    Ok(mount(
        Some(from),
        to,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?)
}

/// Makes [`DIR`] a shared mount, under the lock that `ip netns add` takes, so that two that begin
/// at once do not both mount it.
fn prepare_dir() -> Result<(), NetnsError> {
    let dir = Path::new(DIR);
    let failed = |error| NetnsError::new("prepare", dir, error);
    fs::create_dir_all(dir).map_err(failed)?;
    let lock = File::open(dir).map_err(failed)?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
    match share(dir) {
        // EINVAL: it is a folder of another mount, not a mount itself.
        Err(nix::Error::EINVAL) => {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(dir), dir, None::<&str>, flags, None::<&str>)
                .and_then(|()| share(dir))
                .map_err(|e| failed(e.into()))
        }
        other => other.map_err(|e| failed(e.into())),
    }
}

fn share(dir: &Path) -> nix::Result<()> {
    let flags = MsFlags::MS_SHARED | MsFlags::MS_REC;
    mount(None::<&str>, dir, None::<&str>, flags, None::<&str>)
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::testing::in_private_host;
    use super::*;

    fn own() -> u64 {
        fs::metadata(OWN).unwrap().ino()
    }

    #[test]
    fn root_a_namespace_is_made_entered_and_deleted_without_moving_the_caller() {
        in_private_host(|| {
            let before = own();
            let path = Path::new(DIR).join("cocoon-test");
            assert!(!is_netns(&path).unwrap());
            create(&path).unwrap();
            assert!(is_netns(&path).unwrap());
            let inside = run_in(&path, own).unwrap();
            assert_ne!(inside, before);
            assert_eq!(inside, fs::metadata(&path).unwrap().ino());
            assert_eq!(own(), before);
            delete(&path).unwrap();
            assert!(!path.exists());
            delete(&path).unwrap();
        });
    }

    #[test]
    fn root_a_taken_name_is_refused_and_the_caller_stays_where_it_was() {
        in_private_host(|| {
            let before = own();
            let path = Path::new(DIR).join("cocoon-test");
            create(&path).unwrap();
            let first = fs::metadata(&path).unwrap().ino();
            let error = create(&path).unwrap_err();
            assert_eq!(error.source.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(own(), before);
            assert_eq!(fs::metadata(&path).unwrap().ino(), first);
        });
    }

    #[test]
    fn root_a_file_that_a_reboot_left_is_no_namespace_and_cannot_be_entered() {
        in_private_host(|| {
            prepare_dir().unwrap();
            let path = Path::new(DIR).join("cocoon-test");
            File::create(&path).unwrap();
            assert!(!is_netns(&path).unwrap());
            let before = own();
            assert!(run_in(&path, || unreachable!("work ran outside")).is_err());
            assert!(enter(&path).is_err());
            assert_eq!(own(), before);
            delete(&path).unwrap();
            assert!(!path.exists());
        });
    }

    #[test]
    fn root_a_process_in_a_namespace_is_found() {
        in_private_host(|| {
            let path = Path::new(DIR).join("cocoon-test");
            create(&path).unwrap();
            assert_eq!(process_in(&path).unwrap(), None);
            let mut child = run_in(&path, || {
                std::process::Command::new("sleep").arg("60").spawn()
            })
            .unwrap()
            .unwrap();
            assert_eq!(process_in(&path).unwrap(), Some(child.id()));
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(process_in(&path).unwrap(), None);
        });
    }

    #[test]
    fn root_creators_at_once_each_get_their_namespace_and_one_mount_of_the_folder() {
        in_private_host(|| {
            thread::scope(|scope| {
                for i in 0..16 {
                    scope.spawn(move || create(&Path::new(DIR).join(format!("n{i}"))).unwrap());
                }
            });
            let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            let on_dir = mounts
                .lines()
                .filter(|line| line.split(' ').nth(4) == Some("/run/netns"));
            // The tmpfs of the test's own host, and nothing on top of it.
            assert_eq!(on_dir.count(), 1);
            for i in 0..16 {
                assert!(is_netns(&Path::new(DIR).join(format!("n{i}"))).unwrap());
            }
        });
    }
}
