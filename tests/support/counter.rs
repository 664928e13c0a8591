//! A VM whose guest counts on its console, and needs no more of KVM than that it opens.

use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

use cocoon::image::records::{self, Content, ImageLayer, ImageRecord, LayersContent};
use cocoon::store::{Database, DatabaseError, Durability};
use cocoon::units::{ByteSize, Digest};

use super::{Cocoon, stderr, stdout};

#[path = "../engine/conformance/payload.rs"]
mod payload;

/// Wait for what a guest does some hundred times a second, on a busy host.
const SOON: Duration = Duration::from_secs(60);

/// The image's name, as it would have been pulled.
pub(crate) const IMAGE: &str = "docker.io/library/counter:latest";

/// What a VM is that runs the image anywhere.
pub(crate) const SHAPE: [&str; 6] = ["--cpu", "1", "--memory", "64M", "--storage", "64M"];

/// The engine of the VMs, `micro` if `COCOON_TEST_ENGINE` does not name another one.
fn engine() -> String {
    std::env::var("COCOON_TEST_ENGINE").unwrap_or_else(|_| "micro".to_owned())
}

/// A root folder with a running VM `counter`.
pub(crate) struct Counter {
    pub(crate) cocoon: Cocoon,
    /// What every command is told besides.
    env: Vec<(&'static str, PathBuf)>,
    /// What every command reads as its standard input.
    pub(crate) stdin: Option<PathBuf>,
}

impl Counter {
    /// Nothing, and a line that says why, where it cannot run.
    pub(crate) fn run() -> Option<Self> {
        Self::run_with(0, Vec::new())
    }

