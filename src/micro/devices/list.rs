//! Which virtio devices a VM has, in the order of their addresses.
//!
//! ```text
//! disks, as the specification lists them │ NICs, likewise │ rng │ balloon
//! ```
//! Invariant: the order depends on nothing but the specification, so that what was saved of device `i`
//! is for device `i`.

use super::balloon::{Balloon, BalloonError};
use super::block::{Block, BlockError};
use super::net::{Net, NetError};
use super::rng::Rng;
use super::DeviceState;
use crate::micro::virtio::device::Device;
use crate::vm::spec::VmSpec;

/// A device that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    /// A disk.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A network interface.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The balloon.
    #[error(transparent)]
    Balloon(#[from] BalloonError),
}

/// The devices of `spec`'s VM: fresh ones, or with what was `saved` of each.
///
/// # Errors
/// A file or interface cannot be opened, or is not as it was saved.
pub(crate) fn of(
    spec: &VmSpec,
    saved: &[&DeviceState],
) -> Result<Vec<Box<dyn Device>>, DeviceError> {
    let mut devices: Vec<Box<dyn Device>> = Vec::new();
    for disk in &spec.disks {
        let state = match saved.get(devices.len()) {
            Some(DeviceState::Block(state)) => Some(state),
            _ => None,
        };
        devices.push(Box::new(Block::open(disk, state)?));
    }
    for nic in &spec.nics {
        let state = match saved.get(devices.len()) {
            Some(DeviceState::Net(state)) => Some(state),
            _ => None,
        };
        devices.push(Box::new(Net::open(nic, state)?));
    }
    devices.push(Box::new(Rng::new()));
    if let Some(size) = spec.memory.balloon {
        let state = match saved.get(devices.len()) {
            Some(DeviceState::Balloon(state)) => Some(state),
            _ => None,
        };
        devices.push(Box::new(Balloon::new(size, state)?));
    }
    Ok(devices)
}
