//! What tests of pulls and imports make and look at.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use tempfile::TempDir;

use super::blobs::BlobStore;
use super::progress::{Progress, PullEvent};

pub(super) struct Host {
    pub(super) dir: TempDir,
    pub(super) store: BlobStore,
}

impl Host {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sub = |name| dir.path().join(name);
        let store = BlobStore::open(sub("blobs"), sub("boot"), sub("staging")).unwrap();
        Self { dir, store }
    }

    pub(super) fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join(folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// Nothing but locks is left of the work of a pull or an import.
    pub(super) fn assert_nothing_staged(&self) {
        let mut staged = self.names("staging");
        staged.retain(|name| !name.ends_with(".lock"));
        assert_eq!(staged, [""; 0]);
    }

    pub(super) fn assert_nothing_published(&self) {
        assert_eq!(self.names("blobs"), [""; 0]);
        assert_eq!(self.names("boot"), [""; 0]);
    }
}

/// A disk of 256 KiB, for as long as this lives.
pub(super) struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    /// Nothing, and a line that says why, where none can be mounted.
    pub(super) fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k", "none"])
            .arg(dir.path())
            .output();
        if !mount.is_ok_and(|done| done.status.success()) {
            println!("SKIPPED: a tmpfs cannot be mounted here");
            return None;
        }
        Some(Self { dir })
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// Whether files of tests may have holes, and a line that says so where they may not.
pub(super) fn keeps_holes() -> bool {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let keeps = file.metadata().unwrap().blocks() == 0;
    if !keeps {
        println!("SKIPPED: this file system keeps no holes");
    }
    keeps
}

pub(super) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Bytes that do not compress, the same for one seed.
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub(super) fn gzip(tar: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}

/// Runs a test of this program once more, in a process of its own with 2 GiB of addresses, so that what
/// it costs can be measured. True is what that process gets.
pub(super) fn is_alone(module: &str, test: &str) -> bool {
    const ALONE: &str = "COCOON_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let (_, path) = module.split_once("::").unwrap();
    let done = Command::new("sh")
        .args(["-c", "ulimit -v 2097152 && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([&format!("{path}::{test}"), "--exact"])
        .args(["--nocapture", "--test-threads=1"])
        .env(ALONE, "yes")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    let why = String::from_utf8_lossy(&done.stderr);
    assert!(
        done.status.success() && said.contains("1 passed"),
        "{said}{why}"
    );
    false
}

/// What a process that is alone had spent at some time.
pub(super) struct Cost {
    processor: Duration,
    memory: u64,
}

impl Cost {
    pub(super) fn now() -> Self {
        // Forgets how much memory there once was.
        fs::write("/proc/self/clear_refs", "5").unwrap();
        Self {
            processor: processor_time(),
            memory: most_memory(),
        }
    }

    /// That since then there was no more than so much processor time, and memory in bytes at once.
    pub(super) fn assert_within(&self, processor: Duration, memory: u64, what: &str) {
        let spent = processor_time() - self.processor;
        assert!(spent < processor, "{what} takes {spent:?}");
        let more = most_memory().saturating_sub(self.memory);
        assert!(more < memory, "{what} takes {more} bytes of memory");
    }
}

fn processor_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.try_into().unwrap()
}

/// The most memory since it was forgotten, in bytes.
fn most_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() << 10
}

/// Keeps what a pull or an import tells.
#[derive(Default)]
pub(super) struct Heard(pub(super) Mutex<Vec<String>>);

impl Progress for Heard {
    fn event(&self, event: PullEvent<'_>) {
        let text = match event {
            PullEvent::LayerAdvanced { bytes, .. } => format!("advanced {bytes}"),
            PullEvent::Resolved { layers, .. } => format!("resolved {}", layers.len()),
            PullEvent::LayerStarted { total, .. } => format!("started {total}"),
            PullEvent::LayerDone { .. } => "done".to_owned(),
            PullEvent::LayerCached { .. } => "cached".to_owned(),
            PullEvent::LayerWaiting { .. } => "waiting".to_owned(),
            PullEvent::StreamStarted { total } => format!("reading {total:?}"),
            PullEvent::StreamAdvanced { bytes } => format!("read {bytes}"),
            PullEvent::NextHost { reason } => format!("next {reason}"),
            PullEvent::Retry { reason, .. } => format!("retry {reason}"),
            PullEvent::DiskStep { step, total } => format!("{step:?} {total:?}"),
            PullEvent::DiskAdvanced { bytes } => format!("advanced {bytes}"),
            PullEvent::DiskRetry { reason, .. } => format!("retry {reason}"),
        };
        self.0.lock().unwrap().push(text);
    }
}
