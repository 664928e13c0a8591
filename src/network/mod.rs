//! The network of a VM: a namespace of its own, into which CNI puts the NICs.
//!
//! ```text
//!  host                      │ /var/run/netns/cocoon-<vm id>
//!  CNI's bridge, overlay ────┼── eth<i> ◀═ redirect ═▶ tap<i> ◀── the VM process, for the guest
//! ```
//!
//! In the order of a VM's life: [`Conflist::find`], [`plan()`], [`setup()`], [`quiesce`] and [`wake`] as it stops and starts, [`is_intact`]
//! and [`rebuild`] before it starts, [`teardown()`].
//!
//! Invariants:
//! - The thread that calls a function of this module is in the host's network namespace, before and
//!   after.
//! - Calls for one VM come one after the other (the caller holds its operation lock); different VMs
//!   never wait for each other here, only in their plugins.

pub mod cni;
pub mod conflist;
pub mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod netlink;
pub mod plan;
pub mod plugin;
pub mod probe;
pub mod records;
pub mod redirect;
pub mod result;
pub mod setup;
pub mod teardown;

pub use cni::Plugins;
pub use conflist::Conflist;
pub use error::{NetworkError, SetupError, TeardownError};
pub use plan::{Address, NetworkRecord, NicRecord, plan};
pub use setup::{is_intact, quiesce, rebuild, setup, wake};
pub use teardown::teardown;

#[cfg(test)]
mod tests;
