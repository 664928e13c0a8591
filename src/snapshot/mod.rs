//! Saved VMs: what is in one, how it is checked, recorded and moved.
//!
//! ```text
//! <root>/snapshots/<id>/
//!   manifest.json    of which VM, on which processor, and each file's size and digest (`manifest`)
//!   vm/              memory and state, in the engine's own form
//!   disks/<name>     each disk that the guest may write to
//! ```
//! Invariants: a folder under its final name is whole, and its files are never written again; a folder
//! without a row is garbage. A snapshot belongs to no VM: it names the one that was saved, and holds
//! pins of its own on the image's layers.

pub mod archive;
mod digest;
pub mod manifest;
pub mod records;

pub use manifest::{Manifest, ManifestError};
pub use records::{SnapshotRecord, SnapshotState};
