//! virtio-rng: the host's random numbers for the guest.
//!
//! ```text
//! guest: writable buffer ─▶ lane 0 ─ getrandom(2), at most 64 KiB ─▶ used
//! ```
//! Source: virtio 1.2, section 5.4. It has one queue, no configuration and nothing to save.

pub(crate) mod device;
mod queue;
#[cfg(test)]
mod tests;
