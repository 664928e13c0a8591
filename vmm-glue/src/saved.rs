//! A saved VM, made to fit the place where it is restored.
//!
//! ```text
//!  <saved>/config.json ──fit──▶ <vm>/api.restore/config.json    with the new files, TAP devices, MACs
//!          state.json      ── patch ─▶ state.json        or a link, where no MAC changes
//!          memory-ranges   ◀── link ── memory-ranges
//!          and what there is more of than that:  Growth, plugged in when the VM runs
//! ```
//! Cloud Hypervisor builds the VM from the configuration beside its state. The MAC stands in both: what
//! the guest reads is of the state, and of the configuration once it was reset. A driver that runs
//! goes on with the address that it has read, until somebody in the guest gives it another.
//!
//! The state is of as many processors and as much memory as the VM had, and the configuration must agree
//! with it: so a VM is restored as large as it was, and grows after that. Cloud Hypervisor then counts
//! what was plugged into `boot_vcpus` and `memory.size`, and leaves `hotplug_size` as it was; so does the
//! configuration of a VM that had grown before it was saved, and [`convert`].
//!
//! Invariant: the saved folder is only read. Ours lives while the VMM reads it, which is not longer
//! than the restore takes: it keeps the memory file open.

use std::cmp::Ordering;
use std::fmt::Display;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use cocoon::vm::spec::VmSpec;
use vmm::vm_config::{DiskConfig, NetConfig, VmConfig};

use crate::convert;
use crate::error::Error;
use crate::patch::{NewMac, SECTOR_BYTES, State};

/// The VM's configuration (`SNAPSHOT_CONFIG_FILE` of Cloud Hypervisor, which is not public).
const CONFIG: &str = "config.json";

/// The devices' and processors' state (`SNAPSHOT_STATE_FILE`).
const STATE: &str = "state.json";

/// The memory.
const MEMORY: &str = "memory-ranges";

/// A configuration has some kilobytes; one larger than this is none.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// A folder from which Cloud Hypervisor restores `spec`'s VM. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Staged {
    folder: PathBuf,
    growth: Growth,
}

/// What the VM has more of than was saved: how much it has then.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Growth {
    /// Processors.
    pub(crate) cpus: Option<u32>,
    /// Bytes of memory.
    pub(crate) memory: Option<u64>,
    /// Disks whose files have become longer.
    pub(crate) disks: Vec<GrownDisk>,
}

/// A disk whose file is longer than the guest knows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GrownDisk {
    /// What Cloud Hypervisor calls the disk.
    pub(crate) device: String,
    /// Its size, in bytes of whole sectors.
    pub(crate) bytes: u64,
}

impl Staged {
    /// Stages what was saved in `from` for `spec`.
    ///
    /// # Errors
    /// The saved VM is not readable, or is another than `spec`'s; or the folder cannot be made.
    pub(crate) fn new(spec: &VmSpec, from: &Path) -> Result<Self, Error> {
        let saved = read(&from.join(CONFIG))?;
        let Fitted {
            config,
            macs,
            mut growth,
        } = fit(saved, &convert::vm_config(spec))?;
        let mut state = State::read(&from.join(STATE))?;
        growth.disks = grown_disks(&config, &state)?;
        let config = serde_json::to_vec(&config).map_err(Error::Json)?;
        let folder = spec.paths.api_socket.with_extension("restore");
        // Of a VM process that was killed in here.
        let _ = fs::remove_dir_all(&folder);
        make("make the folder", &folder, |path| fs::create_dir(path))?;
        let staged = Self { folder, growth };
        let path = staged.folder.join(CONFIG);
        make("write", &path, |path| fs::write(path, config))?;
        if macs.is_empty() {
            staged.link(from, STATE)?;
        } else {
            macs.iter().try_for_each(|mac| state.give(mac))?;
            state.write(&staged.folder.join(STATE))?;
        }
        staged.link(from, MEMORY)?;
        Ok(staged)
    }

    /// What the VM gets once it runs.
    pub(crate) fn growth(&self) -> &Growth {
        &self.growth
    }

    fn link(&self, from: &Path, name: &str) -> Result<(), Error> {
        let original = make("find", &from.join(name), |path| path.canonicalize())?;
        let link = self.folder.join(name);
        make("make the link", &link, |link| symlink(original, link))
    }

    /// Where it is.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            log::warn!("cannot remove {}: {error}", self.folder.display());
        }
    }
}

