//! [`VmSpec`] to Cloud Hypervisor's [`VmConfig`]: the one place that decides how a VM is built.
//!
//! The settings are those of the Go cocoon, so its images and its users find the same machine. What
//! it leaves to Cloud Hypervisor's defaults is left to them here too.
//!
//! What was plugged into a VM counts as what it boots with: so Cloud Hypervisor itself changes the
//! configuration when it plugs something, and so the guest finds it after a reset.

use block::ImageType;
use cocoon::units::ByteSize;
use cocoon::vm::spec::{self, Boot, CONSOLE_TOKEN, Console, DiskFormat, VmSpec, Vsock};
use net_util::MacAddr;
use vmm::vm_config::{
    BalloonConfig, CommonConsoleConfig, ConsoleConfig, ConsoleOutputMode, CpusConfig,
    DebugConsoleConfig, DiskConfig, HotplugMethod, MemoryConfig, NetConfig, PayloadConfig,
    PciDeviceCommonConfig, RngConfig, SerialConfig, VhostMode, VmConfig, VsockConfig,
};

/// The console that a guest finds on the terminal: virtio-console. There is no serial port, so
/// what a kernel says before its virtio drivers is lost.
const CONSOLE: &str = "console=hvc0";

/// The same, of one whose console is its serial port.
const SERIAL: &str = "console=ttyS0";

/// Size of a page of the host's pool, as the spec promises.
const HUGEPAGE_BYTES: u64 = 2 << 20;

/// Sectors that a guest sees are read through the host's page cache: layers are shared by VMs.
const O_DIRECT: bool = false;

/// Slots of the PCI bus that are taken by the host bridge, virtio-console, virtio-rng, the balloon,
/// the watchdog, vsock and pvpanic, out of [`PCI_SLOTS`].
const PCI_SLOTS_TAKEN: usize = 7;

/// Device numbers on one PCI bus (PCI Local Bus 3.0, section 3.2.2.3).
const PCI_SLOTS: usize = 32;

/// Smallest MTU of a NIC, that of IPv6 (`virtio_devices::net::MIN_MTU`, which is not public).
const MIN_MTU: u16 = 1280;

/// Says what of `spec` Cloud Hypervisor cannot do, as the rest of the sentence "cannot ...".
pub(crate) fn check(spec: &VmSpec) -> Result<(), String> {
    if spec.cpus.boot == 0 {
        return Err("run a VM without CPUs".to_owned());
    }
    let devices = spec.disks.len() + spec.nics.len();
    let room = PCI_SLOTS - PCI_SLOTS_TAKEN;
    if devices > room {
        return Err(format!(
            "attach {devices} disks and NICs: it has room for {room}"
        ));
    }
    if let Some(nic) = spec.nics.iter().find(|nic| nic.mtu < MIN_MTU) {
        return Err(format!(
            "drive {} with an MTU of {}: the least is {MIN_MTU}",
            nic.tap, nic.mtu
        ));
    }
    if spec.paths.api_socket.to_str().is_none() {
        let path = spec.paths.api_socket.display();
        return Err(format!("bind {path}, which is not UTF-8"));
    }
    vm_config(spec)
        .validate()
        .map(drop)
        .map_err(|error| format!("build this VM: {error}"))
}

/// The configuration of `spec`'s VM.
pub(crate) fn vm_config(spec: &VmSpec) -> VmConfig {
    let mut config = unset();
    config.cpus.boot_vcpus = spec.cpus.boot.saturating_add(spec.cpus.added);
    config.cpus.max_vcpus = spec.cpus.max;
    config.memory = memory(spec.memory);
    let (console, serial, virtio) = match spec.console {
        Console::Virtio => (CONSOLE, ConsoleOutputMode::Off, ConsoleOutputMode::Pty),
        Console::Serial => (SERIAL, ConsoleOutputMode::Pty, ConsoleOutputMode::Off),
    };
    config.payload = Some(payload(&spec.boot, console));
    config.disks = some_unless_empty(spec.disks.iter().map(disk).collect());
    config.net = some_unless_empty(spec.nics.iter().map(nic).collect());
    config.balloon = spec.memory.balloon.map(balloon);
    config.serial.common = console_on(serial);
    config.console.common = console_on(virtio);
    // One PCI function; by it a guest's panic is known for what it is.
    config.pvpanic = true;
    config.watchdog = spec.watchdog;
    config.vsock = spec.vsock.as_ref().map(vsock);
    config
}

