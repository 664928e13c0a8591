//! Everything an engine needs to know to run one VM, in one value.
//!
//! ```text
//! <run>/vms/<id>/spec.json     written by `ops::start`, read once by `cocoon __vmm`
//! ```
//!
//! Invariant: a spec is complete. Nothing in it is optional that must be decided, no path in it is
//! relative, and an engine consults no other source.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::cmdline::CIDATA_SERIAL;
pub use crate::units::EngineName;
use crate::units::{ByteSize, Mac, VmId, VmName};

/// Version of the serialised form; a reader refuses any other.
pub const VERSION: u32 = 1;

/// Queue depth of every virtio disk and NIC queue, as the Go cocoon configures it.
pub const QUEUE_SIZE: u16 = 256;

/// Queues of each disk, and queue pairs of each NIC, of a VM with this many processors at boot: one
/// for each, so that no two processors share one.
pub fn queues(boot_cpus: u32) -> u16 {
    u16::try_from(boot_cpus).unwrap_or(u16::MAX)
}

/// One virtual machine, ready to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// The VM.
    pub id: VmId,
    /// Its name, which is also the guest's hostname.
    pub name: VmName,
    /// The engine that runs it.
    pub engine: EngineName,
    /// Virtual CPUs.
    pub cpus: Cpus,
    /// Guest RAM.
    pub memory: Memory,
    /// What is booted.
    pub boot: Boot,
    /// The folder of a saved VM that is brought to life instead; a reset of the guest boots `boot`.
    #[serde(default)]
    pub saved: Option<PathBuf>,
    /// What becomes of the VM when its guest resets itself.
    #[serde(default)]
    pub on_reset: OnReset,
    /// Disks in the order in which the guest sees them.
    pub disks: Vec<Disk>,
    /// Network interfaces; the guest calls number `i` `eth<i>`.
    pub nics: Vec<Nic>,
    /// The network namespace in which the VM process runs; its own namespace where there are no NICs.
    pub netns: Option<PathBuf>,
    /// What the guest's console is.
    #[serde(default)]
    pub console: Console,
    /// A watchdog device resets a guest that hangs.
    pub watchdog: bool,
    /// A virtio socket device.
    pub vsock: Option<Vsock>,
    /// Where the VM process puts its sockets and logs.
    pub paths: Paths,
}

impl VmSpec {
    /// Whether the volume of cloud-init is among its disks.
    pub fn has_cidata(&self) -> bool {
        let mut disks = self.disks.iter();
        disks.any(|disk| disk.serial == CIDATA_SERIAL)
    }
}

/// What becomes of a VM whose guest resets itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnReset {
    /// It boots again what it was given to boot.
    #[default]
    Boot,
    /// It is over, and told to be so for that reason: whoever runs it boots something else.
    End,
}

/// Virtual CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpus {
    /// Online when the guest boots.
    pub boot: u32,
    /// Plugged in since: a saved VM may be restored with more of them than it had.
    #[serde(default)]
    pub added: u32,
    /// To which the VM may grow; at least `boot` and `added`.
    pub max: u32,
}

/// What Linux takes into use as a whole on x86-64 (`MIN_MEMORY_BLOCK_SIZE`), as Cloud Hypervisor does.
pub const MEMORY_BLOCK: ByteSize = ByteSize::from_mib(128);

/// Guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// RAM at boot.
    pub size: ByteSize,
    /// Plugged in since, in multiples of [`MEMORY_BLOCK`]: a saved VM may be restored with more of it than
    /// it had.
    #[serde(default)]
    pub added: ByteSize,
    /// To which the VM may grow; room of less than `size` is none.
    #[serde(default)]
    pub max: ByteSize,
    /// Backed by 2 MiB pages of the host's pool.
    pub hugepages: bool,
    /// Size of a balloon device (deflate on OOM, free-page reporting), or none.
    pub balloon: Option<ByteSize>,
}

/// What is booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Boot {
    /// A Linux kernel, given to the engine as a file.
    Direct {
        /// bzImage or ELF.
        kernel: PathBuf,
        /// Initial RAM disk.
        initrd: PathBuf,
        /// Kernel command line, complete but for the console device, for which it holds
        /// [`CONSOLE_TOKEN`].
        cmdline: String,
    },
    /// What is installed on the first disk: the VM process looks there for kernel, initial RAM disk and
    /// command line whenever the guest boots, and gives the engine [`Boot::Direct`].
    Installed {
        /// Where it puts them.
        folder: PathBuf,
    },
    /// UEFI firmware, which looks for something to boot by itself.
    Firmware {
        /// The file.
        path: PathBuf,
    },
}

/// What the guest's console is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Console {
    /// The engine's best: what an image is told by its command line.
    #[default]
    Virtio,
    /// The first serial port, which a guest finds that nobody tells.
    Serial,
}

/// Stands in a command line for `console=<device>`; each engine puts its own device there.
pub const CONSOLE_TOKEN: &str = "{console}";

/// One virtio disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The file on the host.
    pub path: PathBuf,
    /// The guest may not write to it.
    pub readonly: bool,
    /// How the file is laid out.
    pub format: DiskFormat,
    /// virtio serial by which the guest finds it; at most 20 bytes.
    pub serial: String,
    /// Request queues: one per boot CPU.
    pub queues: u16,
}

/// How a disk's file is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// Sector by sector.
    Raw,
}

/// One virtio network interface on a TAP device that exists already, in the VM's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Name of the TAP device.
    pub tap: String,
    /// The guest's address, which is also that of the CNI interface.
    pub mac: Mac,
    /// Pairs of receive and transmit queues: one per boot CPU.
    pub queue_pairs: u16,
    /// Largest packet, in bytes.
    pub mtu: u16,
}

/// A virtio socket device: connections between host and guest that need no network.
///
/// The host connects to `socket`, writes `CONNECT <port>\n` and reads `OK <its own port>\n`; the guest's
/// connections to port `p` of CID 2 arrive at `<socket>_<p>`. As Firecracker has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's address; 3 or more.
    pub cid: u32,
    /// The host's socket.
    pub socket: PathBuf,
}

/// Where the VM process puts its sockets and logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paths {
    /// The database's folder: the VM process records its own beginning and end there.
    pub root_dir: PathBuf,
    /// Held locked for as long as the VM process lives.
    pub alive_lock: PathBuf,
    /// cocoon's own control socket.
    pub control_socket: PathBuf,
    /// Where consoles attach.
    pub console_socket: PathBuf,
    /// The engine's own API socket, for its standard client.
    pub api_socket: PathBuf,
    /// The guest's console output, bounded.
    pub console_log: PathBuf,
    /// What the VM process and its engine log.
    pub vmm_log: PathBuf,
}
