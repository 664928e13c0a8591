//! Imports of what real tools write.

use std::fs;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::tests::*;
use super::*;
use crate::image::fixture::{Host, noise, tar_of};

/// Whether all the tools are there; else it says which is not.
fn has(tools: &[&str]) -> bool {
    for tool in tools {
        let found = Command::new(tool).arg("--version").output();
        if !found.is_ok_and(|done| done.status.success()) {
            println!("SKIPPED: {tool} is not installed");
            return false;
        }
    }
    true
}

fn run(command: &mut Command) {
    let done = command.output().unwrap();
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {told}");
}

/// An image `vm` of two layers in an OCI layout, made by umoci.
fn layout_of_umoci() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    let umoci = || Command::new("umoci");
    run(umoci().args(["init", "--layout"]).arg(&layout));
    let image = format!("{}:vm", layout.display());
    run(umoci().args(["new", "--image", &image]));
    for (number, tar) in [root(1), data(3)].iter().enumerate() {
        let path = dir.path().join(format!("{number}.tar"));
        fs::write(&path, tar).unwrap();
        run(umoci()
            .args(["raw", "add-layer", "--image", &image])
            .arg(path));
    }
    (dir, layout)
}

fn skopeo(from: &str, to: &str) {
    run(Command::new("skopeo").args(["copy", "--insecure-policy", from, to]));
}

/// The file, and what each of these programs makes of it.
fn compressed(path: &Path, programs: &[&str]) -> Vec<PathBuf> {
    let mut all = vec![path.to_owned()];
    for program in programs {
        let packed = path.with_extension(program);
        let made = Command::new(program)
            .arg("-c")
            .stdin(File::open(path).unwrap())
            .stdout(File::create(&packed).unwrap())
            .stderr(Stdio::null())
            .status();
        assert!(made.unwrap().success());
        all.push(packed);
    }
    all
}

fn import_both_ways(path: &Path) -> ReadyImage {
    let from_file = try_import(&Host::new(), Input::at(path)).unwrap();
    let stream = Input::Stream(Box::new(File::open(path).unwrap()));
    let host = Host::new();
    let from_stream = try_import(&host, stream).unwrap();
    assert_eq!(from_file, from_stream, "{}", path.display());
    let kernel = fs::read(host.store.kernel_path(&from_stream.kernel_layer)).unwrap();
    assert_eq!(kernel, noise(1, 70_000));
    from_file
}

#[test]
fn what_skopeo_and_umoci_write_is_one_and_the_same_image() {
    if !has(&["skopeo", "umoci", "gzip", "zstd"]) {
        return;
    }
    let (dir, layout) = layout_of_umoci();
    let at = |name: &str| dir.path().join(name);
    let oci = format!("oci:{}:vm", layout.display());
    let host = Host::new();
    let image = try_import(&host, Input::at(&layout)).unwrap();
    let diff_ids: Vec<_> = image.layers.iter().map(|layer| layer.diff_id).collect();
    assert_eq!(diff_ids, [Digest::of(&root(1)), Digest::of(&data(3))]);
    let digests =
        |image: &ReadyImage| -> Vec<_> { image.layers.iter().map(|layer| layer.digest).collect() };

    skopeo(&oci, &format!("oci-archive:{}:vm", at("oci.tar").display()));
    for path in compressed(&at("oci.tar"), &["gzip", "zstd"]) {
        let archived = import_both_ways(&path);
        assert_eq!(archived.manifest_digest, image.manifest_digest);
        assert_eq!(digests(&archived), digests(&image));
    }

    skopeo(
        &oci,
        &format!("docker-archive:{}:vm:1", at("docker.tar").display()),
    );
    for path in compressed(&at("docker.tar"), &["gzip", "zstd"]) {
        let archived = import_both_ways(&path);
        assert_eq!(digests(&archived), diff_ids);
        let configs = archived.layers.iter().map(|layer| layer.diff_id);
        assert!(configs.eq(diff_ids.iter().copied()));
    }
}

#[test]
fn what_tar_writes_of_a_root_file_system_is_one_layer() {
    if !has(&["tar", "gzip", "zstd"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    for (name, body) in [
        ("boot/vmlinuz-6.1", noise(1, 70_000)),
        ("boot/initrd.img-6.1", noise(2, 130_000)),
        ("etc/hostname", b"web\n".to_vec()),
        // As every program of such a name; it makes no bundle of a root file system.
        ("manifest.json", b"[]".to_vec()),
    ] {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, body).unwrap();
    }
    for format in ["gnu", "pax", "ustar"] {
        let tar = dir.path().join(format!("{format}.tar"));
        let args = [format!("--format={format}"), "-cf".to_owned()];
        run(Command::new("tar")
            .args(args)
            .arg(&tar)
            .arg("-C")
            .arg(&root)
            .arg("."));
        let digest = Digest::of(&fs::read(&tar).unwrap());
        for path in compressed(&tar, &["gzip", "zstd"]) {
            let image = import_both_ways(&path);
            assert_eq!(image.layers[0].digest, digest, "{}", path.display());
        }
    }
    // Docker's own order: what follows a manifest.json is a root file system all the same.
    let whole = tar_of(&[
        ("manifest.json", b"[]"),
        ("vmlinuz", b"k"),
        ("initrd.img", b"i"),
    ]);
    assert_eq!(
        try_import(&Host::new(), stream(&whole))
            .unwrap()
            .layers
            .len(),
        1
    );
}
