//! What has been plugged into the VM, for the guest's ACPI methods to read.
//!
//! ```text
//! PLUG_PORT +0          processors that there are            4 bytes
//!           +4          pieces of memory, filled slots        4 bytes
//!           +8 + 16 i   slot i: guest address, 8 bytes; length in bytes, 8 bytes; zeroes if it is empty
//! ```
//! The methods stand in `acpi::plug`; that there is something new to read is an event of `power`. Nothing
//! is saved: what the registers say follows from the VM that is made.

pub(crate) mod device;
