//! Images of the counting kernel: tars, an archive of several layers, and a registry of the test's own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use cocoon::units::Digest;

use super::counter::{self, Counter};
use super::{registry, stderr};

/// The tar of a root file system that boots.
pub(crate) fn root_tar() -> Vec<u8> {
    counter::root_tar("of a layer\n")
}

/// The tar of a layer with `length` bytes that do not compress, other ones for each `seed`.
pub(crate) fn data_tar(seed: &str, length: usize) -> Vec<u8> {
    let blocks =
        (0u32..).flat_map(|block| *Digest::of(format!("{seed} {block}").as_bytes()).as_bytes());
    let name = format!("srv/{}", Digest::of(seed.as_bytes()).short());
    tar_of(&[(&name, blocks.take(length).collect())])
}

fn tar_of(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, body) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, &body[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Every file of an image's layers, by what is in it.
pub(crate) type Files = BTreeMap<PathBuf, Digest>;

impl Counter {
    /// All files of an image, each of which is there.
    pub(crate) fn files_of(&self, image: &str) -> Files {
        let root = self.cocoon.root.path();
        let image = self.json(&["image", "inspect", image]);
        let hex = |layer: &serde_json::Value| {
            let digest = layer.as_str().unwrap();
            digest.strip_prefix("sha256:").unwrap().to_owned()
        };
        let layers = image["layers"].as_array().unwrap().iter();
        let blobs = layers.map(|layer| format!("blobs/{}.erofs", hex(&layer["digest"])));
        let boot = [("kernel", "vmlinuz"), ("initrd", "initrd.img")];
        let boot = boot.map(|(kind, file)| {
            let layer = hex(&image[format!("{kind}_layer")]);
            format!("boot/{layer}/{file}")
        });
        let digest = |path: PathBuf| {
            let content = fs::read(root.join(&path)).unwrap();
            (path, Digest::of(&content))
        };
        blobs.chain(boot).map(PathBuf::from).map(digest).collect()
    }
}

/// A folder in which images are made.
pub(crate) struct Workshop {
    dir: tempfile::TempDir,
}

impl Workshop {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An OCI layout `name` of these layers, bottom first.
    pub(crate) fn layout(&self, name: &str, layers: &[Vec<u8>]) -> PathBuf {
        let layout = self.path(name);
        let mut pack = Command::new("python3");
        pack.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/os-image/oci.py"))
            .arg(&layout);
        for (index, layer) in layers.iter().enumerate() {
            let tar = self.path(&format!("{name}-{index}.tar"));
            fs::write(&tar, layer).unwrap();
            pack.arg(tar);
        }
        run(&mut pack);
        layout
    }

    /// The same as one file.
    pub(crate) fn archive(&self, name: &str, layers: &[Vec<u8>]) -> PathBuf {
        let (layout, archive) = (self.layout(name, layers), self.path(&format!("{name}.tar")));
        let mut tar = tar::Builder::new(File::create(&archive).unwrap());
        tar.append_dir_all(".", layout).unwrap();
        tar.finish().unwrap();
        archive
    }

    #[cfg(feature = "failpoints")]
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }
}

fn run(command: &mut Command) {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", stderr(&done));
}

/// A registry whose images a workshop makes.
pub(crate) struct Registry {
    workshop: Workshop,
    registry: registry::Registry,
    pub(crate) address: SocketAddr,
}

impl Registry {
    /// Nothing, and a line that says why, where a tool is missing.
    #[expect(clippy::print_stdout, reason = "it says why a test did not run")]
    pub(crate) fn start() -> Option<Self> {
        match registry::Registry::start("", "") {
            Ok(registry) => Some(Self {
                workshop: Workshop::new(),
                address: registry.address,
                registry,
            }),
            Err(why) => {
                println!("SKIPPED: {why}");
                None
            }
        }
    }

    /// Puts in an image `name` of these layers, bottom first.
    pub(crate) fn push(&self, name: &str, layers: &[Vec<u8>]) {
        let layout = self.workshop.layout(name, layers);
        let image = format!("{}:latest", layout.display());
        self.registry.copy(&image, &format!("{name}:latest"), &[]);
    }

    /// As users call the image `name` in it.
    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/{name}:latest", self.address)
    }
}
