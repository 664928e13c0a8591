//! Which virtio devices a VM has, in the order of their addresses.
//!
//! ```text
//! disks, as the specification lists them │ NICs, likewise │ rng
//! ```
//! Invariant: the order depends on nothing but the specification, so that what was saved of device `i`
//! is for device `i`.

use super::DeviceState;
use super::block::device::{Block, BlockError};
use super::net::device::Net;
use super::net::tap::NetError;
use super::rng::device::Rng;
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
    devices.push(Box::new(Rng));
    Ok(devices)
}
