//! `grow`: what was added to the VM is taken into use.
//!
//! ```text
//!   /sys/devices/system/cpu/cpu<n>/online        0 ─▶ 1
//!   /sys/devices/system/memory/memory<n>/state   offline ─▶ online
//!   the ext4 of the writable disk                ─▶ as large as the disk (EXT4_IOC_RESIZE_FS)
//! ```
//! The writable disk is mounted by the initramfs, where the booted system cannot see it, below the root's
//! overlay. Mounting it a second time gives the same file system, and the new mount API gives a
//! descriptor of it without a place in the tree.
#![expect(unsafe_code, reason = "the ioctl that resizes ext4")]

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Setter, opcode};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::protocol::{Grown, InUse};

const SYS: &str = "/sys";

/// Serial of the disk that takes all writes (os-image/README.md).
const WRITABLE_DISK: &str = "cocoon-cow";

/// `EXT4_IOC_RESIZE_FS`, `_IOW('f', 16, __u64)` of fs/ext4/ext4.h: a number of blocks.
const EXT4_IOC_RESIZE_FS: rustix::ioctl::Opcode = opcode::write::<u64>(b'f', 16);

/// Bytes of a sector, as `/sys/block/<disk>/size` counts.
const SECTOR: u64 = 512;

pub(super) fn grow() -> Grown {
    let mut grown = Grown::default();
    let sys = Path::new(SYS);
    let cpus = sys.join("devices/system/cpu");
    grown.cpus = switch(&cpus, "cpu", "online", "0", "1", &mut grown.warnings);
    let memory = sys.join("devices/system/memory");
    grown.memory_blocks = switch(
        &memory,
        "memory",
        "state",
        "offline",
        "online",
        &mut grown.warnings,
    );
    let in_use = in_use(sys);
    match writable_disk(sys) {
        None => {}
        Some(disk) => match grow_ext4(sys, &disk) {
            Ok(bytes) => grown.root_bytes = Some(bytes),
            Err(error) => grown
                .warnings
                .push(format!("cannot grow the file system of {disk}: {error}")),
        },
    }
    // Looked at before the file system: what came in between is found by the next request.
    grown.in_use = Some(in_use);
    grown
}

fn in_use(sys: &Path) -> InUse {
    InUse {
        cpus: count(&read(sys, "devices/system/cpu/online")),
        memory_bytes: online_bytes(&sys.join("devices/system/memory")),
        disk_bytes: writable_disk(sys)
            .and_then(|disk| disk_bytes(sys, &disk).ok())
            .unwrap_or_default(),
    }
}

/// What a file below `folder` says; nothing where there is none.
fn read(folder: &Path, file: &str) -> String {
    let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
    text.trim().to_owned()
}

/// Numbers in a list of the kernel's, such as `0-3,7`.
fn count(list: &str) -> u32 {
    let length = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.split(',').filter_map(length).sum()
}

/// Bytes in the blocks of memory that are online.
fn online_bytes(folder: &Path) -> u64 {
    let block = u64::from_str_radix(&read(folder, "block_size_bytes"), 16).unwrap_or_default();
    let is_online = |entry: &fs::DirEntry| read(&entry.path(), "state") == "online";
    let blocks = fs::read_dir(folder).into_iter().flatten().flatten();
    let online = blocks.filter(is_online).count();
    u64::try_from(online)
        .unwrap_or_default()
        .saturating_mul(block)
}

/// Writes `to` into each `<folder>/<prefix><n>/<file>` that holds `from`; returns how many took it.
fn switch(
    folder: &Path,
    prefix: &str,
    file: &str,
    from: &str,
    to: &str,
    warnings: &mut Vec<String>,
) -> u32 {
    let mut count = 0;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(prefix));
        let is_one = number.is_some_and(|number| number.parse::<u32>().is_ok());
        let path = entry.path().join(file);
        if !is_one
            || fs::read_to_string(&path).is_ok_and(|state| state.trim() != from)
            || !path.exists()
        {
            continue;
        }
        match fs::write(&path, to) {
            Ok(()) => count += 1,
            Err(error) => warnings.push(format!("cannot switch on {}: {error}", path.display())),
        }
    }
    count
}

/// The kernel's name of the writable disk, such as `vdb`.
fn writable_disk(sys: &Path) -> Option<String> {
    let disks = fs::read_dir(sys.join("block")).ok()?;
    let mut names = disks
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    names.find(|name| {
        let serial = fs::read_to_string(sys.join("block").join(name).join("serial"));
        serial.is_ok_and(|serial| serial.trim() == WRITABLE_DISK)
    })
}

fn disk_bytes(sys: &Path, disk: &str) -> io::Result<u64> {
    let sectors = fs::read_to_string(sys.join("block").join(disk).join("size"))?;
    let sectors: u64 = sectors.trim().parse().map_err(io::Error::other)?;
    Ok(sectors.saturating_mul(SECTOR))
}