fn make<T>(
    what: &'static str,
    path: &Path,
    act: impl FnOnce(&Path) -> io::Result<T>,
) -> Result<T, Error> {
    act(path).map_err(|source| Error::Saved {
        what,
        path: path.to_owned(),
        source,
    })
}

fn read(path: &Path) -> Result<VmConfig, Error> {
    let mut json = Vec::new();
    make("read", path, |path| {
        let file = fs::File::open(path)?;
        file.take(MAX_CONFIG_BYTES).read_to_end(&mut json)
    })?;
    serde_json::from_slice(&json).map_err(|source| Error::SavedConfig {
        path: path.to_owned(),
        source,
    })
}

/// A saved configuration for its new place.
#[derive(Debug)]
struct Fitted {
    /// As large as it was saved.
    config: VmConfig,
    /// Those that are new.
    macs: Vec<NewMac>,
    /// Without disks, which the configuration does not measure.
    growth: Growth,
}

/// The saved configuration, with the files, sockets, TAP devices and MACs of the wanted one.
///
/// # Errors
/// [`Error::Shape`] if they differ in more than that, or the wanted one is smaller.
fn fit(mut saved: VmConfig, wanted: &VmConfig) -> Result<Fitted, Error> {
    for (saved, wanted) in shape(&saved).into_iter().zip(shape(wanted)) {
        if saved != wanted {
            return Err(Error::Shape { saved, wanted });
        }
    }
    let growth = Growth {
        cpus: more(saved.cpus.boot_vcpus, wanted.cpus.boot_vcpus, "CPUs")?,
        memory: more(saved.memory.size, wanted.memory.size, "bytes of memory")?,
        disks: Vec::new(),
    };
    let disks = wanted.disks.iter().flatten();
    for (saved, wanted) in saved.disks.iter_mut().flatten().zip(disks) {
        saved.path.clone_from(&wanted.path);
    }
    let mut macs = Vec::new();
    let nics = wanted.net.iter().flatten();
    for (saved, wanted) in saved.net.iter_mut().flatten().zip(nics) {
        saved.tap.clone_from(&wanted.tap);
        // The old TAP's own address, which Cloud Hypervisor notes and would give to the new one.
        saved.host_mac = wanted.host_mac;
        if saved.mac != wanted.mac {
            saved.mac = wanted.mac;
            // Cloud Hypervisor gives each device a name before it saves.
            let device = saved.pci_common.id.clone().unwrap_or_default();
            macs.push(NewMac {
                device,
                mac: wanted.mac,
            });
        }
    }
    if let (Some(saved), Some(wanted)) = (&mut saved.vsock, &wanted.vsock) {
        saved.socket.clone_from(&wanted.socket);
    }
    // Read again when the guest reboots.
    saved.payload.clone_from(&wanted.payload);
    Ok(Fitted {
        config: saved,
        macs,
        growth,
    })
}

/// What is wanted, if it is more than was saved; less is refused.
fn more<T: Ord + Display>(saved: T, wanted: T, what: &str) -> Result<Option<T>, Error> {
    match wanted.cmp(&saved) {
        Ordering::Greater => Ok(Some(wanted)),
        Ordering::Equal => Ok(None),
        Ordering::Less => Err(Error::Shape {
            saved: format!("{saved} {what}"),
            wanted: format!("{wanted} {what}"),
        }),
    }
}

/// The disks whose files have more sectors than the guest knows.
fn grown_disks(config: &VmConfig, state: &State) -> Result<Vec<GrownDisk>, Error> {
    let mut grown = Vec::new();
    let disks = config.disks.iter().flatten();
    for disk in disks.filter(|disk| !disk.readonly) {
        let path = disk.path.clone().unwrap_or_default();
        let sectors = make("find", &path, |path| path.metadata())?.len() / SECTOR_BYTES;
        let device = disk.pci_common.id.clone().unwrap_or_default();
        if sectors > state.sectors(&device)? {
            let bytes = sectors * SECTOR_BYTES;
            grown.push(GrownDisk { device, bytes });
        }
    }
    Ok(grown)
}

/// What must not change, in words; of any two VMs, the same thing stands in the same place.
fn shape(config: &VmConfig) -> [String; 7] {
    let disks = config.disks.as_deref().unwrap_or_default();
    let nics = config.net.as_deref().unwrap_or_default();
    let balloon = config.balloon.as_ref();
    [
        format!("room for {} CPUs", config.cpus.max_vcpus),
        format!("hugepages: {}", config.memory.hugepages),
        format!(
            "a balloon of {} bytes",
            balloon.map_or(0, |balloon| balloon.size)
        ),
        format!("a watchdog: {}", config.watchdog),
        match &config.vsock {
            Some(vsock) => format!("a virtio socket of CID {}", vsock.cid),
            None => "no virtio socket".to_owned(),
        },
        format!("the disks [{}]", list(disks, disk)),
        format!("the NICs [{}]", list(nics, nic)),
    ]
}

