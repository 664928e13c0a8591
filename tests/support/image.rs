//! Images of the counting kernel: tars, an archive of several layers, and a registry of the test's own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cocoon::units::Digest;

use super::counter::{self, Counter};
use super::stderr;

/// How long the registry may take to listen; it takes some 100 ms on an idle machine.
const START_LIMIT: Duration = Duration::from_secs(60);

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

/// Debian's `docker-registry`, on a port of its own, which goes with the test.
pub(crate) struct Registry {
    workshop: Workshop,
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    /// Nothing, and a line that says why, where a tool is missing.
    #[expect(clippy::print_stdout, reason = "it says why a test did not run")]
    pub(crate) fn start() -> Option<Self> {
        for tool in ["docker-registry", "skopeo", "python3"] {
            let found = Command::new(tool).arg("--version").output();
            if !found.is_ok_and(|done| done.status.success()) {
                println!("SKIPPED: {tool} is not installed");
                return None;
            }
        }
        let workshop = Workshop::new();
        // Someone else may take the port in between: then the registry ends, and another is tried.
        for _ in 0..5 {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = free.local_addr().unwrap();
            drop(free);
            if let Some(child) = listen(workshop.dir.path(), address) {
                return Some(Self {
                    workshop,
                    address,
                    child,
                });
            }
        }
        panic!("the registry does not start");
    }

    /// Puts in an image `name` of these layers, bottom first.
    pub(crate) fn push(&self, name: &str, layers: &[Vec<u8>]) {
        let layout = self.workshop.layout(name, layers);
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:latest", layout.display()))
            .arg(format!("docker://{}/{name}:latest", self.address)));
    }

    /// As users call the image `name` in it.
    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/{name}:latest", self.address)
    }
}

fn listen(dir: &Path, address: SocketAddr) -> Option<Child> {
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
         http: {{addr: '{address}'}}\n",
        dir.join("registry").display()
    );
    fs::write(dir.join("registry.yml"), config).unwrap();
    let log = File::create(dir.join("registry.log")).unwrap();
    let mut child = Command::new("docker-registry")
        .arg("serve")
        .arg(dir.join("registry.yml"))
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while begun.elapsed() < START_LIMIT {
        if TcpStream::connect(address).is_ok() {
            return Some(child);
        }
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        // A program of someone else's gives no sign but its open port.
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}
