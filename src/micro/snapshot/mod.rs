//! What is saved of a VM, and how it is read again.
//!
//! ```text
//! <folder>/
//!   state      vCPUs, chips, transports and devices (`file`)
//!   memory     guest RAM, byte by byte in order of address, without the holes; sparse
//! ```

pub(crate) mod file;
pub(crate) mod saved;

/// Name of the state file in a snapshot's folder.
pub(crate) const STATE: &str = "state";

/// Name of the memory file in a snapshot's folder.
pub(crate) const MEMORY: &str = "memory";
