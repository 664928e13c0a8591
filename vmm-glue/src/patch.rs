//! The state of a saved VM, read and changed through Cloud Hypervisor's own types.
//!
//! ```text
//!  state.json: Snapshot ─ "device-manager" ┬ "_net3":  NetState { config: VirtioNetConfig { mac, … }, … }
//!                                          └ "_disk1": BlockState { disk_nsectors, … }
//! ```
//! Invariant: what is to be read or changed is found, or nothing is restored. The rest of the state is
//! carried over word by word, since nobody here reads it.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use net_util::MacAddr;
use serde::de::DeserializeOwned;
use virtio_devices::BlockState;
use virtio_devices::net::NetState;
use vm_migration::{Snapshot, SnapshotData};

use crate::error::{Cause, Error};

/// Where the devices are (`DEVICE_MANAGER_SNAPSHOT_ID` of Cloud Hypervisor, which is not public).
const DEVICES: &str = "device-manager";

/// A VM of 254 CPUs has some megabytes of state.
const MAX_STATE_BYTES: u64 = 64 << 20;

/// Bytes of a sector, as virtio counts (virtio 1.2, section 5.2.4).
pub(crate) const SECTOR_BYTES: u64 = 512;

/// An address for a NIC of the saved VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewMac {
    /// What Cloud Hypervisor calls the NIC.
    pub(crate) device: String,
    /// The address that its configuration space shows from now on.
    pub(crate) mac: MacAddr,
}

/// The state of a saved VM.
pub(crate) struct State {
    /// Whence it was read.
    path: PathBuf,
    snapshot: Snapshot,
}

