//! Real trees, and the kernel as judge.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::Compression;
use super::support::*;

/// A tar of what this machine runs on, in the format that keeps attributes.
fn real_tar() -> Option<Vec<u8>> {
    let mut tar = Command::new("tar");
    tar.args([
        "--xattrs",
        "--xattrs-include=*",
        "--format=pax",
        "--sort=name",
        "-S",
    ]);
    tar.args([
        "--ignore-failed-read",
        "-C",
        "/",
        "-cf",
        "-",
        "etc",
        "usr/sbin",
        "usr/lib/systemd",
    ]);
    match tar.output() {
        Ok(output) if output.stdout.len() > 5_000_000 => Some(output.stdout),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            eprintln!("SKIPPED: tar of the system is too small: {said}");
            None
        }
        Err(error) => {
            eprintln!("SKIPPED: tar does not run ({error})");
            None
        }
    }
}

#[test]
fn a_real_tree_reads_back_as_the_tar_crate_reads_it() {
    let Some(tar) = real_tar() else { return };
    let tree = make(&tar, Compression::Lz4).tree();
    let mut archive = tar::Archive::new(&tar[..]);
    let mut count = 0;
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path_bytes().into_owned();
        let path = path.strip_suffix(b"/").unwrap_or(&path).to_vec();
        if path.starts_with(b"GNUSparseFile")
            || entry
                .path_bytes()
                .windows(13)
                .any(|w| w == b"GNUSparseFile")
        {
            continue; // The crate does not know this format.
        }
        let seen = &tree[&path];
        let mut data = Vec::new();
        let kind = match entry.header().entry_type().as_byte() {
            b'0' => {
                entry.read_to_end(&mut data).unwrap();
                '-'
            }
            b'1' => continue,
            b'2' => {
                data = entry.link_name_bytes().unwrap().into_owned();
                'l'
            }
            b'5' => 'd',
            other => panic!("{other}"),
        };
        assert_eq!(seen.kind, kind, "{}", path.escape_ascii());
        assert!(seen.data == data, "{}", path.escape_ascii());
        assert_eq!(u64::from(seen.uid), entry.header().uid().unwrap());
        assert_eq!(seen.permissions, entry.header().mode().unwrap());
        count += 1;
    }
    assert!(count > 500, "{count} entries compared");
}

/// A mounted image or nothing; unmounts when it goes.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: PathBuf) -> Result<Self, String> {
        fs::create_dir(&at).unwrap();
        let output = Command::new("mount")
            .args(["-t", "erofs", "-o", "loop,ro"])
            .args([image, &at])
            .output();
        match output {
            Ok(output) if output.status.success() => Ok(Self(at)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Why this machine's kernel cannot judge, if it cannot: told by an image of `mkfs.erofs`, so that
/// a broken image of ours is never taken for a missing kernel feature.
fn kernel_cannot_judge(dir: &Path) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    let (image, tree) = (dir.join("reference"), dir.join("reference-tree"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("a"), text(50_000, 1)).unwrap();
    match Command::new("mkfs.erofs")
        .arg("-zlz4")
        .args([&image, &tree])
        .output()
    {
        Ok(output) if output.status.success() => {}
        _ => return Some("mkfs.erofs does not run; install erofs-utils".to_owned()),
    }
    Mounted::new(&image, dir.join("reference-mount")).err()
}

/// All of a folder by path, as the kernel shows it.
fn read_folder(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let mut seen = Seen {
            permissions: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: (
                metadata.mtime(),
                u32::try_from(metadata.mtime_nsec()).unwrap(),
            ),
            xattrs: read_xattrs(&path),
            ..Seen::default()
        };
        let kind = metadata.mode() & 0o170_000;
        (seen.kind, seen.data) = match kind {
            0o040_000 => {
                let children = fs::read_dir(&path).unwrap();
                todo.extend(children.map(|child| child.unwrap().path()));
                ('d', Vec::new())
            }
            0o100_000 => ('-', fs::read(&path).unwrap()),
            0o120_000 => (
                'l',
                fs::read_link(&path)
                    .unwrap()
                    .as_os_str()
                    .as_bytes()
                    .to_vec(),
            ),
            0o020_000 => ('c', Vec::new()),
            0o060_000 => ('b', Vec::new()),
            _ => ('p', Vec::new()),
        };
        if seen.kind != 'd' {
            // What a directory counts differs between file systems.
            seen.links = u32::try_from(metadata.nlink()).unwrap();
        }
        if matches!(seen.kind, 'c' | 'b') {
            let device = metadata.rdev();
            seen.device = (rustix::fs::major(device), rustix::fs::minor(device));
        }
        let relative = path.strip_prefix(root).unwrap();
        all.insert(relative.as_os_str().as_bytes().to_vec(), seen);
    }
    all
}

fn read_xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65_536];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65_536];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(len);
            (name.to_vec(), value)
        })
        .collect()
}

