//! What is in a file: disks of real tools, packed by real tools, and what is none.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::*;

/// What a tool of the system makes; none, and a line that says so, where it is not installed.
fn made_by(command: &mut Command) -> Option<Vec<u8>> {
    let Ok(done) = command.output() else {
        println!("SKIPPED: {command:?} is not installed");
        return None;
    };
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {told}");
    Some(done.stdout)
}

fn packed(program: &str, path: &Path) -> Option<PathBuf> {
    let to = path.with_extension(program);
    let out = made_by(
        Command::new(program)
            .arg("-c")
            .arg(path)
            .stdin(Stdio::null()),
    )?;
    fs::write(&to, out).unwrap();
    Some(to)
}

fn import_file(host: &Host, path: &Path) -> Result<ReadyDisk, CloudError> {
    let imported = import(
        &path.display(),
        File::open(path).unwrap(),
        None,
        &options(),
        &host.store,
        &Silent,
    );
    host.assert_nothing_staged();
    imported
}

fn import_bytes(content: &[u8], options: &CloudOptions) -> Result<ReadyDisk, CloudError> {
    let host = Host::new();
    let imported = import(&"it", content, None, options, &host.store, &Silent);
    host.assert_nothing_staged();
    if imported.is_err() {
        host.assert_nothing_published();
    }
    imported
}

#[test]
fn the_images_of_these_tests_are_what_qemu_takes_for_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    fs::write(&path, qcow2(1, 9)).unwrap();
    made_by(Command::new("qemu-img").arg("check").arg(&path));
}

#[test]
fn disks_of_qemu_packed_by_real_tools_become_the_same_disk() {
    let dir = tempfile::tempdir().unwrap();
    let raw_disk = dir.path().join("disk.raw");
    let mut disk = raw(20_000);
    disk[3_000_000..3_300_000].copy_from_slice(&noise(1, 300_000));
    fs::write(&raw_disk, &disk).unwrap();
    let mut sources = vec![raw_disk.clone()];
    for (name, more) in [
        ("v3.qcow2", &["-o", "compat=1.1"][..]),
        ("v2.qcow2", &["-o", "compat=0.10"]),
        ("packed.qcow2", &["-c"]),
    ] {
        let path = dir.path().join(name);
        let mut convert = Command::new("qemu-img");
        convert
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .args(more);
        if made_by(convert.arg(&raw_disk).arg(&path)).is_none() {
            return;
        }
        sources.push(path);
    }
    let host = Host::new();
    for source in sources {
        let mut ways = vec![source.clone()];
        for program in ["gzip", "xz", "zstd"] {
            ways.extend(packed(program, &source));
        }
        // Two wrappings are one too few to be refused.
        let twice = ways.last().and_then(|once| packed("gzip", once));
        ways.extend(twice);
        for path in ways {
            let disk_here = import_file(&host, &path).unwrap();
            assert_eq!(disk_here.digest, Digest::of(&fs::read(&path).unwrap()));
            assert_eq!(
                disk_here.virtual_size,
                disk.len() as u64,
                "{}",
                path.display()
            );
            let stored = host.store.disk_path(&disk_here.digest);
            made_by(Command::new("qemu-img").arg("check").arg(&stored));
            let back = dir.path().join("back");
            let mut convert = Command::new("qemu-img");
            convert.args(["convert", "-f", "qcow2", "-O", "raw"]);
            made_by(convert.arg(&stored).arg(&back));
            assert!(fs::read(&back).unwrap() == disk, "{}", path.display());
            let info = made_by(
                Command::new("qemu-img")
                    .args(["info", "--output=json"])
                    .arg(&stored),
            );
            let info: serde_json::Value = serde_json::from_slice(&info.unwrap()).unwrap();
            assert_eq!(info["format-specific"]["data"]["compat"], "1.1");
            assert_eq!(info.get("backing-filename"), None);
        }
    }
}