impl State {
    /// Reads the state in `path`.
    ///
    /// # Errors
    /// The file cannot be read, or is not a VM's state.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let mut json = Vec::new();
        fs::File::open(path)
            .and_then(|file| file.take(MAX_STATE_BYTES).read_to_end(&mut json))
            .map_err(|source| Error::Saved {
                what: "read",
                path: path.to_owned(),
                source,
            })?;
        let path = path.to_owned();
        match serde_json::from_slice(&json) {
            Ok(snapshot) => Ok(Self { path, snapshot }),
            Err(error) => Err(Error::SavedState {
                path,
                what: Cause::of(&error),
            }),
        }
    }

    /// Sectors of the disk that Cloud Hypervisor calls `device`.
    ///
    /// # Errors
    /// The VM has no such disk.
    pub(crate) fn sectors(&self, device: &str) -> Result<u64, Error> {
        let state: BlockState = self.device(device).map_err(|what| self.other(what))?;
        Ok(state.disk_nsectors)
    }

    /// Gives a NIC another address.
    ///
    /// # Errors
    /// The VM has no such NIC.
    pub(crate) fn give(&mut self, NewMac { device, mac }: &NewMac) -> Result<(), Error> {
        let give = |state: &mut Self| {
            let mut nic: NetState = state.device(device)?;
            nic.config.mac.copy_from_slice(mac.get_bytes());
            let data = SnapshotData::new_from_state(&nic).map_err(|error| Cause::of(&error))?;
            let devices = state.snapshot.snapshots.get_mut(DEVICES);
            if let Some(nic) = devices.and_then(|devices| devices.snapshots.get_mut(device)) {
                nic.snapshot_data = Some(data);
            }
            Ok(())
        };
        give(self).map_err(|what| self.other(what))
    }

    /// Writes it to `to`.
    ///
    /// # Errors
    /// `to` cannot be written.
    pub(crate) fn write(&self, to: &Path) -> Result<(), Error> {
        let json = serde_json::to_vec(&self.snapshot).map_err(Error::Json)?;
        fs::write(to, json).map_err(|source| Error::Saved {
            what: "write",
            path: to.to_owned(),
            source,
        })
    }

    fn device<T: DeserializeOwned>(&self, device: &str) -> Result<T, Cause> {
        let devices = self.snapshot.snapshots.get(DEVICES);
        let devices = devices.ok_or_else(|| Cause::text("it has no devices"))?;
        let found = devices.snapshots.get(device);
        let found = found.ok_or_else(|| Cause::text(format!("it has no device {device}")))?;
        found.to_state().map_err(|error| Cause::of(&error))
    }

    fn other(&self, what: Cause) -> Error {
        let path = self.path.clone();
        Error::SavedState { path, what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::VirtioBlockConfig;
    use net_util::VirtioNetConfig;

    fn mac(last: u8) -> MacAddr {
        MacAddr::parse_str(&format!("02:00:00:00:00:{last:02x}")).unwrap()
    }

    fn nic(last: u8) -> Snapshot {
        let state = NetState {
            avail_features: 1 << 40,
            acked_features: 3,
            config: VirtioNetConfig {
                mac: [2, 0, 0, 0, 0, last],
                mtu: 1450,
                ..VirtioNetConfig::default()
            },
            queue_size: vec![256, 256],
        };
        Snapshot::new_from_state(&state).unwrap()
    }

    /// Two NICs, a disk, a device that nobody here understands, and something beside the devices.
    fn saved() -> Vec<u8> {
        let mut devices = Snapshot::default();
        devices.add_snapshot("_net3".into(), nic(3));
        devices.add_snapshot("_net4".into(), nic(4));
        let opaque =
            SnapshotData::new_from_state(&serde_json::json!({"sectors": u64::MAX})).unwrap();
        devices.add_snapshot("_opaque0".into(), Snapshot::from_data(opaque));
        let disk = BlockState {
            disk_path: "/saved/overlay.img".into(),
            disk_nsectors: 4096,
            avail_features: 0,
            acked_features: 0,
            config: VirtioBlockConfig::default(),
        };
        devices.add_snapshot("_disk1".into(), Snapshot::new_from_state(&disk).unwrap());
        let mut snapshot = Snapshot::default();
        snapshot.add_snapshot(DEVICES.into(), devices);
        snapshot.add_snapshot("cpu-manager".into(), Snapshot::default());
        serde_json::to_vec(&snapshot).unwrap()
    }

    fn new_mac(device: &str, last: u8) -> NewMac {
        NewMac {
            device: device.into(),
            mac: mac(last),
        }
    }

    fn state(json: &[u8]) -> Result<State, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        fs::write(&path, json).unwrap();
        State::read(&path)
    }

    #[test]
    fn the_address_changes_and_nothing_else() {
        let mut state = state(&saved()).unwrap();
        state.give(&new_mac("_net4", 9)).unwrap();
        let before: serde_json::Value = serde_json::from_slice(&saved()).unwrap();
        let mut expected: Snapshot = serde_json::from_slice(&saved()).unwrap();
        let devices = expected.snapshots.get_mut(DEVICES).unwrap();
        devices.add_snapshot("_net4".into(), nic(9));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        state.write(&path).unwrap();
        let after = fs::read(&path).unwrap();
        let after: serde_json::Value = serde_json::from_slice(&after).unwrap();
        assert_eq!(after, serde_json::to_value(&expected).unwrap());
        assert_ne!(after, before);
    }

    #[test]
    fn a_disk_has_the_sectors_that_the_guest_knows() {
        let state = state(&saved()).unwrap();
        assert_eq!(state.sectors("_disk1").unwrap(), 4096);
        let said = crate::error::chain(&state.sectors("_disk0").unwrap_err());
        assert!(said.ends_with("it has no device _disk0"), "{said}");
    }

    #[test]
    fn a_nic_that_is_not_found_is_an_error() {
        for (json, device, word) in [
            (saved(), "_net7", "no device _net7"),
            (saved(), "_opaque0", "missing field"),
            (
                b"{\"snapshots\":{},\"snapshot_data\":null}".to_vec(),
                "_net3",
                "no devices",
            ),
            (b"[".to_vec(), "_net3", "EOF"),
        ] {
            let given = state(&json).and_then(|mut state| state.give(&new_mac(device, 1)));
            let said = crate::error::chain(&given.unwrap_err());
            assert!(said.contains(word), "{word:?} is not in {said:?}");
        }
    }
}
