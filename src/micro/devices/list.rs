//! Which virtio devices a VM has, in the order of their addresses.
//!
//! ```text
//! disks, as the specification lists them │ NICs, likewise │ rng │ balloon
//! ```
//! Invariant: the order depends on nothing but the specification, so that what was saved of device `i`
//! is for device `i`.

use std::sync::Arc;

use super::DeviceState;
use super::balloon::device::{Balloon, Size};
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

/// The devices of a VM.
#[derive(Debug)]
pub(crate) struct Devices {
    /// In the order of their addresses.
    pub(crate) devices: Vec<Box<dyn Device>>,
    /// Of the balloon, if there is one.
    pub(crate) balloon: Option<Arc<Size>>,
}

/// How many devices `spec`'s VM has.
pub(crate) fn count(spec: &VmSpec) -> usize {
    spec.disks.len() + spec.nics.len() + 1 + usize::from(spec.memory.balloon.is_some())
}

/// The devices of `spec`'s VM: fresh ones, or with what was `saved` of each. A state of another kind of
/// device is none here; the transport refuses it.
///
/// # Errors
/// A file or interface cannot be opened, or is not as it was saved.
pub(crate) fn of(spec: &VmSpec, saved: &[&DeviceState]) -> Result<Devices, DeviceError> {
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
    let mut balloon = None;
    if let Some(target) = spec.memory.balloon {
        let state = match saved.get(devices.len()) {
            Some(DeviceState::Balloon(state)) => Some(state),
            _ => None,
        };
        let device = Balloon::new(target, spec.memory.hugepages, state);
        balloon = Some(device.size());
        devices.push(Box::new(device));
    }
    Ok(Devices { devices, balloon })
}
