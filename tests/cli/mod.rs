//! What users type, and what they read.

mod completion;
mod damaged;
#[cfg(feature = "failpoints")]
mod killed;
mod log;
mod mistakes;
mod output;
mod snapshot;
