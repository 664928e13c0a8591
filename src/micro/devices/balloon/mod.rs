//! The memory balloon: pages that the guest does without go back to the host.
//!
//! ```text
//! num_pages ─▶ driver: takes pages from its kernel ─▶ inflate ─┐
//!                     gives them back ◀────────────── deflate  │ whole pages:
//!                     pages that are free for now ─▶ reporting ┴─▶ MADV_DONTNEED
//! ```
//! Source: virtio 1.2, section 5.5; the size counts pages of 4 KiB, whatever the host's are. It is the
//! specification's for a VM's whole life.
//! Invariants: only guest RAM is given up, and only pages that lie within what the driver named. RAM
//! is a private mapping, so giving up a page drops it: what is read there next is zero, or what the
//! file has from which a restored guest's RAM is mapped, and the driver may count on neither (nor
//! does Linux: where it wants zeroes in free pages, it reports none). Pages of 2 MiB go only as
//! wholes, which inflating hardly ever yields, but reporting does. Deflating needs no work: the
//! kernel finds a page at the next access.

pub(crate) mod device;
pub(crate) mod persist;
mod queue;

#[cfg(test)]
mod tests;

/// The unit of a balloon, in bytes.
const PAGE: u64 = 4096;
