//! virtio-blk: raw files of the host as disks of the guest.
//!
//! ```text
//!  queue i ─▶ lane i: Requests ─ parse ─▶ Request ─ Backend::start ─┬▶ io_uring ─ eventfd ─┐
//!     ▲                   │                                         └▶ preadv …  ──────────┤
//!     └── used, status ◀──┴──────────────── Backend::next_done ◀────────────────────────────┘
//! ```
//! device.rs configuration, request.rs what the guest asks, queue.rs the life of requests, backend.rs
//! and ring.rs their effects on the file, persist.rs what is saved.
//! Source: virtio 1.2, section 5.2.
//! Invariant: data goes between the page cache and guest RAM without a copy on the way, so nothing
//! may be under way when RAM is read or goes: handlers and backends wait for it when they end.

mod backend;
pub(crate) mod device;
pub(crate) mod persist;
mod queue;
mod request;
mod ring;
#[cfg(test)]
mod tests;