/// With room by ACPI, which takes addresses and one device: virtio-mem would map all of it at once.
fn memory(memory: spec::Memory) -> MemoryConfig {
    let size = memory.size.bytes();
    MemoryConfig {
        size: size.saturating_add(memory.added.bytes()),
        hotplug_method: HotplugMethod::Acpi,
        hotplug_size: memory
            .max
            .bytes()
            .checked_sub(size)
            .filter(|room| *room > 0),
        hugepages: memory.hugepages,
        // Or the guest would die of a page that the host's pool has not got any more.
        reserve: memory.hugepages,
        hugepage_size: memory.hugepages.then_some(HUGEPAGE_BYTES),
        ..MemoryConfig::default()
    }
}

fn payload(boot: &Boot, console: &str) -> PayloadConfig {
    let nothing = PayloadConfig {
        firmware: None,
        kernel: None,
        cmdline: None,
        initramfs: None,
    };
    match boot {
        Boot::Direct {
            kernel,
            initrd,
            cmdline,
        } => PayloadConfig {
            kernel: Some(kernel.clone()),
            cmdline: Some(cmdline.replace(CONSOLE_TOKEN, console)),
            initramfs: Some(initrd.clone()),
            ..nothing
        },
        Boot::Firmware { path } => PayloadConfig {
            firmware: Some(path.clone()),
            ..nothing
        },
        // Only to be checked, or to be restored, which boots nothing: nobody has looked for the kernel. A file of an
        // initial RAM disk would be opened all the same.
        Boot::Installed { folder } => PayloadConfig {
            kernel: Some(folder.clone()),
            ..nothing
        },
    }
}

fn disk(disk: &spec::Disk) -> DiskConfig {
    DiskConfig {
        pci_common: PciDeviceCommonConfig::default(),
        path: Some(disk.path.clone()),
        readonly: disk.readonly,
        direct: O_DIRECT,
        num_queues: disk.queues.into(),
        queue_size: spec::QUEUE_SIZE,
        vhost_user: false,
        vhost_socket: None,
        rate_limit_group: None,
        rate_limiter_config: None,
        disable_io_uring: false,
        disable_aio: false,
        serial: Some(disk.serial.clone()),
        queue_affinity: None,
        backing_files: false,
        sparse: !disk.readonly,
        image_type: match disk.format {
            DiskFormat::Raw => ImageType::Raw,
        },
        lock_granularity: Default::default(),
    }
}

fn nic(nic: &spec::Nic) -> NetConfig {
    NetConfig {
        pci_common: PciDeviceCommonConfig::default(),
        tap: Some(nic.tap.clone()),
        ip: None,
        mask: None,
        mac: MacAddr::from_bytes_unchecked(&nic.mac.bytes()),
        host_mac: None,
        mtu: Some(nic.mtu),
        // Cloud Hypervisor counts each direction.
        num_queues: usize::from(nic.queue_pairs) * 2,
        queue_size: spec::QUEUE_SIZE,
        vhost_user: false,
        vhost_socket: None,
        vhost_mode: VhostMode::Client,
        fds: None,
        rate_limiter_config: None,
        offload_tso: true,
        offload_ufo: true,
        offload_csum: true,
    }
}

fn balloon(size: ByteSize) -> BalloonConfig {
    BalloonConfig {
        pci_common: PciDeviceCommonConfig::default(),
        size: size.bytes(),
        deflate_on_oom: true,
        free_page_reporting: true,
    }
}

fn console_on(mode: ConsoleOutputMode) -> CommonConsoleConfig {
    CommonConsoleConfig {
        file: None,
        mode,
        socket: None,
    }
}

fn vsock(vsock: &Vsock) -> VsockConfig {
    VsockConfig {
        pci_common: PciDeviceCommonConfig::default(),
        cid: vsock.cid,
        socket: vsock.socket.clone(),
    }
}

