//! (in work)

pub mod blobs;
pub mod cancel;
pub mod credentials;
mod decode;
mod download;
pub mod layer;
pub mod manifest;
pub mod progress;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod retry;
