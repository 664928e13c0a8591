//! The devices of a micro VM, each in `<name>/{device, queue, persist}.rs`.
//!
//! ```text
//! device.rs     features, configuration space, activation
//! queue.rs      requests of the guest, from descriptors to effects: what the fuzz targets drive
//! persist.rs    what is saved of it, and the device made anew from that
//! ```

pub(crate) mod balloon;
pub(crate) mod block;
mod list;
pub(crate) mod net;
pub(crate) mod panic;
pub(crate) mod plug;
pub(crate) mod power;
pub(crate) mod rng;
pub(crate) mod serial;
pub(crate) mod vmgenid;
pub(crate) mod vsock;
pub(crate) mod watchdog;

pub(crate) use list::{DeviceError, Devices, count, of};

use serde::{Deserialize, Serialize};

/// What is saved of a device beyond its transport and queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DeviceState {
    /// Nothing: the specification of the VM tells all.
    Nothing,
    /// A disk's.
    Block(block::persist::State),
    /// A network interface's.
    Net(net::persist::State),
    /// The balloon's.
    Balloon(balloon::persist::State),
}
