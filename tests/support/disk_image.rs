//! A disk on which a system is installed as a distribution installs it: with a partition table, ext4, `/boot`.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::counter::kernel;
use super::registry::Server;
use super::stderr;

/// How to run a VM of it.
pub(crate) const RUN: [&str; 12] = [
    "vm",
    "run",
    "--cpu",
    "1",
    "--memory",
    "64M",
    "--storage",
    "64M",
    "--nics",
    "0",
    "--boot",
    "direct",
];

/// A server of the files in `folder`, and its log.
pub(crate) fn served(folder: &Path) -> (Server, PathBuf) {
    let log = folder.join("server.log");
    let server = Server::start(&log, |address| {
        let mut command = Command::new("python3");
        command.args(["-m", "http.server", "--bind", "127.0.0.1"]);
        command.arg(address.port().to_string()).current_dir(folder);
        command
    });
    (server, log)
}

#[expect(clippy::print_stdout, reason = "it says why a test did not run")]
fn tool(program: &str, args: &[&str], folder: &Path) -> bool {
    // What makes file systems is not in everybody's path.
    let path = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    );
    let mut command = Command::new(program);
    let done = command.args(args).current_dir(folder).env("PATH", path);
    match done.output() {
        Ok(output) => {
            assert!(output.status.success(), "{program}: {}", stderr(&output));
            true
        }
        Err(_) => {
            println!("SKIPPED: there is no {program}");
            false
        }
    }
}

/// A qcow2 image of a disk with a partition table, and on its partition a system whose kernel resets itself
/// after so many ticks.
pub(crate) fn disk_image(folder: &Path, ticks: u32) -> Option<PathBuf> {
    let tree = folder.join("tree");
    for (path, content) in [
        ("etc/os-release", &b"PRETTY_NAME=\"Counter 1\"\n"[..]),
        ("boot/vmlinuz-1", &kernel(ticks)),
        ("boot/initrd.img-1", &[7; 4096]),
    ] {
        let path = tree.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let disk = std::fs::File::create(folder.join("disk.raw")).unwrap();
    disk.set_len(32 << 20).unwrap();
    let made = tool("sfdisk", &["--version"], folder)
        && tool(
            "sh",
            &[
                "-c",
                "echo start=2048,type=L | sfdisk --quiet --label gpt disk.raw",
            ],
            folder,
        )
        && tool(
            "mke2fs",
            &[
                "-q",
                "-t",
                "ext4",
                "-d",
                "tree",
                "-E",
                "offset=1048576",
                "disk.raw",
                "24M",
            ],
            folder,
        )
        && tool(
            "qemu-img",
            &["convert", "-c", "-O", "qcow2", "disk.raw", "disk.qcow2"],
            folder,
        );
    made.then(|| folder.join("disk.qcow2"))
}
