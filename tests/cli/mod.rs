//! What users type, and what they read.

#[cfg(feature = "failpoints")]
mod killed;
mod mistakes;
mod output;
mod snapshot;