    /// As [`Counter::run`], with so many NICs, and with `env` for each of its commands.
    pub(crate) fn run_with(nics: u16, env: Vec<(&'static str, PathBuf)>) -> Option<Self> {
        runs_here().then(|| Self::run_in(Cocoon::new(), nics, env))
    }

    /// As [`Counter::run_with`], with a root folder that is there.
    pub(crate) fn run_in(cocoon: Cocoon, nics: u16, env: Vec<(&'static str, PathBuf)>) -> Self {
        let counter = Self::within(cocoon, env);
        let mut run = vec!["vm", "run", "--name", "counter"];
        let nics = nics.to_string();
        run.extend(SHAPE.iter().chain(&["--nics", &nics, "counter"]));
        counter.ok(&run);
        counter.goes_on();
        counter
    }

    /// As [`Counter::run_with`], but without the VM.
    pub(crate) fn idle(env: Vec<(&'static str, PathBuf)>) -> Option<Self> {
        runs_here().then(|| Self::within(Cocoon::new(), env))
    }

    fn within(cocoon: Cocoon, env: Vec<(&'static str, PathBuf)>) -> Self {
        install(&cocoon);
        let stdin = None;
        Self { cocoon, env, stdin }
    }

    pub(crate) fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = self.cocoon.command(args);
        command
            .env("COCOON_IGNORE_KVM_CHECK", "1")
            .env("COCOON_ENGINE", engine())
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(stdin) = &self.stdin {
            command.stdin(std::fs::File::open(stdin).unwrap());
        }
        command
    }

    /// Runs the program, which must succeed; returns what it writes, without the last newline.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.try_(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        stdout(&output).trim_end().to_owned()
    }

    /// Runs the program, which must fail; returns what it says.
    pub(crate) fn refused(&self, args: &[&str]) -> String {
        let output = self.try_(args);
        assert_eq!(output.status.code(), Some(1), "{args:?} did not fail");
        stderr(&output)
    }

    pub(crate) fn try_(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    pub(crate) fn state(&self) -> String {
        self.state_of("counter")
    }

    pub(crate) fn state_of(&self, vm: &str) -> String {
        let vm = self.json(&["vm", "inspect", vm]);
        vm["state"].as_str().unwrap().to_owned()
    }

    /// Waits until the VM has no process. The kernel closes a dying one's connections first, then takes KVM down,
    /// and lets go of the lock by which others know that it lives at the end.
    #[cfg(feature = "failpoints")]
    pub(crate) fn wait_for_process(&self) {
        let folder = self.json(&["vm", "inspect", "counter"])["run_dir"].clone();
        let lock = PathBuf::from(folder.as_str().unwrap()).join("alive.lock");
        let lock = std::fs::File::open(lock).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockShared).unwrap();
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.cocoon.root.path().join("snapshots")
    }

    /// What the guest has counted so far, in bytes of what it printed; or where an engine has no serial
    /// port for it, the time in which it ran.
    pub(crate) fn count(&self, vm: &str) -> u64 {
        let vm = self.json(&["vm", "inspect", vm]);
        if engine() != "micro" {
            return vm["pid"].as_u64().map_or(0, guest_ticks);
        }
        let log = vm["console_log"].as_str().unwrap();
        std::fs::metadata(log).map_or(0, |file| file.len())
    }

    /// Waits until the guest counts on.
    pub(crate) fn goes_on(&self) {
        self.vm_goes_on("counter");
    }

    /// Waits until the guest of `vm` counts on.
    pub(crate) fn vm_goes_on(&self, vm: &str) {
        let (before, deadline) = (self.count(vm), Instant::now() + SOON);
        // The log is a file; nobody tells of its growth.
        while self.count(vm) == before {
            assert!(Instant::now() < deadline, "the guest stands still");
        }
    }

    /// Sees that a paused guest does not count.
    pub(crate) fn stands_still(&self) {
        let settled = || {
            let before = self.count("counter");
            std::thread::sleep(Duration::from_millis(200));
            self.count("counter") == before
        };
        // What was printed before may still be on its way to the log; then nothing may come.
        assert!(settled() || settled(), "the guest counts");
    }
}

/// The time for which a process ran a guest, in clock ticks: `guest_time`, the 43rd field (proc(5)).
fn guest_ticks(pid: u64) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second one, a name, may have blanks.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let field = after.split_whitespace().nth(43 - 3);
    field.map_or(0, |ticks| ticks.parse().unwrap())
}

impl Drop for Counter {
    fn drop(&mut self) {
        let vms = self.try_(&["vm", "list", "-q"]);
        for vm in stdout(&vms).lines() {
            let _ = self.try_(&["vm", "rm", "--force", vm]);
        }
    }
}

/// Whether the image runs here; says so where it does not.
#[expect(clippy::print_stdout, reason = "it says why a test did not run")]
pub(crate) fn runs_here() -> bool {
    let runs = rustix::process::geteuid().is_root() && std::path::Path::new("/dev/kvm").exists();
    if !runs {
        println!("SKIPPED: it needs root and /dev/kvm");
    }
    runs
}

/// A kernel that counts, and resets itself after so many ticks.
pub(crate) fn kernel(ticks: u32) -> Vec<u8> {
    payload::elf(ticks)
}

/// The tar of a root file system that boots it.
pub(crate) fn root_tar(hostname: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, body) in root_files(hostname) {
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, &body[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

/// The files of such a root file system.
pub(crate) fn root_files(hostname: &str) -> [(&'static str, Vec<u8>); 3] {
    [
        ("boot/vmlinuz-1", kernel(payload::FOREVER)),
        ("boot/initrd.img-1", vec![7; 4096]),
        ("etc/hostname", hostname.as_bytes().to_vec()),
    ]
}

/// Puts an image with the counting kernel into the store.
pub(crate) fn install(cocoon: &Cocoon) {
    // Any command makes the folders.
    assert!(cocoon.run(&["vm", "list"]).status.success());
    let root = cocoon.root.path();
    let layer = Digest::of(b"counter");
    let boot = root.join("boot").join(layer.hex());
    std::fs::create_dir(&boot).unwrap();
    std::fs::write(boot.join("vmlinuz"), kernel(payload::FOREVER)).unwrap();
    std::fs::write(boot.join("initrd.img"), [0; 4096]).unwrap();
    let blob = root.join("blobs").join(format!("{}.erofs", layer.hex()));
    std::fs::write(blob, [0; 4096]).unwrap();
    let image = ImageRecord {
        name: IMAGE.into(),
        digest: Digest::of(b"image"),
        size: ByteSize::from_mib(1),
        created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
        content: Content::Layers(LayersContent {
            architecture: "amd64".into(),
            layers: vec![ImageLayer {
                digest: layer,
                diff_id: layer,
            }],
            kernel_layer: layer,
            initrd_layer: layer,
            built_at: None,
        }),
    };
    let mut db = Database::open(root).unwrap();
    db.write::<_, DatabaseError>(Durability::Full, |tx| records::put(tx, &image))
        .unwrap();
}
