//! The VM's generation id: 16 random bytes in guest memory by which a guest learns that its time
//! was turned back or doubled, so that it must not trust its random numbers and unique ids.
//!
//! ```text
//! boot ────▶ id at layout::GENERATION_ID
//! restore ─▶ another id there ─▶ Power::generation_changed ─▶ event, notification of \_SB.VGEN
//! ```
//! Source: "Virtual Machine Generation ID", Microsoft; Linux's `drivers/virt/vmgenid.c`. The id is
//! in guest memory, so nothing more is saved of it.

pub(crate) mod device;
