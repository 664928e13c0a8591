//! Debian's `docker-registry`, into which skopeo pushes what umoci makes.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a server may take to listen; the registry takes some 100 ms on an idle machine.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A program that listens on a port of its own, for as long as this lives.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Waits until what `command` makes for an address listens there; what it says goes into `log`.
    pub(crate) fn start(log: &Path, command: impl Fn(SocketAddr) -> Command) -> Self {
        // Someone else may take the port in between: then the program ends, and another is tried.
        for _ in 0..5 {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = free.local_addr().unwrap();
            drop(free);
            let log = File::create(log).unwrap();
            let mut command = command(address);
            command.stdout(log.try_clone().unwrap()).stderr(log);
            let child = command.stdin(Stdio::null()).spawn().unwrap();
            let mut server = Self { address, child };
            if server.listens() {
                return server;
            }
        }
        panic!("it does not start: {:?}", fs::read_to_string(log));
    }

    /// Whether it does so in time, and has not ended before.
    fn listens(&mut self) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < START_LIMIT {
            if TcpStream::connect(self.address).is_ok() {
                return true;
            }
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            // A program of someone else's gives no sign but its open port.
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

/// A registry of a test's own.
pub(crate) struct Registry {
    dir: TempDir,
    pub(crate) address: SocketAddr,
    _server: Server,
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
        let (config, log) = (
            dir.path().join("registry.yml"),
            dir.path().join("registry.log"),
        );
        let server = Server::start(&log, |address| {
            let text = format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
                 http: {{addr: '{address}'{http}}}\n{auth}",
                dir.path().join("registry").display()
            );
            fs::write(&config, text).unwrap();
            let mut command = Command::new("docker-registry");
            command.arg("serve").arg(&config);
            command
        });
        Ok(Self {
            dir,
            address: server.address,
            _server: server,
        })
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

fn run(command: &mut Command) {
    let done = command.output().unwrap();
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {told}");
}