#[test]
fn root_the_kernel_sees_a_real_tree_as_tar_unpacks_it() {
    let scratch = tempfile::tempdir().unwrap();
    if let Some(reason) = kernel_cannot_judge(scratch.path()) {
        eprintln!("SKIPPED: this kernel cannot judge EROFS images: {reason}");
        return;
    }
    let Some(tar) = real_tar() else { return };
    let (file, unpacked) = (scratch.path().join("tar"), scratch.path().join("unpacked"));
    fs::write(&file, &tar).unwrap();
    fs::create_dir(&unpacked).unwrap();
    let status = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"])
        .args([&file, Path::new("-C"), &unpacked])
        .status();
    assert!(status.unwrap().success());
    let mut expected = read_folder(&unpacked);
    for path in [&b""[..], b"usr", b"usr/lib"] {
        // Not in the archive.
        expected.remove(path);
    }
    for compression in BOTH {
        let made = make(&tar, compression);
        let mounted = Mounted::new(&made.blob(), made.dir.path().join("mount")).unwrap();
        let tree = read_folder(&mounted.0);
        for (path, seen) in &expected {
            assert!(tree.get(path) == Some(seen), "{}", path.escape_ascii());
        }
        assert_eq!(tree.len(), expected.len() + 3);
    }
}

#[test]
fn root_the_kernel_sees_every_kind_of_entry() {
    let scratch = tempfile::tempdir().unwrap();
    if let Some(reason) = kernel_cannot_judge(scratch.path()) {
        eprintln!("SKIPPED: this kernel cannot judge EROFS images: {reason}");
        return;
    }
    let mut disk = Fields::of(b'4');
    disk.device = (259, 70_000);
    let big = noise(60_000, 4);
    let mut tar = TarBuilder::new()
        .entry(b"disk", &disk, b"")
        .entry(b"pipe", &Fields::of(b'6'), b"")
        .file(".wh.gone", b"")
        .file("opaque/.wh..wh..opq", b"")
        .link(b'2', "soft", &"t".repeat(4095))
        .pax(&[(b"SCHILY.xattr.user.big", &big), (b"mtime", b"-100.25")])
        .file("big-xattr", &text(300_000, 9))
        .pax(&[
            (b"GNU.sparse.size", b"5000000"),
            (b"GNU.sparse.map", b"4097,3,4999999,1"),
        ])
        .file("sparse", b"abcd")
        .link(b'1', "hard", "big-xattr");
    for i in 0..11_000 {
        tar = tar.file(
            &format!("many/{i}-{}", "y".repeat(i % 230)),
            &noise(i % 9_000 / 30, 1),
        );
    }
    for size in [4032, 4033, 65_536, 69_631, 69_632, 135_168, 1_000_000] {
        tar = tar.file(&format!("text{size}"), &text(size, 1));
        tar = tar.file(
            &format!("mixed{size}"),
            &[noise(65_536, 1), text(size, 2), vec![0; size]].concat(),
        );
    }
    let tar = tar.end();
    for compression in BOTH {
        let made = make(&tar, compression);
        let mounted = Mounted::new(&made.blob(), made.dir.path().join("mount")).unwrap();
        let (kernel, mut crate_says) = (read_folder(&mounted.0), made.tree());
        for seen in crate_says.values_mut().filter(|seen| seen.kind == 'd') {
            seen.links = 0;
        }
        assert_eq!(kernel.len(), crate_says.len());
        for (path, seen) in &crate_says {
            assert!(kernel[path] == *seen, "{}", path.escape_ascii());
        }
        assert_eq!(kernel[&b"gone"[..]].device, (0, 0));
        assert_eq!(kernel[&b"sparse"[..]].data[4_999_999], b'd');
        // Lookups by name, which readdir does not exercise.
        for path in kernel.keys() {
            let found = fs::symlink_metadata(mounted.0.join(std::ffi::OsStr::from_bytes(path)));
            assert!(found.is_ok(), "{}", path.escape_ascii());
        }
    }
}

#[test]
fn root_overlayfs_honours_whiteouts_and_opaque_directories() {
    let scratch = tempfile::tempdir().unwrap();
    if let Some(reason) = kernel_cannot_judge(scratch.path()) {
        eprintln!("SKIPPED: this kernel cannot judge EROFS images: {reason}");
        return;
    }
    let lower = TarBuilder::new()
        .file("etc/keep", b"1")
        .file("etc/gone", b"1")
        .file("var/old", b"1")
        .file("srv/old", b"1")
        .end();
    let upper = TarBuilder::new()
        .file("etc/.wh.gone", b"")
        .file("var/.wh..wh..opq", b"")
        .file("var/new", b"2")
        .file(".wh.srv", b"")
        .end();
    let (lower, upper) = (
        make(&lower, Compression::Lz4),
        make(&upper, Compression::Lz4),
    );
    let lower = Mounted::new(&lower.blob(), lower.dir.path().join("mount")).unwrap();
    let upper = Mounted::new(&upper.blob(), upper.dir.path().join("mount")).unwrap();
    let at = scratch.path().join("merged");
    fs::create_dir(&at).unwrap();
    let layers = format!("lowerdir={}:{}", upper.0.display(), lower.0.display());
    let output = Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &layers])
        .arg(&at)
        .output()
        .unwrap();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        eprintln!("SKIPPED: this kernel mounts no overlay: {said}");
        return;
    }
    let merged = Mounted(at);
    let mut paths: Vec<_> = read_folder(&merged.0).into_keys().collect();
    paths.retain(|path| !path.is_empty());
    let shown: Vec<_> = paths
        .iter()
        .map(|path| path.escape_ascii().to_string())
        .collect();
    assert_eq!(shown, ["etc", "etc/keep", "var", "var/new"]);
}
