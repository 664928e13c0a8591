//! Where VMs are kept: folders, room, shared blocks; and the files and programs that are needed.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Access, access, statvfs};

use super::Finding;
use crate::config::Config;
use crate::sys::reflink;
use crate::units::ByteSize;

/// With less than this, not even one image of an ordinary Linux fits.
const LITTLE: ByteSize = ByteSize::from_gib(1);

/// With less than this, a few images and one VM with the usual 10 GiB may fill the disk.
const SCARCE: ByteSize = ByteSize::from_gib(10);

/// Every check of this file.
pub(super) fn check(config: &Config) -> Vec<Finding> {
    let folders = [&config.root_dir, &config.run_dir, &config.log_dir];
    let states = folders.map(|folder| (folder.clone(), Folder::of(folder)));
    let (root, run) = (existing(&config.root_dir), existing(&config.run_dir));
    let free = [&root, &run]
        .map(|folder| free_in(folder))
        .into_iter()
        .flatten();
    vec![
        usable(&states),
        room(free.min()),
        shared_blocks(&reflink::shares(&root, &run)),
        formatter(&run_mkfs()),
        firmware(
            &config.firmware,
            config.firmware.metadata().ok().map(|file| file.len()),
        ),
    ]
}

/// What there is in a folder's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Folder {
    Usable,
    Missing,
    Other,
    Unwritable,
}

impl Folder {
    fn of(path: &Path) -> Self {
        match path.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::Missing,
            Err(_) => Self::Unwritable,
            Ok(file) if !file.is_dir() => Self::Other,
            Ok(_) if access(path, Access::WRITE_OK | Access::EXEC_OK).is_ok() => Self::Usable,
            Ok(_) => Self::Unwritable,
        }
    }
}

/// The folder itself or, where it does not exist, the nearest above it that does.
fn existing(folder: &Path) -> PathBuf {
    let found = folder.ancestors().find(|folder| folder.is_dir());
    found.unwrap_or(Path::new("/")).to_owned()
}

fn free_in(folder: &Path) -> Option<ByteSize> {
    let found = statvfs(folder).ok()?;
    Some(ByteSize::from_bytes(
        found.f_bavail.saturating_mul(found.f_frsize),
    ))
}

fn usable(states: &[(PathBuf, Folder)]) -> Finding {
    let name = "folders";
    let with = |wanted: Folder| {
        let found = states.iter().filter(|(_, state)| *state == wanted);
        let paths: Vec<_> = found.map(|(path, _)| path.display().to_string()).collect();
        (!paths.is_empty()).then(|| paths.join(", "))
    };
    if let Some(paths) = with(Folder::Other) {
        return Finding::fail(
            name,
            format!("no folder: {paths}"),
            "move it out of the way, or choose other folders: --root-dir, --run-dir, --log-dir",
        );
    }
    if let Some(paths) = with(Folder::Unwritable) {
        return Finding::fail(
            name,
            format!("cannot be written: {paths}"),
            "run cocoon as root, or choose other folders: --root-dir, --run-dir, --log-dir",
        );
    }
    match with(Folder::Missing) {
        Some(paths) => Finding::warn(
            name,
            format!("not there yet: {paths}"),
            "cocoon doctor --fix; or nothing: the first command that needs them makes them",
        ),
        None => Finding::pass(name, "all are there"),
    }
}

fn room(free: Option<ByteSize>) -> Finding {
    let name = "disk-space";
    let fix = "free some space, for example by cocoon gc, or choose another --root-dir";
    match free {
        None => Finding::warn(name, "the file system does not say", fix),
        Some(free) if free < LITTLE => Finding::fail(name, format!("only {free} are free"), fix),
        Some(free) if free < SCARCE => Finding::warn(name, format!("only {free} are free"), fix),
        Some(free) => Finding::pass(name, format!("{free} are free")),
    }
}

fn shared_blocks(probed: &io::Result<bool>) -> Finding {
    let name = "reflink";
    let fix = "put --root-dir and --run-dir on one XFS, btrfs or bcachefs";
    match probed {
        Ok(true) => Finding::pass(name, "disks of snapshots and clones share their blocks"),
        Ok(false) => Finding::warn(
            name,
            "the file system shares no blocks: each snapshot and clone copies the VM's disk",
            fix,
        ),
        Err(error) => Finding::warn(name, format!("could not be tried: {error}"), fix),
    }
}

fn run_mkfs() -> io::Result<()> {
    let mut command = Command::new("mkfs.ext4");
    let quiet = command.arg("-V").stdin(Stdio::null());
    quiet.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    Ok(())
}

fn formatter(ran: &io::Result<()>) -> Finding {
    let name = "mkfs-ext4";
    match ran {
        Ok(()) => Finding::pass(name, "it formats the disks of VMs"),
        Err(error) => Finding::fail(
            name,
            format!("cannot run it ({error}): no VM can have a disk of its own"),
            "apt-get install e2fsprogs, and have its folder (/usr/sbin) in PATH",
        ),
    }
}

fn firmware(path: &Path, length: Option<u64>) -> Finding {
    let name = "firmware";
    match length {
        Some(length) if length > 0 => Finding::pass(name, path.display().to_string()),
        _ => Finding::warn(
            name,
            format!(
                "{} is not there; only cloud images need it, OCI images do not",
                path.display()
            ),
            "cocoon doctor --upgrade, or name yours by firmware in the config file",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Fail, Pass, Warn};
    use super::*;

    #[test]
    fn the_worst_folder_decides_and_is_named() {
        use Folder::{Missing, Other, Unwritable, Usable};
        for (states, expected, named) in [
            ([Usable, Usable], Pass, ""),
            ([Usable, Missing], Warn, "/1"),
            ([Missing, Unwritable], Fail, "/1"),
            ([Other, Unwritable], Fail, "/0"),
        ] {
            let states: Vec<_> = (0..)
                .map(|n| PathBuf::from(format!("/{n}")))
                .zip(states)
                .collect();
            let found = usable(&states);
            assert_eq!(found.verdict, expected, "{found:?}");
            assert!(found.says.contains(named), "{found:?}");
        }
    }

    #[test]
    fn a_folder_a_file_and_nothing_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert_eq!(Folder::of(dir.path()), Folder::Usable);
        assert_eq!(Folder::of(&file), Folder::Other);
        assert_eq!(Folder::of(&dir.path().join("none")), Folder::Missing);
        assert_eq!(existing(&dir.path().join("a/b/c")), dir.path());
        assert!(free_in(dir.path()).is_some());
    }

    #[test]
    fn a_full_disk_fails_and_a_small_one_is_warned_of() {
        for (free, expected) in [
            (None, Warn),
            (Some(ByteSize::from_mib(1023)), Fail),
            (Some(ByteSize::from_gib(1)), Warn),
            (Some(ByteSize::from_gib(10)), Pass),
        ] {
            assert_eq!(room(free).verdict, expected, "{free:?}");
        }
    }

    #[test]
    fn vms_run_without_shared_blocks_and_firmware_but_not_without_mkfs() {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let path = Path::new("/f");
        for (found, expected) in [
            (shared_blocks(&Ok(true)), Pass),
            (shared_blocks(&Ok(false)), Warn),
            (shared_blocks(&Err(missing())), Warn),
            (formatter(&Ok(())), Pass),
            (formatter(&Err(missing())), Fail),
            (firmware(path, Some(4 << 20)), Pass),
            (firmware(path, Some(0)), Warn),
            (firmware(path, None), Warn),
        ] {
            assert_eq!(found.verdict, expected, "{found:?}");
        }
    }
}
