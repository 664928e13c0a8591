//! Disks as installers make them: by sfdisk, mke2fs and their like.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::rc::Rc;

use tempfile::TempDir;

use crate::disk::{RawDisk, ReadAt};

/// Bytes of a sector in what sfdisk is told.
pub(super) const SECTOR: u64 = 512;

/// UUIDs of file systems.
pub(super) const ROOT: &str = "11111111-2222-3333-4444-555555555555";
pub(super) const BOOT: &str = "44444444-2222-3333-4444-555555555555";

/// Where the program `name` is; nothing, and a line that says so, if it is not installed.
fn program(name: &str) -> Option<String> {
    let folders = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    let paths = folders.map(|folder| format!("{folder}/{name}"));
    let found = paths.into_iter().find(|path| Path::new(path).exists());
    if found.is_none() {
        println!("SKIPPED: {name} is not installed");
    }
    found
}

/// Whether disks can be made here.
pub(super) fn can_make_disks() -> bool {
    ["sfdisk", "mke2fs", "debugfs"]
        .iter()
        .all(|name| program(name).is_some())
}

/// What the program says; nothing if it is not installed. It must do what it is told.
pub(super) fn run(name: &str, arguments: &[&str], input: &str) -> Option<Output> {
    let mut child = Command::new(program(name)?)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {arguments:?}: {errors}");
    Some(output)
}

/// Bytes that differ from their neighbours, and are the same each time.
pub(super) fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut state = u32::from(seed) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

/// GRUB's environment block, of the size that grub-editenv makes.
pub(super) fn environment(variables: &str) -> String {
    format!(
        "{:#<1024}",
        format!("# GRUB Environment Block\n{variables}\n")
    )
}

/// Files that a file system is made of.
pub(super) struct Tree(TempDir);

impl Tree {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(super) fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let path = self.made(path);
        fs::write(path, content).unwrap();
        self
    }

    pub(super) fn link(self, path: &str, target: &str) -> Self {
        symlink(target, self.made(path)).unwrap();
        self
    }

    /// A file of `size` bytes, of which none are written.
    pub(super) fn hole(self, path: &str, size: u64) -> Self {
        File::create(self.made(path))
            .unwrap()
            .set_len(size)
            .unwrap();
        self
    }

    fn made(&self, path: &str) -> std::path::PathBuf {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    /// What makes a root file system one.
    pub(super) fn root() -> Self {
        let os_release = "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        Self::new()
            .file("usr/lib/os-release", os_release)
            .link("etc/os-release", "../usr/lib/os-release")
    }

    /// Two kernels with their initrds in `folder`, and the links to the newer one that Debian has.
    pub(super) fn kernels(self, folder: &str) -> Self {
        self.file(
            &format!("{folder}vmlinuz-6.1.0-13-amd64"),
            noise(13, 2_500_000),
        )
        .file(
            &format!("{folder}initrd.img-6.1.0-13-amd64"),
            noise(14, 3_000_001),
        )
        .file(&format!("{folder}vmlinuz-6.1.0-9-amd64"), noise(9, 1000))
        .file(
            &format!("{folder}initrd.img-6.1.0-9-amd64"),
            noise(10, 1001),
        )
    }
}

/// A disk in a file.
pub(super) struct Disk {
    pub(super) file: tempfile::NamedTempFile,
}

impl Disk {
    /// Of so many MiB, with nothing on it.
    pub(super) fn new(mib: u64) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(mib << 20).unwrap();
        Self { file }
    }

    pub(super) fn path(&self) -> &str {
        self.file.path().to_str().unwrap()
    }

    /// With the partition table that `script` tells sfdisk.
    pub(super) fn partitioned(mib: u64, script: &str) -> Self {
        let disk = Self::new(mib);
        run(
            "sfdisk",
            &["--no-reread", "--no-tell-kernel", disk.path()],
            script,
        )
        .unwrap();
        disk
    }

    /// With an ext4 of `tree` from this sector on.
    pub(super) fn ext4(
        self,
        sector: u64,
        mib: u64,
        uuid: &str,
        tree: &Tree,
        options: &[&str],
    ) -> Self {
        let offset = format!("offset={}", sector * SECTOR);
        let size = format!("{mib}M");
        let folder = tree.0.path().to_str().unwrap();
        let mut arguments = vec![
            "-q", "-F", "-t", "ext4", "-U", uuid, "-d", folder, "-E", &offset,
        ];
        arguments.extend(options);
        arguments.extend([self.path(), &size]);
        run("mke2fs", &arguments, "").unwrap();
        self
    }

    /// What debugfs says to these commands about the file system that the whole disk is.
    pub(super) fn debugfs(&self, commands: &str) -> String {
        let output = run("debugfs", &["-w", "-f", "-", self.path()], commands).unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(super) fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file
            .as_file()
            .read_exact_at(&mut bytes, offset)
            .unwrap();
        bytes
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) {
        self.file.as_file().write_all_at(bytes, offset).unwrap();
    }

    pub(super) fn open(&self) -> Rc<dyn ReadAt> {
        Rc::new(RawDisk::new(self.file.reopen().unwrap()).unwrap())
    }
}
