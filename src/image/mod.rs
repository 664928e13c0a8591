//! Images: from a registry, a server, a file or a stream to blobs that VMs share: EROFS layers or a disk.
//!
//! ```text
//! registry, archive ─▶ sha-256 ─▶ decompress ─▶ sha-256 ─▶ layer ─▶ erofs ─▶ <root>/blobs/<layer hex>.erofs
//!                                                   └─▶ boot files ─▶ <root>/boot/<layer hex>/
//! server, file ──────▶ sha-256 ─▶ decompress ─▶ qcow2 ──────────────────▶ <root>/blobs/<disk hex>.qcow2
//! ```
//!
//! Invariants: a blob under its final name is whole and verified; its boot files were there before
//! it; and a recorded image's blobs are all there.

pub mod assembly;
pub mod blobs;
pub mod boot_files;
pub mod cancel;
pub mod cloud;
pub mod credentials;
mod decode;
mod download;
pub mod erofs;
pub mod fetch;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod hosts;
mod http;
pub mod import;
pub mod layer;
pub mod manifest;
pub mod progress;
pub mod pull;
pub mod records;
pub mod reference;
pub mod registry;
pub mod retry;
mod route;

#[cfg(test)]
mod fixture;