/// Grows the mounted ext4 of a disk to the disk's size, and returns its bytes. It never shrinks.
fn grow_ext4(sys: &Path, disk: &str) -> io::Result<u64> {
    let size = disk_bytes(sys, disk)?;
    let root = open_mounted(&format!("/dev/{disk}"))?;
    let before = rustix::fs::fstatfs(&root)?;
    let block = u64::try_from(before.f_bsize)
        .map_err(io::Error::other)?
        .max(SECTOR);
    let blocks = size / block;
    // ext4 counts its own tables out of statfs; asked for the size that it has it does nothing.
    // SAFETY: the opcode is of an ioctl that reads one u64, which the setter gives.
    let resize = unsafe { Setter::<EXT4_IOC_RESIZE_FS, u64>::new(blocks) };
    // SAFETY: see above; the descriptor is of a file system, and others than ext4 refuse the opcode.
    unsafe { rustix::ioctl::ioctl(&root, resize) }?;
    let after = rustix::fs::fstatfs(&root)?;
    Ok(after.f_blocks.saturating_mul(block))
}

/// The root folder of the ext4 on a device that is mounted somewhere.
fn open_mounted(device: &str) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "source", device)?;
    rustix::mount::fsconfig_create(&context)?;
    let mount = rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&mount, ".", flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn run(program: &str, arguments: &[&str]) -> Option<String> {
        let output = Command::new(program).args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    }

    #[test]
    fn only_what_is_off_is_switched_on() {
        let sys = tempfile::tempdir().unwrap();
        for (name, state) in [
            ("cpu0", "1"),
            ("cpu1", "0"),
            ("cpu2", "0\n"),
            ("cpufreq", "0"),
            ("cpuidle", "0"),
        ] {
            fs::create_dir(sys.path().join(name)).unwrap();
            fs::write(sys.path().join(name).join("online"), state).unwrap();
        }
        fs::create_dir(sys.path().join("cpu3")).unwrap();
        let mut warnings = Vec::new();
        assert_eq!(
            switch(sys.path(), "cpu", "online", "0", "1", &mut warnings),
            2
        );
        assert_eq!(
            fs::read_to_string(sys.path().join("cpu2/online")).unwrap(),
            "1"
        );
        assert_eq!(
            fs::read_to_string(sys.path().join("cpufreq/online")).unwrap(),
            "0"
        );
        assert!(!sys.path().join("cpu3/online").exists() && warnings.is_empty());
    }

    #[test]
    fn what_is_in_use_is_counted_and_what_is_missing_counts_nothing() {
        for (list, cpus) in [("0", 1), ("0-3", 4), ("0-1,4,6-7", 5), ("", 0), ("3-1", 0)] {
            assert_eq!(count(list), cpus, "{list:?}");
        }
        let sys = tempfile::tempdir().unwrap();
        assert_eq!(in_use(sys.path()), InUse::default());
        let block = |number, state| (format!("devices/system/memory/memory{number}/state"), state);
        let files = [
            ("devices/system/cpu/online".to_owned(), "0-2\n"),
            (
                "devices/system/memory/block_size_bytes".to_owned(),
                "8000000\n",
            ),
            block(0, "online\n"),
            block(32, "online\n"),
            block(33, "offline\n"),
            ("block/vdb/serial".to_owned(), "cocoon-cow\n"),
            ("block/vdb/size".to_owned(), "4194304\n"),
        ];
        for (file, text) in files {
            let path = sys.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let expected = InUse {
            cpus: 3,
            memory_bytes: 256 << 20,
            disk_bytes: 2 << 30,
        };
        assert_eq!(in_use(sys.path()), expected);
    }

    #[test]
    fn root_a_mounted_ext4_grows_to_the_size_of_its_disk() {
        let folder = tempfile::tempdir().unwrap();
        let (image, mount) = (folder.path().join("image"), folder.path().join("mount"));
        let (image, mount) = (image.to_str().unwrap(), mount.to_str().unwrap());
        fs::create_dir(mount).unwrap();
        fs::File::create(image).unwrap().set_len(256 << 20).unwrap();
        let formatted = run("mkfs.ext4", &["-q", "-F", image, "64M"]);
        let Some(device) = formatted.and_then(|_| run("losetup", &["-f", "--show", image])) else {
            println!("SKIPPED: there is no loop device, or no mkfs.ext4");
            return;
        };
        let disk = device.trim_start_matches("/dev/");
        let mounted = run("mount", &["-o", "noatime", &device, mount]);
        let grown = mounted.as_ref().map(|_| grow_ext4(Path::new(SYS), disk));
        let again = mounted.as_ref().map(|_| grow_ext4(Path::new(SYS), disk));
        let seen = mounted.as_ref().map(|_| rustix::fs::statfs(mount).unwrap());
        run("umount", &[mount]);
        run("losetup", &["-d", &device]);
        let Some(seen) = seen else {
            println!("SKIPPED: nothing can be mounted here");
            return;
        };
        let bytes = match grown.unwrap() {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                println!("SKIPPED: this root may not resize file systems (CAP_SYS_RESOURCE)");
                return;
            }
            grown => grown.unwrap(),
        };
        assert!(bytes > 200 << 20, "{bytes}");
        assert_eq!(again.unwrap().unwrap(), bytes);
        assert_eq!(seen.f_blocks * u64::try_from(seen.f_bsize).unwrap(), bytes);
    }
}
