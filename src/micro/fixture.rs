//! What tests of several modules need: a VM, which is the payload of the engines' own tests and runs
//! wherever KVM opens, and what is said in the log.

#[path = "../../tests/engine/conformance/payload.rs"]
mod payload;

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use kvm_ioctls::Kvm;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

use super::bus::lock;
use crate::units::ByteSize;
use crate::vm::spec::{Boot, Cpus, Memory, OnReset, VmSpec};

/// More than a tick takes on the poorest KVM, in seconds.
const SOON_S: i64 = 60;

/// What the payload's VM is made of.
pub(super) struct Payload {
    pub(super) folder: TempDir,
    pub(super) spec: VmSpec,
}

impl Payload {
    /// A VM of one CPU that counts, or nothing where there is no KVM.
    pub(super) fn new() -> Option<Self> {
        if let Err(error) = Kvm::new() {
            println!("SKIPPED: /dev/kvm does not open: {error}");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let golden = include_str!("../../vmm-glue/tests/golden/oci.spec.json");
        let spec = VmSpec {
            cpus: Cpus {
                boot: 1,
                added: 0,
                max: 1,
            },
            memory: Memory {
                size: ByteSize::from_mib(64),
                added: ByteSize::default(),
                max: ByteSize::default(),
                hugepages: false,
                balloon: None,
            },
            boot: Boot::Direct {
                kernel: file("payload", &payload::elf(payload::FOREVER)),
                initrd: file("no-initrd", &[0; 4096]),
                cmdline: "{console}".to_owned(),
            },
            disks: vec![],
            nics: vec![],
            saved: None,
            on_reset: OnReset::default(),
            vsock: None,
            ..serde_json::from_str(golden).unwrap()
        };
        Some(Self { folder, spec })
    }
}

/// The number of the payload's next tick.
pub(super) fn next_tick(terminal: &OwnedFd) -> u32 {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let patience = Timespec {
            tv_sec: SOON_S,
            tv_nsec: 0,
        };
        let ready = poll(&mut [PollFd::new(terminal, PollFlags::IN)], Some(&patience));
        assert_eq!(ready, Ok(1), "no tick after {line:?}");
        let mut byte = [0];
        rustix::io::read(terminal, &mut byte).unwrap();
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).unwrap();
    let digits = line.trim_end().strip_prefix('T');
    let digits = digits.unwrap_or_else(|| panic!("its memory is not what it was: {line}"));
    u32::from_str_radix(digits, 16).unwrap()
}

/// What this thread logs during `f`, at the level that VMs log at.
pub(super) fn logged(f: impl FnOnce()) -> String {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, f);
    let log = std::mem::take(&mut *lock(&log.0));
    String::from_utf8(log).unwrap()
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
