//! What tests of pulls and imports make and look at.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

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
        };
        self.0.lock().unwrap().push(text);
    }
}
