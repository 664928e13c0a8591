//! Debian's `docker-registry`, into which skopeo pushes what umoci makes.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long the registry may take to listen; it takes some 100 ms on an idle machine.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A registry of a test's own, on a port of its own.
pub(crate) struct Registry {
    dir: TempDir,
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
    /// One with `http` in its `http` section, and the section `auth`; or which tool is missing.
    pub(crate) fn start(http: &str, auth: &str) -> Result<Self, String> {
        for tool in ["docker-registry", "skopeo", "umoci"] {
            let found = Command::new(tool).arg("--version").output();
            if !found.is_ok_and(|done| done.status.success()) {
                return Err(format!("{tool} is not installed"));
            }
        }
        let dir = tempfile::tempdir().unwrap();
        // Someone else may take the port in between: then the registry ends, and another is tried.
        for _ in 0..5 {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = free.local_addr().unwrap();
            drop(free);
            if let Some(child) = listen(dir.path(), address, http, auth) {
                return Ok(Self {
                    dir,
                    address,
                    child,
                });
            }
        }
        panic!("the registry does not start");
    }

    /// A file of its folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes an image `tag` of these tars, bottom first, in an OCI layout.
    pub(crate) fn build(&self, tag: &str, layers: &[&[(&str, Vec<u8>)]]) {
        let layout = self.path("layout");
        if !layout.exists() {
            run(Command::new("umoci")
                .arg("init")
                .arg("--layout")
                .arg(&layout));
        }
        let image = format!("{}:{tag}", layout.display());
        run(Command::new("umoci").args(["new", "--image", &image]));
        for files in layers {
            let tar = self.path("layer.tar");
            let mut builder = tar::Builder::new(File::create(&tar).unwrap());
            for (path, content) in *files {
                let mut header = tar::Header::new_gnu();
                header.set_size(content.len() as u64);
                header.set_mode(0o644);
                builder
                    .append_data(&mut header, path, &content[..])
                    .unwrap();
            }
            builder.into_inner().unwrap().sync_all().unwrap();
            run(Command::new("umoci")
                .args(["raw", "add-layer", "--image", &image])
                .arg(&tar));
        }
    }

    /// Pushes `tag` of the layout; returns by which name it can be pulled.
    pub(crate) fn push(&self, tag: &str, flags: &[&str]) -> String {
        let image = format!("{}:{tag}", self.path("layout").display());
        self.copy(&image, &format!("some/{tag}:1"), flags)
    }

    /// Pushes an image of an OCI layout, as `name`; returns by which name it can be pulled.
    pub(crate) fn copy(&self, image: &str, name: &str, flags: &[&str]) -> String {
        let name = format!("{}/{name}", self.address);
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--dest-tls-verify=false"])
            .args(flags)
            .args([format!("oci:{image}"), format!("docker://{name}")]));
        name
    }
}

fn listen(dir: &Path, address: SocketAddr, http: &str, auth: &str) -> Option<Child> {
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
         http: {{addr: '{address}'{http}}}\n{auth}",
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

fn run(command: &mut Command) {
    let done = command.output().unwrap();
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {told}");
}
