//! What is saved of a network interface.

use serde::{Deserialize, Serialize};

/// What a driver has set beyond the features it accepted: nothing while the device is not active.
/// The guest's address is not among it; a clone's is that of its own `VmSpec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State(pub(super) Option<Settings>);

/// What a driver sets by the control queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// Pairs of queues in use.
    pub(super) pairs: u16,
    /// Features of what the guest receives that are on (`VIRTIO_NET_F_GUEST_*`).
    pub(super) offloads: u64,
}

impl Settings {
    /// As a driver finds the device that has accepted `features`.
    pub(super) fn initial(features: u64) -> Self {
        let offloads = features & super::device::GUEST_OFFLOADS;
        Self { pairs: 1, offloads }
    }
}