fn list<T>(items: &[T], words: impl Fn(&T) -> String) -> String {
    items.iter().map(words).collect::<Vec<_>>().join(", ")
}

fn disk(disk: &DiskConfig) -> String {
    let serial = disk.serial.as_deref().unwrap_or_default();
    let access = if disk.readonly { "read" } else { "written" };
    format!("{serial}: {access}, {} queues", disk.num_queues)
}

fn nic(nic: &NetConfig) -> String {
    let mtu = nic.mtu.unwrap_or_default();
    format!("MTU {mtu}, {} queues", nic.num_queues)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> VmSpec {
        serde_json::from_str(include_str!("../tests/golden/oci.spec.json")).unwrap()
    }

    /// As Cloud Hypervisor leaves it: with names that it gave, and the TAP's own address.
    fn saved() -> VmConfig {
        let mut config = convert::vm_config(&spec());
        let nic = &mut config.net.as_mut().unwrap()[0];
        nic.pci_common.id = Some("_net3".to_owned());
        nic.host_mac = Some(nic.mac);
        config.console.common.file = Some("/dev/pts/7".into());
        config
    }

    #[test]
    fn files_and_taps_are_the_new_ones_and_the_rest_stays() {
        let mut spec = spec();
        spec.disks[0].path = "/new/layer".into();
        spec.nics[0].tap = "tap7".to_owned();
        let fitted = fit(saved(), &convert::vm_config(&spec)).unwrap();
        assert_eq!(fitted.macs, []);
        assert_eq!(fitted.growth, Growth::default());
        let mut expected = saved();
        expected.disks.as_mut().unwrap()[0].path = Some("/new/layer".into());
        let nic = &mut expected.net.as_mut().unwrap()[0];
        nic.tap = Some("tap7".to_owned());
        nic.host_mac = None;
        assert_eq!(fitted.config, expected);
    }

    /// As Cloud Hypervisor leaves the configuration of a VM to which something was plugged.
    fn saved_grown() -> VmConfig {
        let mut config = saved();
        config.cpus.boot_vcpus = 3;
        config.memory.size = 2 << 30;
        config
    }

    #[test]
    fn a_vm_is_restored_as_large_as_it_was_and_grows_by_the_rest() {
        let grown = |cpus, memory| Growth {
            cpus,
            memory,
            disks: vec![],
        };
        // Plugged processors and GiB of what is wanted.
        for (saved, cpus, gib, growth) in [
            (saved(), 0, 0, grown(None, None)),
            (saved(), 2, 0, grown(Some(4), None)),
            (saved(), 0, 3, grown(None, Some(4 << 30))),
            (saved_grown(), 1, 1, grown(None, None)),
            (saved_grown(), 2, 3, grown(Some(4), Some(4 << 30))),
        ] {
            let mut spec = spec();
            spec.cpus.added = cpus;
            spec.memory.added = cocoon::units::ByteSize::from_gib(gib);
            let fitted = fit(saved.clone(), &convert::vm_config(&spec)).unwrap();
            assert_eq!(fitted.growth, growth);
            assert_eq!(fitted.config.cpus, saved.cpus);
            assert_eq!(fitted.config.memory, saved.memory);
        }
        let smaller = fit(saved_grown(), &convert::vm_config(&spec()));
        let said = smaller.unwrap_err().to_string();
        assert!(said.contains("has 3 CPUs, this one is to have 2"), "{said}");
    }

    #[test]
    fn a_new_mac_is_in_the_configuration_and_for_the_state() {
        let mut spec = spec();
        spec.nics[0].mac = cocoon::units::Mac::new([2, 0, 0, 0, 0, 9]);
        let wanted = convert::vm_config(&spec);
        let fitted = fit(saved(), &wanted).unwrap();
        let mac = wanted.net.as_ref().unwrap()[0].mac;
        assert_eq!(fitted.config.net.as_ref().unwrap()[0].mac, mac);
        let device = "_net3".to_owned();
        assert_eq!(fitted.macs, [NewMac { device, mac }]);
    }

    #[test]
    fn a_vm_of_another_shape_is_refused_in_words() {
        type Change = fn(&mut VmSpec);
        let cases: [(&str, Change); 9] = [
            ("room for 9 CPUs", |s| s.cpus.max += 1),
            ("1 CPUs", |s| s.cpus.boot -= 1),
            ("to have 0 bytes of memory", |s| {
                s.memory.size = cocoon::units::ByteSize::default();
            }),
            ("hugepages: true", |s| s.memory.hugepages = true),
            ("balloon of 0 bytes", |s| s.memory.balloon = None),
            ("no virtio socket", |s| s.vsock = None),
            ("watchdog: false", |s| s.watchdog = false),
            ("written", |s| s.disks[0].readonly = false),
            ("NICs []", |s| s.nics.clear()),
        ];
        for (word, change) in cases {
            let mut spec = spec();
            change(&mut spec);
            let said = fit(saved(), &convert::vm_config(&spec))
                .unwrap_err()
                .to_string();
            assert!(said.contains(word), "{word:?} is not in {said:?}");
        }
    }

    /// The state of a VM with one disk, `_disk1`, of so many sectors.
    fn state(sectors: u64) -> Vec<u8> {
        let disk = virtio_devices::BlockState {
            disk_path: "/saved/overlay.img".into(),
            disk_nsectors: sectors,
            avail_features: 0,
            acked_features: 0,
            config: block::VirtioBlockConfig::default(),
        };
        let disk = vm_migration::Snapshot::new_from_state(&disk).unwrap();
        let mut devices = vm_migration::Snapshot::default();
        devices.add_snapshot("_disk1".into(), disk);
        let mut state = vm_migration::Snapshot::default();
        state.add_snapshot("device-manager".into(), devices);
        serde_json::to_vec(&state).unwrap()
    }

    /// A saved VM in `saved`, and a specification for a disk and sockets beside it.
    fn place(folder: &Path) -> (PathBuf, VmSpec) {
        let from = folder.join("saved");
        fs::create_dir(&from).unwrap();
        let mut config = saved();
        config.disks.as_mut().unwrap()[1].pci_common.id = Some("_disk1".to_owned());
        fs::write(from.join(CONFIG), serde_json::to_vec(&config).unwrap()).unwrap();
        fs::write(from.join(STATE), state(16)).unwrap();
        fs::write(from.join(MEMORY), "memory").unwrap();
        let mut spec = spec();
        spec.paths.api_socket = folder.join("api.sock");
        spec.disks[1].path = folder.join("overlay.img");
        fs::write(&spec.disks[1].path, [0; 16 * 512]).unwrap();
        (from, spec)
    }

    #[test]
    fn what_is_staged_is_gone_afterwards_and_reads_like_what_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        let (from, spec) = place(folder.path());
        let staged = Staged::new(&spec, &from).unwrap();
        let memory = fs::read(staged.folder().join(MEMORY)).unwrap();
        assert_eq!(memory, b"memory");
        assert_eq!(fs::read(staged.folder().join(STATE)).unwrap(), state(16));
        let staged_config = read(&staged.folder().join(CONFIG)).unwrap();
        assert_eq!(staged_config.net.as_ref().unwrap()[0].host_mac, None);
        assert_eq!(staged.growth(), &Growth::default());
        drop(staged);
        assert!(!folder.path().join("api.restore").exists());
        fs::write(from.join(CONFIG), "[]").unwrap();
        let said = Staged::new(&spec, &from).unwrap_err().to_string();
        assert!(said.contains("not the configuration"), "{said}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (from, spec) = place(folder.path());
        for (file, end) in [
            (from.join(MEMORY), "cannot find"),
            (spec.disks[1].path.clone(), "cannot find"),
            (from.join(STATE), "cannot read"),
        ] {
            fs::remove_file(&file).unwrap();
            let said = Staged::new(&spec, &from).unwrap_err().to_string();
            assert_eq!(said, format!("{end} {}", file.display()));
        }
    }

    #[test]
    fn a_disk_whose_file_has_grown_is_one_that_grows_by_whole_sectors() {
        let folder = tempfile::tempdir().unwrap();
        let (from, spec) = place(folder.path());
        for (length, bytes) in [(16 * 512 + 511, None), (17 * 512 + 3, Some(17 * 512))] {
            fs::write(&spec.disks[1].path, vec![0; length]).unwrap();
            let staged = Staged::new(&spec, &from).unwrap();
            let device = "_disk1".to_owned();
            let grown = bytes.map(|bytes| GrownDisk { device, bytes });
            assert_eq!(staged.growth().disks, Vec::from_iter(grown));
        }
    }
}