fn some_unless_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// A VM without a payload or optional devices; its random numbers come from /dev/urandom. Cloud
/// Hypervisor has no such value.
fn unset() -> VmConfig {
    VmConfig {
        cpus: CpusConfig::default(),
        memory: MemoryConfig::default(),
        payload: None,
        rate_limit_groups: None,
        disks: None,
        net: None,
        rng: RngConfig::default(),
        balloon: None,
        generic_vhost_user: None,
        fs: None,
        pmem: None,
        serial: SerialConfig::default(),
        console: ConsoleConfig::default(),
        debug_console: DebugConsoleConfig::default(),
        devices: None,
        user_devices: None,
        vdpa: None,
        vsock: None,
        pvpanic: false,
        iommu: false,
        numa: None,
        watchdog: false,
        rtc: None,
        pci_segments: None,
        platform: None,
        tpm: None,
        preserved_fds: None,
        landlock_enable: false,
        landlock_rules: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `ops::start` writes for a VM with two layers and a NIC.
    const SPEC: &str = include_str!("../tests/golden/oci.spec.json");

    fn spec() -> VmSpec {
        serde_json::from_str(SPEC).unwrap()
    }

    fn json(spec: &VmSpec) -> serde_json::Value {
        serde_json::to_value(vm_config(spec)).unwrap()
    }

    #[test]
    fn an_oci_vm_becomes_exactly_this_configuration() {
        let golden = include_str!("../tests/golden/oci.vm_config.json");
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        let config = json(&spec());
        assert_eq!(
            config,
            golden,
            "the configuration is now:\n{}",
            serde_json::to_string_pretty(&config).unwrap()
        );
    }

    #[test]
    fn a_vm_without_nics_balloon_and_watchdog_has_none_of_them() {
        let mut spec = spec();
        spec.nics.clear();
        spec.watchdog = false;
        spec.memory.balloon = None;
        let config = json(&spec);
        assert_eq!(config.get("net"), None);
        assert_eq!(config.get("balloon"), None);
        assert_eq!(config["watchdog"], false);
    }

    #[test]
    fn hugepages_are_pages_of_2_mib() {
        let mut spec = spec();
        spec.memory.hugepages = true;
        assert_eq!(json(&spec)["memory"]["hugepages"], true);
        assert_eq!(json(&spec)["memory"]["reserve"], true);
        assert_eq!(json(&spec)["memory"]["hugepage_size"], 2_097_152);
    }

    #[test]
    fn room_is_what_may_come_and_what_came_is_as_if_it_had_been_there() {
        type Sizes = [u64; 3];
        // Boot, plugged and most, in GiB; bytes and room.
        let cases: [(Sizes, u64, Option<u64>); 4] = [
            ([1, 0, 8], 1, Some(7)),
            ([1, 2, 8], 3, Some(7)),
            ([1, 0, 1], 1, None),
            ([1, 0, 0], 1, None),
        ];
        for ([size, added, max], total, room) in cases {
            let mut spec = spec();
            spec.memory.size = ByteSize::from_gib(size);
            spec.memory.added = ByteSize::from_gib(added);
            spec.memory.max = ByteSize::from_gib(max);
            let memory = &vm_config(&spec).memory;
            assert_eq!(memory.size, total << 30);
            assert_eq!(memory.hotplug_size, room.map(|room| room << 30));
        }
        let mut spec = spec();
        spec.cpus.added = 3;
        assert_eq!(json(&spec)["cpus"]["boot_vcpus"], 5);
    }

    #[test]
    fn the_console_token_becomes_the_virtio_console() {
        let cmdline = json(&spec())["payload"]["cmdline"].clone();
        assert!(cmdline.as_str().unwrap().starts_with("console=hvc0 "));
        assert!(!cmdline.as_str().unwrap().contains('{'));
    }

    type Change = fn(&mut VmSpec);

    #[test]
    fn what_cloud_hypervisor_lacks_is_refused_by_name() {
        assert_eq!(check(&spec()), Ok(()));
        let refused = |change: Change| {
            let mut spec = spec();
            change(&mut spec);
            check(&spec).unwrap_err()
        };
        let cases: [(&str, Change); 7] = [
            ("without CPUs", |s| s.cpus.boot = 0),
            ("CPU", |s| s.cpus.max = 1),
            ("room for 25", |s| s.disks = vec![s.disks[0].clone(); 26]),
            ("serial", |s| s.disks[0].serial = "x".repeat(21)),
            ("Queue count", |s| s.disks[0].queues = 9),
            ("MTU", |s| s.nics[0].mtu = 576),
            ("alloon", |s| s.memory.balloon = Some(ByteSize::from_gib(9))),
        ];
        for (word, change) in cases {
            let said = refused(change);
            assert!(said.contains(word), "{word:?} is not in {said:?}");
        }
    }
}
