//! The state of a saved VM, changed through Cloud Hypervisor's own types.
//!
//! ```text
//!  state.json: Snapshot ─ "device-manager" ─ "_net3": NetState { config: VirtioNetConfig { mac, … }, … }
//! ```
//! Invariant: what is to be changed is found, or nothing is restored. The rest of the state is carried
//! over word by word, since nobody here reads it.

use std::fs;
use std::io::Read;
use std::path::Path;

use net_util::MacAddr;
use virtio_devices::net::NetState;
use vm_migration::{Snapshot, SnapshotData};

use crate::error::{Cause, Error};

/// Where the devices are (`DEVICE_MANAGER_SNAPSHOT_ID` of Cloud Hypervisor, which is not public).
const DEVICES: &str = "device-manager";

/// A VM of 254 CPUs has some megabytes of state.
const MAX_STATE_BYTES: u64 = 64 << 20;

/// An address for a NIC of the saved VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewMac {
    /// What Cloud Hypervisor calls the NIC.
    pub(crate) device: String,
    /// The address that its configuration space shows from now on.
    pub(crate) mac: MacAddr,
}

/// Writes the state in `from` to `to`, with other addresses.
///
/// # Errors
/// The file is not a VM's state, or has no such NICs; or `to` cannot be written.
pub(crate) fn state(from: &Path, to: &Path, macs: &[NewMac]) -> Result<(), Error> {
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Saved { what, path, source }
    };
    let mut json = Vec::new();
    fs::File::open(from)
        .and_then(|file| file.take(MAX_STATE_BYTES).read_to_end(&mut json))
        .map_err(failed("read", from))?;
    let patched = patch(&json, macs).map_err(|what| Error::SavedState {
        path: from.to_owned(),
        what,
    })?;
    fs::write(to, patched).map_err(failed("write", to))
}

fn patch(json: &[u8], macs: &[NewMac]) -> Result<Vec<u8>, Cause> {
    let mut snapshot: Snapshot = serde_json::from_slice(json).map_err(|error| Cause::of(&error))?;
    let devices = snapshot.snapshots.get_mut(DEVICES);
    let devices = devices.ok_or_else(|| Cause::text("it has no devices"))?;
    for NewMac { device, mac } in macs {
        let found = devices.snapshots.get_mut(device);
        let found = found.ok_or_else(|| Cause::text(format!("it has no device {device}")))?;
        let mut state: NetState = found.to_state().map_err(|error| Cause::of(&error))?;
        state.config.mac.copy_from_slice(mac.get_bytes());
        let data = SnapshotData::new_from_state(&state).map_err(|error| Cause::of(&error))?;
        found.snapshot_data = Some(data);
    }
    serde_json::to_vec(&snapshot).map_err(|error| Cause::of(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
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

    /// Two NICs, a disk that nobody here understands, and something beside the devices.
    fn saved() -> Vec<u8> {
        let mut devices = Snapshot::default();
        devices.add_snapshot("_net3".into(), nic(3));
        devices.add_snapshot("_net4".into(), nic(4));
        let opaque =
            SnapshotData::new_from_state(&serde_json::json!({"sectors": u64::MAX})).unwrap();
        devices.add_snapshot("_disk0".into(), Snapshot::from_data(opaque));
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

    #[test]
    fn the_address_changes_and_nothing_else() {
        let patched = patch(&saved(), &[new_mac("_net4", 9)]).unwrap();
        let before: serde_json::Value = serde_json::from_slice(&saved()).unwrap();
        let mut expected: Snapshot = serde_json::from_slice(&saved()).unwrap();
        let devices = expected.snapshots.get_mut(DEVICES).unwrap();
        devices.add_snapshot("_net4".into(), nic(9));
        let after: serde_json::Value = serde_json::from_slice(&patched).unwrap();
        assert_eq!(after, serde_json::to_value(&expected).unwrap());
        assert_ne!(after, before);
    }

    #[test]
    fn a_nic_that_is_not_found_is_an_error() {
        for (json, device, word) in [
            (saved(), "_net7", "no device _net7"),
            (saved(), "_disk0", "missing field"),
            (
                b"{\"snapshots\":{},\"snapshot_data\":null}".to_vec(),
                "_net3",
                "no devices",
            ),
            (b"[".to_vec(), "_net3", "EOF"),
        ] {
            let error = patch(&json, &[new_mac(device, 1)]).unwrap_err();
            let said = crate::error::chain(&error);
            assert!(said.contains(word), "{word:?} is not in {said:?}");
        }
    }
}
