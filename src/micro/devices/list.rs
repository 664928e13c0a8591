//! Which virtio devices a VM has, in the order of their addresses.
//!
//! ```text
//! disks, as the specification lists them │ NICs, likewise │ rng │ balloon │ vsock
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
use super::vsock::{self, device::VsockError};
use crate::micro::virtio::device::Device;
use crate::vm::spec::{VmSpec, Vsock};

/// A device that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    /// A disk.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A network interface.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The virtio socket device.
    #[error(transparent)]
    Vsock(#[from] VsockError),
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
    let optional = [spec.memory.balloon.is_some(), spec.vsock.is_some()];
    spec.disks.len() + spec.nics.len() + 1 + optional.into_iter().filter(|has| *has).count()
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
    if let Some(Vsock { cid, socket }) = &spec.vsock {
        let state = saved.get(devices.len()).copied();
        devices.push(Box::new(vsock::device::Vsock::new(
            (*cid).into(),
            socket,
            state,
        )?));
    }
    Ok(Devices { devices, balloon })
}
