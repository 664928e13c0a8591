//! What users type, and what they read.

mod completion;
mod damaged;
mod debug;
#[cfg(feature = "failpoints")]
mod killed;
mod mistakes;
mod output;
mod snapshot;
mod status;
