//! Imports of what tests have written themselves: what becomes of it, and what is refused.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::image::cancel::Cancel;
use crate::image::fixture::{Heard, Host, SmallDisk, chain, gzip, noise, tar_of};
use crate::image::manifest::Platform;
use crate::image::progress::Silent;

pub(super) const KERNEL: &str = "boot/vmlinuz-6.1";

/// The tar of a root file system that boots.
pub(super) fn root(seed: u64) -> Vec<u8> {
    tar_of(&[
        ("etc/hostname", b"web"),
        (KERNEL, &noise(seed, 70_000)),
        ("boot/initrd.img-6.1", &noise(seed + 1, 130_000)),
    ])
}

/// The tar of a layer with files alone.
pub(super) fn data(seed: u64) -> Vec<u8> {
    tar_of(&[("usr/data", &noise(seed, 200_000))])
}

pub(super) fn name() -> Reference {
    "vm:1".parse().unwrap()
}

pub(super) fn stream(bytes: &[u8]) -> Input {
    Input::Stream(Box::new(io::Cursor::new(bytes.to_vec())))
}

/// Imports, and sees that no work file is left.
pub(super) fn try_import(host: &Host, input: Input) -> Result<ReadyImage, ImportError> {
    let options = AssemblyOptions::default();
    let imported = import(&name(), input, &options, &host.store, &Silent);
    host.assert_nothing_staged();
    imported
}

pub(super) fn refusal(host: &Host, input: Input) -> String {
    match try_import(host, input) {
        Ok(_) => panic!("accepted"),
        Err(error) => chain(&error),
    }
}

fn zstd_of(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 1).unwrap()
}

/// The same content as a file and as a stream, compressed and not.
pub(super) fn wrapped(content: &[u8], dir: &Path) -> Vec<(String, Input)> {
    let wrappings: [(&str, Vec<u8>); 3] = [
        ("plain", content.to_vec()),
        ("gzip", gzip(content)),
        ("zstd", zstd_of(content)),
    ];
    let mut inputs = Vec::new();
    for (wrapping, bytes) in wrappings {
        let path = dir.join(wrapping);
        fs::write(&path, &bytes).unwrap();
        inputs.push((format!("{wrapping} file"), Input::at(&path)));
        inputs.push((format!("{wrapping} stream"), stream(&bytes)));
    }
    inputs
}

/// Members of a bundle by name.
pub(super) type Members = BTreeMap<String, Vec<u8>>;

pub(super) fn tar_of_members(members: &Members) -> Vec<u8> {
    let files = members.iter().map(|(name, body)| (&name[..], &body[..]));
    tar_of(&files.collect::<Vec<_>>())
}

/// Writes a bundle into a folder.
pub(super) fn folder_of(members: &Members) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, body) in members {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, body).unwrap();
    }
    dir
}