#[test]
fn what_other_tools_write_is_refused_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("disk.raw");
    fs::write(&from, raw(4096)).unwrap();
    let host = Host::new();
    for (format, more, expected) in [
        (
            "vmdk",
            "subformat=monolithicSparse",
            "a disk of VMware (VMDK)",
        ),
        ("vpc", "subformat=dynamic", "a disk of Virtual PC (VHD)"),
        ("vpc", "subformat=fixed", "a disk of Virtual PC (VHD)"),
        ("vhdx", "subformat=dynamic", "a disk of Hyper-V (VHDX)"),
        ("vdi", "static=off", "a disk of VirtualBox (VDI)"),
        ("qed", "cluster_size=65536", "a QED disk"),
    ] {
        let path = dir.path().join("other");
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", format, "-o", more]);
        if made_by(convert.arg(&from).arg(&path)).is_none() {
            return;
        }
        let told = chain(&import_file(&host, &path).unwrap_err());
        let name = path.display();
        assert_eq!(
            told,
            format!("{name} is {expected}, no disk image that can be used")
        );
    }
    host.assert_nothing_published();
}

#[test]
fn what_is_no_disk_is_told_also_when_it_is_packed() {
    for (content, expected) in [
        (tar_of(&[("boot/vmlinuz", b"x")]), "a tar archive"),
        (b"PK\x03\x04 and so on".to_vec(), "a zip archive"),
        (b"BZh91AY".to_vec(), "compressed by bzip2"),
        (b"<html></html>".to_vec(), "a web page"),
        (noise(1, 100_000), "of no kind that is known"),
        (
            vec![0; 100_000],
            "nothing but zeros as far as one has to look",
        ),
    ] {
        let told = chain(&import_bytes(&content, &options()).unwrap_err());
        assert_eq!(
            told,
            format!("it is {expected}, no disk image that can be used")
        );
        let told = chain(&import_bytes(&gzip(&content), &options()).unwrap_err());
        assert_eq!(
            told,
            format!("it, unpacked, is {expected}, no disk image that can be used")
        );
    }
    let told = chain(&import_bytes(&gzip(b""), &options()).unwrap_err());
    assert_eq!(
        told,
        "it, unpacked, is an empty file, no disk image that can be used"
    );
}

#[test]
fn what_is_packed_thrice_or_too_large_or_damaged_is_refused() {
    let once = gzip(&raw(4096));
    let thrice = gzip(&gzip(&once));
    let told = chain(&import_bytes(&thrice, &options()).unwrap_err());
    assert_eq!(
        told,
        "it is packed once more in itself (gzip), and twice is the most that is unpacked"
    );
    let small = CloudOptions {
        limit: 2 << 20,
        ..options()
    };
    let bomb = gzip(&raw((2 << 20) / 512 + 1));
    let told = chain(&import_bytes(&bomb, &small).unwrap_err());
    assert_eq!(told, "it unpacks to more than 2MiB");
    let told = chain(&import_bytes(&once[..once.len() - 5], &options()).unwrap_err());
    assert!(
        told.starts_with("cannot unpack it: it is damaged, not whole, or needs more than 128 MiB"),
        "{told}"
    );
    let mut cut = raw(4096);
    cut.pop();
    let told = chain(&import_bytes(&cut, &options()).unwrap_err());
    assert_eq!(
        told,
        "it is a raw disk of 2097151 bytes, which is no multiple of its sectors of 512: it is damaged or not whole"
    );
}

#[test]
fn a_header_that_names_another_file_is_refused_and_that_file_not_opened() {
    let mut content = qcow2(1, 3);
    content[8..16].copy_from_slice(&512u64.to_be_bytes());
    content[16..20].copy_from_slice(&11u32.to_be_bytes());
    content[512..523].copy_from_slice(b"/etc/shadow");
    for content in [content.clone(), gzip(&content)] {
        let told = chain(&import_bytes(&content, &options()).unwrap_err());
        assert!(
            told.starts_with("cannot use the qcow2 image it: "),
            "{told}"
        );
    }
}

#[test]
fn an_import_that_is_cancelled_or_cannot_be_read_says_so() {
    /// Cancels, and then fails as what waits for a terminal does.
    struct Ending<'a>(&'a CloudOptions, bool);
    impl Read for Ending<'_> {
        fn read(&mut self, _to: &mut [u8]) -> std::io::Result<usize> {
            if self.1 {
                self.0.cancel.cancel();
            }
            Err(std::io::Error::other("the wire is cut"))
        }
    }
    let host = Host::new();
    for (cancels, expected) in [
        (false, "cannot read it: the wire is cut"),
        (true, "cancelled before it was complete"),
    ] {
        let options = options();
        let input = Ending(&options, cancels);
        let error = import(&"it", input, None, &options, &host.store, &Silent).unwrap_err();
        assert_eq!(chain(&error), expected);
        assert_eq!(error.is_cancelled(), cancels);
        host.assert_nothing_staged();
    }
}
