//! What VMs of the cases are made of.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use cocoon::units::{ByteSize, Mac};
use cocoon::vm::spec::{
    Boot, Console, Cpus, Disk, DiskFormat, Memory, Nic, OnReset, Paths, VERSION, VmSpec,
};

use super::{Lab, counter, mind_children, payload};

/// The memory of a [`payload`].
pub(crate) const PAYLOAD_MEMORY: ByteSize = ByteSize::from_mib(64);

/// The host's address on the network of a guest's NIC.
pub(crate) const HOST: &str = "10.11.12.1";

impl Lab {
    /// A VM of Linux with `cpus` CPUs, no disks and no NICs.
    pub(crate) fn guest(&self, cpus: u32) -> VmSpec {
        self.linux(cpus, "")
    }

    /// The same, with a kernel that minds the VM's generation id.
    pub(crate) fn minding_guest(&self) -> VmSpec {
        self.linux(1, "-genid")
    }

    fn linux(&self, cpus: u32, kind: &str) -> VmSpec {
        let folder = self.guest.as_ref().expect("the list looked for a guest");
        let boot = Boot::Direct {
            kernel: folder.join(format!("vmlinuz{kind}")),
            initrd: folder.join(format!("initrd{kind}")),
            cmdline: "{console} loglevel=3 net.ifnames=0 mitigations=off".to_owned(),
        };
        VmSpec {
            cpus: Cpus {
                boot: cpus,
                added: 0,
                max: 8,
            },
            memory: Memory {
                size: ByteSize::from_mib(256),
                added: ByteSize::default(),
                max: ByteSize::default(),
                hugepages: false,
                balloon: Some(ByteSize::from_mib(64)),
            },
            watchdog: true,
            ..self.bare(boot)
        }
    }

    /// A VM of the [`payload`].
    pub(crate) fn payload(&self) -> VmSpec {
        self.resetting_payload(payload::FOREVER)
    }

    /// A VM of the [`payload`] that resets itself after `ticks`.
    pub(crate) fn resetting_payload(&self, ticks: u32) -> VmSpec {
        let boot = Boot::Direct {
            kernel: self.file("payload", &payload::elf(ticks)),
            initrd: self.file("no-initrd", &[0; 4096]),
            cmdline: "{console}".to_owned(),
        };
        self.bare(boot)
    }

    /// A VM of [`counter`], with the devices that need no privilege.
    pub(crate) fn counter(&self, memory: ByteSize, touched: ByteSize) -> VmSpec {
        let touched = u32::try_from(touched.bytes()).expect("it lies below 4 GiB");
        let boot = Boot::Direct {
            kernel: self.file("counter", &counter::elf(touched)),
            initrd: self.file("no-initrd", &[0; 4096]),
            cmdline: "{console}".to_owned(),
        };
        let image = self.image("cow.img", b"", 1 << 20);
        VmSpec {
            memory: Memory {
                size: memory,
                added: ByteSize::default(),
                max: ByteSize::default(),
                hugepages: false,
                balloon: Some(ByteSize::from_bytes(memory.bytes() / 4)),
            },
            disks: vec![disk(&image, "cocoon-cow", 1)],
            watchdog: true,
            ..self.bare(boot)
        }
    }

    fn bare(&self, boot: Boot) -> VmSpec {
        VmSpec {
            version: VERSION,
            id: "0123456789abcdef".parse().expect("an id"),
            name: "lab".parse().expect("a name"),
            engine: self.subject.engine.name(),
            cpus: Cpus {
                boot: 1,
                added: 0,
                max: 1,
            },
            memory: Memory {
                size: PAYLOAD_MEMORY,
                added: ByteSize::default(),
                max: ByteSize::default(),
                hugepages: false,
                balloon: None,
            },
            boot,
            disks: vec![],
            nics: vec![],
            netns: None,
            console: Console::Virtio,
            watchdog: false,
            saved: None,
            on_reset: OnReset::default(),
            vsock: None,
            paths: paths(self.folder.path()),
        }
    }

    /// A file of the case.
    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        let written = File::create(&path).and_then(|mut file| file.write_all(bytes));
        written.expect("there is room");
        path
    }

    /// A disk image of `bytes` that begins with `head`.
    pub(crate) fn image(&self, name: &str, head: &[u8], bytes: u64) -> PathBuf {
        let path = self.file(name, head);
        let file = File::options().write(true).open(&path);
        let grown = file.and_then(|file| file.set_len(bytes));
        grown.expect("there is room");
        path
    }
}

/// The files of a VM process, in `folder`.
pub(crate) fn paths(folder: &Path) -> Paths {
    let file = |name: &str| folder.join(name);
    Paths {
        root_dir: folder.to_owned(),
        alive_lock: file("alive.lock"),
        control_socket: file("control.sock"),
        console_socket: file("console.sock"),
        api_socket: file("api.sock"),
        console_log: file("console.log"),
        vmm_log: file("vmm.log"),
    }
}

/// A raw disk at `path` with as many queues as a VM of `cpus` gives it.
pub(crate) fn disk(path: &Path, serial: &str, cpus: u32) -> Disk {
    Disk {
        path: path.to_owned(),
        readonly: false,
        format: DiskFormat::Raw,
        serial: serial.to_owned(),
        queues: cocoon::vm::spec::queues(cpus),
    }
}

/// A NIC on `tap`.
pub(crate) fn nic(tap: &str, cpus: u32) -> Nic {
    Nic {
        tap: tap.to_owned(),
        mac: Mac::new([2, 0, 0, 0, 0, 7]),
        queue_pairs: cocoon::vm::spec::queues(cpus),
        mtu: 1450,
    }
}

/// A TAP device, as `network::tap` makes it, with [`HOST`]'s address; removed when dropped.
#[derive(Debug)]
pub(crate) struct Tap(&'static str);

impl Tap {
    /// Makes it.
    pub(crate) fn new(name: &'static str, queue_pairs: u32) -> Self {
        // Of a case that was killed.
        let _ = Command::new("ip").args(["link", "del", name]).output();
        let mut add = vec!["tuntap", "add", name, "mode", "tap", "vnet_hdr"];
        if queue_pairs > 1 {
            add.push("multi_queue");
        }
        ip(&add);
        let address = format!("{HOST}/24");
        ip(&["addr", "add", &address, "dev", name]);
        // Always the same one: a guest that moves from one TAP to another remembers it.
        let own = "02:00:00:00:00:01";
        ip(&["link", "set", name, "address", own, "mtu", "1450", "up"]);
        Self(name)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", self.0]).status();
    }
}

fn ip(args: &[&str]) {
    run("ip", args);
}

/// Runs a program of the host, which must succeed, and returns what it printed.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    mind_children();
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).expect("it is text")
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("it is text")
}

/// Bytes that look random, the same for the same seed (xorshift, Marsaglia 2003).
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    let all: Vec<u8> = words
        .take(bytes.div_ceil(8))
        .flat_map(u64::to_le_bytes)
        .collect();
    all[..bytes].to_vec()
}