fn config_of(architecture: &str, tars: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<_> = tars.iter().map(|tar| Digest::of(tar)).collect();
    json!({"architecture": architecture, "os": "linux", "created": "2026-01-02T03:04:05Z",
        "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string()
    .into_bytes()
}

pub(super) fn host_arch() -> &'static str {
    Platform::host().architecture
}

/// Puts a blob into a layout, and gives its descriptor.
pub(super) fn put(members: &mut Members, media_type: &str, body: Vec<u8>) -> Value {
    let digest = Digest::of(&body);
    let descriptor = json!({"mediaType": media_type, "digest": digest, "size": body.len()});
    members.insert(format!("blobs/sha256/{}", digest.hex()), body);
    descriptor
}

pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Puts an image of these tars into a layout, and gives the descriptor of its manifest.
pub(super) fn put_image(members: &mut Members, architecture: &str, tars: &[&[u8]]) -> Value {
    let config = put(members, CONFIG, config_of(architecture, tars));
    let layers = tars.iter().map(|tar| put(members, GZIP, gzip(tar)));
    let layers: Vec<_> = layers.collect();
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
    put(members, MANIFEST, manifest.to_string().into_bytes())
}

pub(super) fn finish_layout(members: &mut Members, manifests: &[Value]) {
    let layout = json!({"imageLayoutVersion": "1.0.0"});
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    members.insert("oci-layout".to_owned(), layout.to_string().into());
    members.insert("index.json".to_owned(), index.to_string().into());
}

/// A layout with one image.
pub(super) fn layout(tars: &[&[u8]]) -> Members {
    let mut members = Members::new();
    let image = put_image(&mut members, host_arch(), tars);
    finish_layout(&mut members, &[image]);
    members
}

/// What `docker save` would write of these layers, each as it stands there.
pub(super) fn saved(tars: &[&[u8]], layers: &[(&str, Vec<u8>)]) -> Members {
    let config = config_of(host_arch(), tars);
    let config_name = format!("{}.json", Digest::of(&config).hex());
    let names: Vec<_> = layers.iter().map(|(name, _)| *name).collect();
    let manifest = json!([{"Config": config_name, "RepoTags": ["vm:1"], "Layers": names}]);
    let mut members = Members::from([
        (config_name, config),
        ("manifest.json".to_owned(), manifest.to_string().into()),
    ]);
    for (name, body) in layers {
        members.insert((*name).to_owned(), body.clone());
    }
    members
}

fn kernel_of(host: &Host, image: &ReadyImage) -> Vec<u8> {
    fs::read(host.store.kernel_path(&image.kernel_layer)).unwrap()
}

#[test]
fn a_tar_is_one_layer_and_the_same_image_however_it_is_wrapped() {
    let tar = root(1);
    let host = Host::new();
    let first = try_import(&host, stream(&tar)).unwrap();
    assert!(!first.was_up_to_date());
    assert_eq!(first.layers.len(), 1);
    assert_eq!(first.layers[0].digest, Digest::of(&tar));
    assert_eq!(first.layers[0].diff_id, Digest::of(&tar));
    assert_eq!(first.layers[0].compressed_size, tar.len() as u64);
    assert_eq!(first.reference.to_string(), "docker.io/library/vm:1");
    assert_eq!(kernel_of(&host, &first), noise(1, 70_000));
    for (what, input) in wrapped(&tar, host.dir.path()) {
        let again = try_import(&host, input).unwrap();
        assert!(again.was_up_to_date(), "{what}");
        assert_eq!(again.manifest_digest, first.manifest_digest, "{what}");
        assert_eq!(again.size, first.size, "{what}");
    }
    let other = try_import(&host, stream(&root(2))).unwrap();
    assert_ne!(other.manifest_digest, first.manifest_digest);
}

#[test]
fn a_tar_is_the_same_blob_from_a_stream_as_from_a_manifest() {
    let tar = root(1);
    let by_digest = Host::new();
    let members = saved(&[&tar], &[("layer.tar", tar.clone())]);
    let image = try_import(&by_digest, stream(&tar_of_members(&members))).unwrap();
    let by_stream = Host::new();
    try_import(&by_stream, stream(&tar)).unwrap();
    let blob = |host: &Host| fs::read(host.store.blob_path(&image.layers[0].digest)).unwrap();
    assert!(blob(&by_digest) == blob(&by_stream));
}

#[test]
fn a_layout_is_the_image_that_a_registry_would_give() {
    let tars = [&root(1)[..], &data(3), &root(1)];
    let members = layout(&tars);
    let server = crate::image::pull::fault_server::FaultServer::start();
    let served = tars.map(|tar| crate::image::pull::fault_server::ServedLayer {
        media_type: GZIP.to_owned(),
        sent: gzip(tar),
        diff_id: Digest::of(tar),
    });
    server.put_image("vm", &[&served[0], &served[1], &served[2]]);
    let host = Host::new();
    let pulled = crate::image::pull::pull(
        &format!("{}/vm", server.address).parse().unwrap(),
        &Default::default(),
        &host.store,
        &Silent,
    );
    let pulled = pulled.unwrap();
    let blobs = host.names("blobs");

    let folder = folder_of(&members);
    let mut inputs = wrapped(&tar_of_members(&members), host.dir.path());
    inputs.push(("folder".to_owned(), Input::at(folder.path())));
    for (what, input) in inputs {
        let host = Host::new();
        let image = try_import(&host, input).unwrap();
        assert_eq!(image.created, pulled.created, "{what}");
        assert_eq!(host.names("blobs"), blobs, "{what}");
        assert_eq!(image.kernel_layer, pulled.kernel_layer, "{what}");
        let of = |image: &ReadyImage| -> Vec<_> {
            let layers = image.layers.iter();
            layers
                .map(|layer| (layer.digest, layer.diff_id, layer.compressed_size))
                .collect()
        };
        assert_eq!(of(&image), of(&pulled), "{what}");
        assert_eq!(image.size, pulled.size, "{what}");
    }
    let again = try_import(&host, Input::at(folder.path())).unwrap();
    assert!(
        again.was_up_to_date(),
        "what was pulled is not converted again"
    );
}

#[test]
fn a_docker_archive_is_read_with_layers_plain_compressed_and_linked() {
    let (tar, more) = (root(1), data(3));
    let tars: [&[u8]; 3] = [&tar, &more, &tar];
    let plain = [("a/layer.tar", tar.clone()), ("b/layer.tar", more.clone())];
    let mut members = saved(&tars, &plain);
    let config = members.keys().find(|name| name.ends_with(".json")).unwrap();
    let config = format!("sha256:{}", &config[..64])
        .parse::<Digest>()
        .unwrap();
    let names = ["a/layer.tar", "b/layer.tar", "c/layer.tar"];
    let manifest = json!([{"Config": format!("{}.json", config.hex()), "Layers": names}]);
    members.insert("manifest.json".to_owned(), manifest.to_string().into());
    let dir = tempfile::tempdir().unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    // Before what it links to.
    builder
        .append_link(&mut link, "c/layer.tar", "../a/layer.tar")
        .unwrap();
    let mut whole = builder.into_inner().unwrap();
    whole.truncate(whole.len() - 1024);
    whole.extend(tar_of_members(&members));

    for (what, input) in wrapped(&whole, dir.path()) {
        let host = Host::new();
        let image = try_import(&host, input).unwrap();
        let digests: Vec<_> = image.layers.iter().map(|layer| layer.digest).collect();
        assert_eq!(digests, tars.map(Digest::of), "{what}");
        assert_eq!(image.manifest_digest, config, "{what}");
        assert_eq!(kernel_of(&host, &image), noise(1, 70_000), "{what}");
    }

    let packed = [("x.tar.gz", gzip(&tar)), ("y.tar.zst", zstd_of(&more))];
    let host = Host::new();
    let image = try_import(&host, stream(&tar_of_members(&saved(&tars[..2], &packed)))).unwrap();
    let digests: Vec<_> = image.layers.iter().map(|layer| layer.digest).collect();
    assert_eq!(
        digests,
        [Digest::of(&packed[0].1), Digest::of(&packed[1].1)]
    );
    assert_eq!(image.layers[1].diff_id, Digest::of(&more));
}

#[test]
fn of_several_images_the_hosts_own_is_taken_then_the_one_of_that_name() {
    let annotated = |mut descriptor: Value, key: &str, name: &str| {
        descriptor["annotations"] = json!({key: name});
        descriptor
    };
    let for_platform = |mut descriptor: Value, architecture: &str| {
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        descriptor
    };
    let mut members = Members::new();
    let here = put_image(&mut members, host_arch(), &[&root(1)]);
    let there = put_image(&mut members, "s390x", &[&root(2)]);
    let other = put_image(&mut members, host_arch(), &[&root(3)]);
    let both = [
        for_platform(there.clone(), "s390x"),
        for_platform(here.clone(), host_arch()),
    ];
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": both});
    let index = put(&mut members, INDEX, index.to_string().into());
    let tag = "org.opencontainers.image.ref.name";
    let long = "io.containerd.image.name";
    let ours = annotated(here.clone(), long, "docker.io/library/vm:1");
    for (manifests, taken) in [
        (vec![here.clone()], Ok(&here)),
        (both.to_vec(), Ok(&here)),
        (vec![index], Ok(&here)),
        (
            vec![
                annotated(other.clone(), tag, "2"),
                annotated(here.clone(), tag, "1"),
            ],
            Ok(&here),
        ),
        (vec![annotated(other.clone(), tag, "2"), ours], Ok(&here)),
        (vec![here.clone(), here.clone()], Ok(&here)),
        (
            vec![
                annotated(other.clone(), tag, "2"),
                annotated(here.clone(), tag, "3"),
            ],
            Err("(2, 3)"),
        ),
        (
            vec![
                annotated(other.clone(), tag, "1"),
                annotated(here.clone(), tag, "1"),
            ],
            Err("(1, 1)"),
        ),
        (
            vec![for_platform(there.clone(), "s390x")],
            Err("is not made for linux/"),
        ),
        (vec![there], Err("it is made for linux/s390x")),
        (vec![], Err("it holds no image")),
    ] {
        finish_layout(&mut members, &manifests);
        let host = Host::new();
        let imported = try_import(&host, stream(&tar_of_members(&members)));
        match (imported, taken) {
            (Ok(image), Ok(taken)) => {
                assert_eq!(
                    json!(image.manifest_digest),
                    taken["digest"],
                    "{manifests:?}"
                );
            }
            (Err(error), Err(sentence)) => {
                assert!(chain(&error).contains(sentence), "{}", chain(&error));
                host.assert_nothing_published();
            }
            (imported, _) => panic!("{manifests:?}: {imported:?}"),
        }
    }
}

#[test]
fn of_several_saved_images_the_one_of_that_name_is_taken() {
    let tar = root(1);
    let config = config_of(host_arch(), &[&tar]);
    for (tags, taken) in [
        ([json!(["other:1"]), json!(["a:2", "vm:1"])], true),
        ([json!(["vm:2"]), json!(null)], false),
        ([json!(["vm:1"]), json!(["vm:1"])], false),
    ] {
        let image = |tags: &Value| json!({"Config": "c", "RepoTags": tags, "Layers": ["l"]});
        let manifest = json!(tags.iter().map(image).collect::<Vec<_>>());
        let members = Members::from([
            ("c".to_owned(), config.clone()),
            ("l".to_owned(), tar.clone()),
            ("manifest.json".to_owned(), manifest.to_string().into()),
        ]);
        let imported = try_import(&Host::new(), stream(&tar_of_members(&members)));
        match imported {
            Ok(_) => assert!(taken, "{tags:?}"),
            Err(error) => {
                let text = chain(&error);
                assert!(!taken && text.contains("several images (vm:"), "{text}");
            }
        }
    }
}

#[test]
fn what_cannot_boot_is_refused_and_of_a_single_tar_nothing_stays() {
    let host = Host::new();
    for (tar, missing) in [
        (data(3), "has a kernel or an initramfs"),
        (tar_of(&[(KERNEL, b"k")]), "has an initramfs"),
        (tar_of(&[("initrd.img", b"i")]), "has a kernel;"),
        (
            tar_of(&[("data", b"no root")]),
            "has a kernel or an initramfs",
        ),
        (tar_of(&[]), "it is empty"),
    ] {
        for (what, input) in wrapped(&tar, host.dir.path()) {
            let text = refusal(&host, input);
            assert!(text.contains(missing), "{what}: {text}");
            host.assert_nothing_published();
        }
    }
    let members = layout(&[&data(3)]);
    let text = refusal(&host, stream(&tar_of_members(&members)));
    assert!(text.contains("has a kernel or an initramfs"), "{text}");
}

#[test]
fn what_is_no_image_is_told_by_its_content() {
    let host = Host::new();
    let at = |offset: usize, magic: &[u8]| {
        let mut bytes = vec![0; 4096];
        bytes[offset..offset + magic.len()].copy_from_slice(magic);
        bytes
    };
    for (bytes, sentence) in [
        (vec![], "it is empty"),
        (vec![0; 10_240], "it is empty"),
        (b"hello".to_vec(), "it is no tar"),
        (noise(7, 4096), "it is no tar"),
        (at(0, b"QFI\xfb\0\0\0\x03"), "a qcow2 disk image"),
        (at(510, b"\x55\xaa"), "a raw disk image"),
        (at(1080, b"\x53\xef"), "a raw disk image"),
        (at(0, b"KDMV"), "a VMDK disk image"),
        (at(0, b"\xfd7zXZ\0"), "compressed by xz"),
        (at(0, b"BZh91AY"), "compressed by bzip2"),
        (at(0, b"PK\x03\x04"), "compressed by zip"),
        (gzip(&gzip(&root(1))), ", and then once more"),
        (zstd_of(&gzip(&root(1))), ", and then once more"),
    ] {
        for (what, input) in wrapped(&bytes, host.dir.path()) {
            let text = refusal(&host, input);
            assert!(text.contains(sentence), "{what}: {text}");
            host.assert_nothing_published();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let text = refusal(&host, Input::at(folder.path()));
    assert!(text.contains("it is no OCI layout"), "{text}");
    let text = refusal(&host, Input::at(&PathBuf::from("/nowhere/vm.tar")));
    assert!(text.contains("cannot read /nowhere/vm.tar"), "{text}");
}

#[test]
fn what_ends_early_is_an_error_and_leaves_nothing() {
    let members = layout(&[&root(1), &data(3)]);
    for whole in [root(1), tar_of_members(&members)] {
        for (packed, last) in [
            (whole.clone(), whole.len() - 2048),
            (gzip(&whole), gzip(&whole).len() - 1),
            (zstd_of(&whole), zstd_of(&whole).len() - 1),
        ] {
            for cut in [1, 600, 70_000, last / 2, last] {
                let host = Host::new();
                refusal(&host, stream(&packed[..cut]));
                host.assert_nothing_published();
            }
        }
    }
}

#[test]
fn a_stream_that_fails_is_told_with_its_cause() {
    struct Breaks(io::Cursor<Vec<u8>>);
    impl Read for Breaks {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            match self.0.read(to)? {
                0 => Err(io::ErrorKind::ConnectionReset.into()),
                count => Ok(count),
            }
        }
    }
    let whole = root(1);
    for cut in [0, 100, 5000, whole.len() - 2000] {
        let host = Host::new();
        let broken = Breaks(io::Cursor::new(whole[..cut].to_vec()));
        let text = refusal(&host, Input::Stream(Box::new(broken)));
        assert!(text.contains("connection reset"), "{cut}: {text}");
        host.assert_nothing_published();
    }
}

#[test]
fn a_cancelled_import_ends_wherever_it_is_and_leaves_nothing() {
    struct Cancels(io::Cursor<Vec<u8>>, u64, Cancel);
    impl Read for Cancels {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            if self.0.position() >= self.1 {
                self.2.cancel();
            }
            let few = to.len().min(4096);
            self.0.read(&mut to[..few])
        }
    }
    let members = layout(&[&root(1), &data(3)]);
    for whole in [root(1), tar_of_members(&members)] {
        for at in [0, 10_000, whole.len() as u64] {
            let host = Host::new();
            let options = AssemblyOptions::default();
            let cancels = Cancels(io::Cursor::new(whole.clone()), at, options.cancel.clone());
            let input = Input::Stream(Box::new(cancels));
            let error = import(&name(), input, &options, &host.store, &Silent).unwrap_err();
            assert!(error.is_cancelled(), "{at}: {}", chain(&error));
            host.assert_nothing_staged();
            host.assert_nothing_published();
        }
    }
}

#[test]
fn an_import_that_waits_for_another_command_can_be_cancelled() {
    struct CancelWhenWaiting(Cancel);
    impl Progress for CancelWhenWaiting {
        fn event(&self, event: PullEvent<'_>) {
            if matches!(event, PullEvent::LayerWaiting { .. }) {
                self.0.cancel();
            }
        }
    }
    let tar = root(1);
    let members = saved(&[&tar], &[("layer.tar", tar.clone())]);
    let host = Host::new();
    let held = host.store.try_lock(&Digest::of(&tar)).unwrap().unwrap();
    for whole in [tar.clone(), tar_of_members(&members)] {
        let options = AssemblyOptions::default();
        let progress = CancelWhenWaiting(options.cancel.clone());
        let imported = import(&name(), stream(&whole), &options, &host.store, &progress);
        assert!(imported.unwrap_err().is_cancelled());
        host.assert_nothing_staged();
    }
    drop(held);
    try_import(&host, stream(&tar)).unwrap();
}

#[test]
fn two_imports_at_once_make_each_layer_once() {
    let members = tar_of_members(&layout(&[&root(1), &data(3), &data(4)]));
    let host = Host::new();
    let images = std::thread::scope(|scope| {
        let import = || {
            let options = AssemblyOptions::default();
            import(&name(), stream(&members), &options, &host.store, &Silent).unwrap()
        };
        let imports = [scope.spawn(import), scope.spawn(import)];
        imports.map(|import| import.join().unwrap())
    });
    host.assert_nothing_staged();
    for (one, two) in images[0].layers.iter().zip(&images[1].layers) {
        assert!(one.cached != two.cached, "{}", one.digest);
    }
}

#[test]
fn progress_counts_every_byte_once() {
    let tar = root(1);
    let sum = |heard: &Heard, word: &str| -> usize {
        let heard = heard.0.lock().unwrap();
        let lines = heard.iter().filter_map(|line| line.strip_prefix(word));
        lines.map(|bytes| bytes.parse::<usize>().unwrap()).sum()
    };
    let run = |input: Input| {
        let (host, heard) = (Host::new(), Heard::default());
        let options = AssemblyOptions::default();
        import(&name(), input, &options, &host.store, &heard).unwrap();
        heard
    };
    let dir = tempfile::tempdir().unwrap();
    for (what, input) in wrapped(&tar, dir.path()) {
        let heard = run(input);
        let size = match what.split(' ').next().unwrap() {
            "plain" => tar.len(),
            "gzip" => gzip(&tar).len(),
            _ => zstd_of(&tar).len(),
        };
        assert_eq!(sum(&heard, "read "), size, "{what}");
        let total = if what.ends_with("file") {
            format!("Some({size})")
        } else {
            "None".into()
        };
        assert_eq!(
            heard.0.lock().unwrap()[0],
            format!("reading {total}"),
            "{what}"
        );
    }
    let members = saved(&[&tar], &[("layer.tar", tar.clone())]);
    let path = dir.path().join("saved");
    fs::write(&path, tar_of_members(&members)).unwrap();
    let heard = run(Input::at(&path));
    assert_eq!(sum(&heard, "read "), 0, "it is read where it is");
    assert_eq!(sum(&heard, "advanced "), tar.len());
}

#[test]
fn root_a_full_disk_is_told_whatever_is_being_kept() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let sub = |name| disk.path().join(name);
    let store = BlobStore::open(sub("blobs"), sub("boot"), sub("staging")).unwrap();
    let bundle = tar_of_members(&layout(&[&root(1), &data(3)]));
    for (whole, sentence) in [(bundle, "cannot keep a copy"), (root(1), "staging/pull-")] {
        let options = AssemblyOptions::default();
        let error = import(&name(), stream(&whole), &options, &store, &Silent).unwrap_err();
        let text = chain(&error);
        assert!(
            text.contains("No space left") && text.contains(sentence),
            "{text}"
        );
        assert_eq!(fs::read_dir(sub("blobs")).unwrap().count(), 0);
        assert!(store.sweep_staging(true).unwrap().is_empty());
    }
}
