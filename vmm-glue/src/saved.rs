//! A saved VM, made to fit the place where it is restored.
//!
//! ```text
//!  <saved>/config.json ──fit──▶ <vm>/api.restore/config.json    with the new files, TAP devices, MACs
//!          state.json      ── patch ─▶ state.json        or a link, where no MAC changes
//!          memory-ranges   ◀── link ── memory-ranges
//! ```
//! Cloud Hypervisor builds the VM from the configuration beside its state. The MAC stands in both: what
//! the guest reads is of the state, and of the configuration once it was reset. A driver that runs
//! goes on with the address that it has read, until somebody in the guest gives it another.
//!
//! Invariant: the saved folder is only read. Ours lives while the VMM reads it, which is not longer
//! than the restore takes: it keeps the memory file open.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use cocoon::vm::spec::VmSpec;
use vmm::vm_config::{DiskConfig, NetConfig, VmConfig};

use crate::convert;
use crate::error::Error;
use crate::patch::{self, NewMac};

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
}

impl Staged {
    /// Stages what was saved in `from` for `spec`.
    ///
    /// # Errors
    /// The saved VM is not readable, or is another than `spec`'s; or the folder cannot be made.
    pub(crate) fn new(spec: &VmSpec, from: &Path) -> Result<Self, Error> {
        let saved = read(&from.join(CONFIG))?;
        let (config, macs) = fit(saved, &convert::vm_config(spec))?;
        let config = serde_json::to_vec(&config).map_err(Error::Json)?;
        let folder = spec.paths.api_socket.with_extension("restore");
        // Of a VM process that was killed in here.
        let _ = fs::remove_dir_all(&folder);
        make("make the folder", &folder, |path| fs::create_dir(path))?;
        let staged = Self { folder };
        let path = staged.folder.join(CONFIG);
        make("write", &path, |path| fs::write(path, config))?;
        if macs.is_empty() {
            staged.link(from, STATE)?;
        } else {
            patch::state(&from.join(STATE), &staged.folder.join(STATE), &macs)?;
        }
        staged.link(from, MEMORY)?;
        Ok(staged)
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

/// The saved configuration, with the files, sockets, TAP devices and MACs of the wanted one; and those
/// MACs that are new.
///
/// # Errors
/// [`Error::Shape`] if they differ in more than that.
fn fit(mut saved: VmConfig, wanted: &VmConfig) -> Result<(VmConfig, Vec<NewMac>), Error> {
    for (saved, wanted) in shape(&saved).into_iter().zip(shape(wanted)) {
        if saved != wanted {
            return Err(Error::Shape { saved, wanted });
        }
    }
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
    Ok((saved, macs))
}

/// What must not change, in words; of any two VMs, the same thing stands in the same place.
fn shape(config: &VmConfig) -> [String; 8] {
    let disks = config.disks.as_deref().unwrap_or_default();
    let nics = config.net.as_deref().unwrap_or_default();
    let balloon = config.balloon.as_ref();
    [
        format!(
            "{} of {} CPUs",
            config.cpus.boot_vcpus, config.cpus.max_vcpus
        ),
        format!("{} bytes of memory", config.memory.size),
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
        let (fitted, macs) = fit(saved(), &convert::vm_config(&spec)).unwrap();
        assert_eq!(macs, []);
        let mut expected = saved();
        expected.disks.as_mut().unwrap()[0].path = Some("/new/layer".into());
        let nic = &mut expected.net.as_mut().unwrap()[0];
        nic.tap = Some("tap7".to_owned());
        nic.host_mac = None;
        assert_eq!(fitted, expected);
    }

    #[test]
    fn a_new_mac_is_in_the_configuration_and_for_the_state() {
        let mut spec = spec();
        spec.nics[0].mac = cocoon::units::Mac::new([2, 0, 0, 0, 0, 9]);
        let wanted = convert::vm_config(&spec);
        let (fitted, macs) = fit(saved(), &wanted).unwrap();
        let mac = wanted.net.as_ref().unwrap()[0].mac;
        assert_eq!(fitted.net.as_ref().unwrap()[0].mac, mac);
        let device = "_net3".to_owned();
        assert_eq!(macs, [NewMac { device, mac }]);
    }

    #[test]
    fn a_vm_of_another_shape_is_refused_in_words() {
        type Change = fn(&mut VmSpec);
        let cases: [(&str, Change); 7] = [
            ("CPUs", |s| s.cpus.boot += 1),
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

    #[test]
    fn what_is_staged_is_gone_afterwards_and_reads_like_what_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("saved");
        fs::create_dir(&from).unwrap();
        fs::write(from.join(CONFIG), serde_json::to_vec(&saved()).unwrap()).unwrap();
        fs::write(from.join("state.json"), "{}").unwrap();
        let mut spec = spec();
        spec.paths.api_socket = folder.path().join("api.sock");
        let missing = Staged::new(&spec, &from).unwrap_err().to_string();
        assert!(missing.contains("cannot find"), "{missing}");
        assert!(missing.ends_with("saved/memory-ranges"), "{missing}");
        fs::write(from.join("memory-ranges"), "memory").unwrap();
        let staged = Staged::new(&spec, &from).unwrap();
        let memory = fs::read(staged.folder().join("memory-ranges")).unwrap();
        assert_eq!(memory, b"memory");
        let staged_config = read(&staged.folder().join(CONFIG)).unwrap();
        assert_eq!(staged_config.net.as_ref().unwrap()[0].host_mac, None);
        drop(staged);
        assert!(!folder.path().join("api.restore").exists());
        fs::write(from.join(CONFIG), "[]").unwrap();
        let said = Staged::new(&spec, &from).unwrap_err().to_string();
        assert!(said.contains("not the configuration"), "{said}");
    }
}
